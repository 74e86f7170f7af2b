"""What draws the blocks of a session: one device after its own last step, or a mesh with a step on every stage."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from avatar_jax.core import axes, quant
from avatar_jax.core.config import Config
from avatar_jax.models import dit
from avatar_jax.stream import knot, pipeline, rollout
from avatar_jax.stream.state import BlockInput, Scene, StreamState, Weights


class Drawn(NamedTuple):
    """A finished block."""

    latent: jax.Array  # [B, F, h, w, C]
    frames: jax.Array  # uint8 [B, T, H, W, 3], perhaps still being computed


class Engine(Protocol):
    """Takes blocks in order and gives them back drawn, in order, at once or some blocks later."""

    def feed(self, block: BlockInput) -> list[Drawn]:
        """Starts a block; returns those that are done."""
        ...

    def drain(self) -> list[Drawn]:
        """Finishes what was fed."""
        ...

    def show(self, scene: Scene) -> None:
        """Another scene, from the next block fed on."""
        ...


Engines = Callable[[], Engine]  # one for every session

KINDS: dict[str, Any] = {"sink": rollout, "knot": knot}  # each has make_start, make_denoise and make_refill


def kind(cfg: Config) -> Any:
    """The module that draws blocks as `config.stream.engine` says."""
    return KINDS[cfg.stream.engine]


class Sequential:
    """Every block from noise to pixels before the next."""

    def __init__(self, weights: Weights, scene: Scene, begin: StreamState, cfg: Config):
        self._weights, self._scene, self._cfg = weights, scene, cfg
        state = jax.tree.map(jnp.copy, begin)  # each block donates what it replaces
        self._caches, self._tail = state.caches, state.tail
        self._denoise, self._decode = kind(cfg).make_denoise(cfg), rollout.make_decode(cfg)

    def feed(self, block: BlockInput) -> list[Drawn]:
        """Draws a block."""
        self._caches, latent = self._denoise(self._weights.dit, self._caches, block, self._scene.cross)
        self._tail, frames = self._decode(self._weights.vae, self._tail, latent)
        return [Drawn(latent, frames)]

    def drain(self) -> list[Drawn]:
        """Nothing is left."""
        return []

    def show(self, scene: Scene) -> None:
        """Another scene, from the next block fed on."""
        p, self._scene = self._weights.dit, scene
        self._caches = kind(self._cfg).make_refill()(p, self._caches, rollout.make_prefill(self._cfg)(p, scene))


@dataclasses.dataclass(frozen=True)
class _Change:
    """A scene that the stages take up one after the other, each when its first block reaches it."""

    first: int  # block
    held: Any
    cross: Any


class Pipelined:
    """A block a tick over a mesh with a stage axis: `pipeline`. The decoder runs on the last stage's device.

    Args:
      weights: from `place`.
      scene: to begin with.
      begin: from `rollout.start`.
      mesh: with a stage axis.
      cfg: the run.
    """

    def __init__(self, weights: Weights, scene: Scene, begin: StreamState, mesh: Mesh, cfg: Config):
        self._weights, self._scene, self._cfg, self._mesh = weights, scene, cfg, mesh
        self._stages = mesh.shape[pipeline.STAGE]
        self._tick, self._decode = pipeline.make_tick(cfg, mesh), rollout.make_decode(cfg)
        self._memory, self._state = begin.caches[0], None
        self._tail = jax.device_put(jax.tree.map(jnp.copy, begin.tail), decoder_device(mesh))
        self._ticks, self._fed, self._last = 0, 0, None
        self._changes: list[_Change] = []

    def feed(self, block: BlockInput) -> list[Drawn]:
        """Runs a tick with this block entering; the block that leaves is decoded while the next ticks run."""
        self._fed, self._last = self._fed + 1, block
        return self._beat(block)

    def drain(self) -> list[Drawn]:
        """Ticks until the last block has left."""
        if self._last is None:
            return []
        drawn = []
        while self._ticks < self._fed + self._stages - 1:
            drawn += self._beat(self._last)  # nobody looks at what follows the last block
        return drawn

    def show(self, scene: Scene) -> None:
        """Another scene, from the next block fed on: computed now, taken up by each stage as that block reaches it."""
        held = rollout.make_prefill(self._cfg)(self._weights.dit, pipeline.everywhere(scene, self._mesh))
        self._changes.append(_Change(self._fed, held, scene.cross))

    def _beat(self, block: BlockInput) -> list[Drawn]:
        p, mesh, cfg = self._weights.dit, self._mesh, self._cfg
        if self._state is None:
            self._state = pipeline.start(p, self._memory, self._scene.cross, block, mesh=mesh, cfg=cfg)
        for change in self._changes:
            where = np.arange(self._stages) == self._ticks - change.first
            if where.any():
                args = (pipeline.everywhere(change.cross, mesh), where)
                self._state = pipeline.make_change(cfg, mesh)(p, self._state, change.held, *args)
        self._changes = [change for change in self._changes if self._ticks - change.first < self._stages - 1]
        self._state, latents = self._tick(p, self._state, block)
        self._ticks += 1
        if self._ticks < self._stages:
            return []
        latent = pipeline.leaving(latents)
        self._tail, frames = self._decode(self._weights.vae, self._tail, latent)
        return [Drawn(latent, frames)]


def decoder_device(mesh: Mesh) -> Any:
    """The device that decodes: the last of the last stage."""
    return mesh.devices.flat[-1]


def place(weights: Weights, mesh: Mesh, cfg: Config) -> Weights:
    """Weights where a pipeline needs them: the transformer on every stage, the VAE where blocks are decoded.

    Raises:
      ValueError: heads or widths that do not split over the mesh's tensor axis.
    """
    rules = axes.TENSOR_PARALLEL if axes.TENSOR in mesh.shape else {}
    lying = axes.shardings(dit.spec(cfg.dit), rules, mesh)
    if isinstance(weights.dit["blocks"], tuple):
        lying["blocks"] = (axes.one_layer(lying["blocks"]),) * cfg.dit.layers
        if "audio" in lying:
            injectors = axes.one_layer(lying["audio"]["injectors"])
            lying["audio"] |= {"injectors": (injectors,) * len(cfg.dit.audio_inject)}

    def lay(leaf: Any, where: Any) -> Any:
        return jax.device_put(leaf, quant.place(leaf, where) if isinstance(leaf, quant.QTensor) else where)

    transformer = jax.tree.map(lay, weights.dit, lying, is_leaf=lambda leaf: isinstance(leaf, quant.QTensor))
    return Weights(transformer, jax.device_put(weights.vae, decoder_device(mesh)))
