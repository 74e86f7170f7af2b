"""Many streams on one mesh: a fixed number of seats, taken and left while the others go on.

A beat is one tick (`pipeline.make_tick`): every seat may enter a block, and the blocks that are done come home and are
decoded there. Who takes a seat gets the scene of its avatar into the seat's memories as its first block reaches each
stage, in place and without a new program; what a former stream left is never read, because nothing of it counts as
filled. A seat with nothing to enter runs on zeros at the place of its next block, which that block then writes over.
"""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from avatar_jax.core.config import Config
from avatar_jax.stream import clock, pipeline, rollout
from avatar_jax.stream import mesh as meshes
from avatar_jax.stream.engine import Drawn, not_saved
from avatar_jax.stream.state import BlockInput, Place, Scene, Weights


class Full(RuntimeError):
    """Every seat is taken."""


@dataclasses.dataclass(frozen=True)
class Act:
    """An avatar on its pool: what is computed of it once."""

    scene: Scene  # on the whole mesh
    held: Any  # its keys and values, from `rollout.prefill`, on the whole mesh
    tail: Any  # the decoder's, once it has seen the portrait; None on a process that decodes nothing


@dataclasses.dataclass(frozen=True)
class _Change:
    """A scene that the stages take up one after the other, each when its first block reaches it."""

    tick: int  # in which that block enters
    stream: int
    held: Any
    cross: Any


class Seat:
    """One stream of a pool; to a session, an engine of its own."""

    def __init__(self, pool: "Pool", stream: int, act: Act):
        self._pool, self.stream = pool, stream
        self.act, self.tail = act, pool.at_home(stream, jax.tree.map(jnp.copy, act.tail))
        self.waiting: collections.deque[BlockInput | Scene | None] = collections.deque([act.scene])
        self.done: list[Drawn] = []
        self.entered, self.left = 0, 0  # blocks
        self.alone = True  # nobody else beats the pool
        self.first: jax.Array | None = None  # latent, on the whole mesh

    def offer(self, block: BlockInput) -> None:
        """Lets a block enter at the next beat that has room for it."""
        self.waiting.append(block)

    def collect(self) -> list[Drawn]:
        """What has been drawn since the last call."""
        done, self.done = self.done, []
        return done

    @property
    def busy(self) -> bool:
        """Whether blocks wait or are under way."""
        return self.left < self.entered or any(isinstance(item, BlockInput) for item in self.waiting)

    def feed(self, block: BlockInput) -> list[Drawn]:
        """Enters a block, in a beat of its own if nobody else beats; what others have offered goes with it."""
        self.offer(block)
        if self.alone:
            self._pool.beat()
        return self.collect()

    def drain(self) -> list[Drawn]:
        """Beats until nothing of this stream is under way."""
        while self.busy:
            self._pool.beat()
        return self.collect()

    def show(self, scene: Scene) -> None:
        """Another scene, from the next block on."""
        self.waiting.append(scene)

    def adapt(self) -> None:
        """The scene with the stream's own first latent as its reference, from the next block on."""
        self.waiting.append(None)

    def close(self) -> None:
        """Leaves the seat to others; what is under way is lost."""
        self._pool.leave(self)

    def state(self) -> Any:
        """Raises ValueError: it is spread over devices."""
        raise not_saved("on a pool")

    def restore(self, found: Any) -> None:
        """Raises ValueError: it is spread over devices."""
        raise not_saved("on a pool")


class Pool:
    """Seats over the rows of a mesh.

    Args:
      weights: from `engine.place`.
      mesh: from `mesh.make_mesh`.
      decoders: the device of every row that decodes.
      cfg: the run.
    """

    def __init__(self, weights: Weights, mesh: Mesh, decoders: list[Any], cfg: Config):
        self._weights, self._mesh, self._cfg, self._decoders = weights, mesh, cfg, decoders
        self._rows, self._stages = mesh.shape[meshes.DATA], mesh.shape[meshes.STAGE]
        self._slots = cfg.mesh.streams // self._rows
        self._vae = {device: jax.device_put(weights.vae, device) for device in decoders if meshes.is_here(device)}
        self._tick, self._change = pipeline.make_tick(cfg, mesh), pipeline.make_change(cfg, mesh)
        self._seats: list[Seat | None] = [None] * cfg.mesh.streams
        self._under: collections.deque[list[Seat | None]] = collections.deque()
        self._pace: collections.deque[jax.Array] = collections.deque()  # so that no process runs ahead of its devices
        self._changes: list[_Change] = []
        self._ticks, self._state = 0, None
        self._nothing, self._beyond = None, {}  # a block without content; and of every device but the first stages'

    @property
    def busy(self) -> bool:
        """Whether it has ticked."""
        return self._ticks > 0

    def act(self, scene: Scene) -> Act:
        """Prepares an avatar, for all its streams."""
        tail = None
        for device, vae in list(self._vae.items())[:1]:
            tail = rollout.make_warm(self._cfg)(vae, jax.device_put(scene.still, device))
        scene = meshes.everywhere(scene, self._mesh)
        return Act(scene, rollout.make_prefill(self._cfg)(self._weights.dit, scene), tail)

    def join(self, act: Act) -> Seat:
        """A free seat for a new stream; raises Full."""
        if None not in self._seats:
            raise Full(f"all {len(self._seats)} seats are taken")
        stream = self._seats.index(None)
        seat = self._seats[stream] = Seat(self, stream, act)
        return seat

    def leave(self, seat: Seat) -> None:
        """Frees a seat at once; nothing happens if it is free already."""
        if self._seats[seat.stream] is seat:
            self._seats[seat.stream] = None

    def at_home(self, stream: int, tree: Any) -> Any:
        """A tree on the device that decodes a stream, if that is a device of this process."""
        device = self._decoders[stream // self._slots]
        return jax.device_put(tree, device) if meshes.is_here(device) else None

    def beat(self) -> None:
        """One tick: what waits enters, what is done comes home. Without either nothing runs."""
        blocks = {seat.stream: block for seat in self._seats if seat and (block := self._next(seat))}
        if not blocks and not any(seat for seats in self._under for seat in seats):
            return
        p, entering = self._weights.dit, self._entering(blocks)
        if self._state is None:
            self._state = self._begin(entering)
        if self._cfg.mesh.share_first and any(seat.entered == 1 for seat in self._seats if seat and blocks):
            return self._draw_first(entering)
        for change in self._changes:
            where = np.zeros((self._stages, self._rows), bool)
            where[self._ticks - change.tick, change.stream // self._slots] = True
            slot = np.int32(change.stream % self._slots)
            self._state = self._change(p, self._state, change.held, change.cross, slot, where)
        self._changes = [change for change in self._changes if self._ticks - change.tick < self._stages - 1]
        self._state, latents = self._tick(p, self._state, entering)
        self._ticks += 1
        self._pace.append(latents)
        if len(self._pace) > self._stages:
            self._pace.popleft().block_until_ready()
        self._under.append([seat if stream in blocks else None for stream, seat in enumerate(self._seats)])
        if len(self._under) == self._stages:
            self._come_home(self._under.popleft(), latents)

    def _draw_first(self, entering: BlockInput) -> None:
        """The first block of the one stream, by all stages together: it comes home at once."""
        p, change, following = self._weights.dit, self._changes[-1], _nobody(1, self._cfg)
        where, self._changes = np.ones((self._stages, self._rows), bool), []
        self._state = self._change(p, self._state, change.held, change.cross, np.int32(0), where)
        self._state, latents = pipeline.make_first(self._cfg, self._mesh)(p, self._state, entering, following)
        self._come_home(self._seats, latents)

    def _next(self, seat: Seat) -> BlockInput | None:
        """The block of a seat that enters now, after the scenes that wait before it."""
        while any(isinstance(item, BlockInput) for item in seat.waiting):
            item = seat.waiting.popleft()
            if isinstance(item, BlockInput):
                seat.entered += 1
                return item
            self._show(seat, item)
        return None

    def _show(self, seat: Seat, scene: Scene | None) -> None:
        """A scene that the stages take up with the block that enters in this tick; None: its own first latent."""
        new = dataclasses.replace(seat.act.scene, reference=seat.first) if scene is None else scene
        if new is not seat.act.scene:
            new = meshes.everywhere(new, self._mesh)
            seat.act = Act(new, rollout.make_prefill(self._cfg)(self._weights.dit, new), seat.act.tail)
        self._changes.append(_Change(self._ticks, seat.stream, seat.act.held, seat.act.scene.cross))

    def _begin(self, entering: BlockInput) -> Any:
        """The state before the first tick."""
        scene = next(seat.act.scene for seat in self._seats if seat)
        state = pipeline.abstract(self._weights.dit, scene, entering, mesh=self._mesh, cfg=self._cfg)
        return pipeline.make_empty(state)()

    def _entering(self, blocks: dict[int, BlockInput]) -> BlockInput:
        """What enters, [stages, streams, ...]: every row's blocks on its first stage, and nothing beyond."""
        if self._nothing is None:
            one = next(iter(blocks.values()))
            self._nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), one)
            self._beyond = meshes.nothing(one, self._slots, self._mesh)
        nothing: Any = self._nothing
        streams: list[BlockInput] = [
            dataclasses.replace(nothing, place=_nobody(seat.entered if seat else 0, self._cfg)) for seat in self._seats
        ]
        for stream, block in blocks.items():
            streams[stream] = block
        rows = [streams[row * self._slots : (row + 1) * self._slots] for row in range(self._rows)]
        return meshes.enter(rows, self._beyond, self._mesh)

    def _come_home(self, seats: list[Seat | None], latents: jax.Array) -> None:
        """Decodes what is done, each stream after its own tail; what a seat's former stream drew is dropped."""
        here = meshes.at_home(latents, self._mesh)
        for stream, seat in enumerate(seats):
            if seat is None or self._seats[stream] is not seat:
                continue
            if not seat.left and self._cfg.stream.adapt_blocks:
                seat.first = meshes.make_share(self._mesh)(latents, np.int32(stream))[:, :1]
            seat.left += 1
            row, slot = divmod(stream, self._slots)
            came = here[row]
            if came is not None:
                latent = self.at_home(stream, came[0, slot : slot + 1])
                vae, decode = self._vae[self._decoders[row]], rollout.make_decode(self._cfg)
                seat.tail, frames = decode(vae, seat.tail, latent)
                seat.done.append(Drawn(latent, frames))
            else:
                seat.done.append(Drawn(None, None))


def _nobody(number: int, cfg: Config) -> Place:
    """The place of a block that does not exist, where the block of that number will be."""
    place = clock.place(number, cfg)
    return dataclasses.replace(place, filled=np.zeros_like(place.filled))
