"""Timestep-forcing pipeline: step k lives on stage k with a memory at its own noise level, and blocks stream through.

One tick is one program on every device of a mesh (live_avatar.md sections 6.7 and 12): each stage runs its steps on a
block against its own memories and hands the block on. Only a flight moves: latents, the tokens of its sound, and where
it stands. Block g is at stage k in tick g + k; stages see blocks in order, so the pipeline draws what
`rollout.denoise` draws. The ring of stages is closed: a block that is done comes home to the first stage, where the
sound comes from and the viewers are, in the same transfer.

A mesh may also split over streams (`data`): every row of it is a pipeline of its own, and each device holds the
`slots` of its row, streams side by side that know nothing of each other. Inside a stage, devices may share the rows of
every latent frame (`context`, `nn/bands.py`): flights and memories are alike on all of them.

Stages that have no block yet run on zeros; what they write lies where nothing has been filled, and is overwritten.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avatar_jax.core import axes, check
from avatar_jax.core.config import Config
from avatar_jax.models import dit
from avatar_jax.nn import bands, kv
from avatar_jax.stream import engine, rollout
from avatar_jax.stream.mesh import CONTEXT, DATA, STAGE
from avatar_jax.stream.state import BlockInput, Flight, Place, Scene, Tied

_EVERYWHERE = PartitionSpec()


@flax.struct.dataclass
class PipelineState:
    """What a tick reads and replaces; every leaf has a leading axis of stages, each stage holding its own entry."""

    memories: Any  # one a step of the stage, or what the engine's `begin` gives where one stage does all steps
    flight: Flight | None  # the block that the stage works on next; the first stage's has been drawn
    cross: Any  # the prompt that its block follows


def pack(tree: Any) -> jax.Array:
    """All leaves of a tree as one vector of bytes, so that they move in one transfer."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([jax.lax.bitcast_convert_type(leaf, jnp.uint8).reshape(-1) for leaf in leaves])


def unpack(packed: jax.Array, like: Any) -> Any:
    """The inverse of `pack`, for a tree of the shapes and dtypes of `like`."""
    leaves, at, found = jax.tree.leaves(like), 0, []
    for leaf in leaves:
        size = leaf.size * leaf.dtype.itemsize
        wide = () if leaf.dtype.itemsize == 1 else (leaf.dtype.itemsize,)
        found.append(jax.lax.bitcast_convert_type(packed[at : at + size].reshape(*leaf.shape, *wide), leaf.dtype))
        at += size
    return jax.tree.unflatten(jax.tree.structure(like), found)


def _own(tree: Any) -> Any:
    """A stage's entry of leaves that are sharded over stages."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _held(tree: Any) -> Any:
    """The inverse of `_own`."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _tick(
    p: dict, state: PipelineState, entering: BlockInput, *, stages: int, band: bands.Axes, cfg: Config
) -> tuple[PipelineState, jax.Array]:
    """One tick as one stage sees it. Returns its new state, and the latents that came to it, [1, B, F, h, w, C]."""
    memories, cross = _own(state.memories), _own(state.cross)
    if stages == 1:
        memories, latent = engine.kind(cfg).denoise(p, memories, _own(entering), cross, band=band, cfg=cfg)
        return PipelineState(_held(memories), None, state.cross), latent[None]
    stage, steps = jax.lax.axis_index(STAGE), check.stages(stages, cfg)
    flight = rollout.enter(p, _own(entering), cfg=cfg)
    flight = jax.tree.map(lambda new, old: jnp.where(stage == 0, new, old), flight, _own(state.flight))
    heard = dit.hear(p, flight.voices, cfg=cfg.dit)
    memories, flight = rollout.advance(p, memories, flight, stage * steps, steps, heard, cross, band=band, cfg=cfg)
    around = [(k, (k + 1) % stages) for k in range(stages)]
    flight = unpack(jax.lax.ppermute(pack(flight), STAGE, around), flight)
    return PipelineState(_held(memories), _held(flight), state.cross), flight.latent[None]


def _draw_first(
    p: dict, state: PipelineState, entering: BlockInput, following: Place, *, stages: int, cfg: Config
) -> tuple[PipelineState, jax.Array]:
    """The first block as one stage sees it, step after step with the others, each on its band.

    Every memory of a stage serves a step of each stage; what its own step wrote is put back at the end. The flights
    left are at the place of the next block, which writes over whatever they write.
    """
    stage, steps = jax.lax.axis_index(STAGE), check.stages(stages, cfg)
    flight, cross, memories = rollout.enter(p, entering, cfg=cfg), _own(state.cross), list(_own(state.memories))
    heard, blocks = dit.hear(p, flight.voices, cfg=cfg.dit), p["blocks"]
    begin = functools.partial(kv.read_slot, slot=0, tokens=cfg.stream.block_latents * cfg.tokens_per_frame)
    kept: list[Any] = [None] * steps
    for number in range(cfg.stream.steps):
        own, at = number // steps == stage, number % steps
        memory, flight = rollout.step(p, memories[at], flight, number, heard, cross, band=(STAGE, CONTEXT), cfg=cfg)
        wrote = kv.each(blocks, begin, memory)
        last = wrote if kept[at] is None else kept[at]
        chosen = jax.tree.map(lambda new, old, own=own: jnp.where(own, new, old), wrote, last)
        # taken now, or every memory would be copied to wait for the end
        memories[at], kept[at] = jax.lax.optimization_barrier((memory, chosen))
    latent = flight.latent[None]
    put = functools.partial(kv.write_slot, slot=0)
    new = tuple(kv.each(blocks, put, *pair) for pair in zip(memories, kept, strict=True))
    flight = dataclasses.replace(flight, place=following)
    return PipelineState(_held(new), _held(flight), state.cross), latent


def _rows(cfg: Config) -> tuple[PartitionSpec, PartitionSpec]:
    """Over which axes the leaves of flights lie, and those of memories, that have layers before streams if stacked."""
    layers = (None,) if cfg.dit.layer_loop != "unroll" else ()
    return PartitionSpec(STAGE, DATA), PartitionSpec(STAGE, *layers, DATA)


def _specs(cfg: Config) -> Any:
    """A prefix of the tree of a state."""
    flights, memories = _rows(cfg)
    specs: Any = PipelineState(Tied(memories, flights) if cfg.stream.knot else memories, flights, memories)  # type: ignore[arg-type]
    return specs


def _map_memories(deep: Callable[[Any], Any], flat: Callable[[Any], Any], memories: Any) -> Any:
    """`deep` of keys and values, that may have a leading axis of layers, and `flat` of latents, that have none."""
    if isinstance(memories, Tied):
        return Tied(jax.tree.map(deep, memories.caches), flat(memories.knot))
    return jax.tree.map(deep, memories)


def _manual(mesh: Mesh) -> set[str]:
    """The axes that a tick names: all but a tensor axis that splits; fused kernels want no other left to XLA."""
    return {name for name, size in mesh.shape.items() if name != axes.TENSOR or size == 1}


def shardings(state: PipelineState, mesh: Mesh, cfg: Config) -> PipelineState:
    """Where every leaf of a state lies: its entry on its stage, the heads of keys and values over the tensor axis."""
    flights, memories = _rows(cfg)

    def heads(leaf: jax.Array) -> NamedSharding:  # [stages, ..., N, K]
        free = (None,) * (leaf.ndim - len(memories) - 2)
        return axes.over(mesh, *memories, *free, axes.TENSOR)

    def whole(leaf: jax.Array) -> NamedSharding:
        return axes.over(mesh, *flights)

    return PipelineState(
        _map_memories(heads, whole, state.memories), jax.tree.map(whole, state.flight), jax.tree.map(heads, state.cross)
    )


@functools.lru_cache(maxsize=8)
def make_tick(cfg: Config, mesh: Mesh):
    """One tick compiled for a mesh of `mesh.make_mesh`, state donated.

    Weights are replicated over streams, stages and bands, and sharded over the mesh's tensor axis as they arrive.

    Returns:
      (weights of the transformer, state, entering) -> (state, latents [stages, B, F, h, w, C]). Leaves of `entering`
      have a leading axis of stages, of which the first stage's entry counts; so do the latents, of blocks that are
      done.

    Raises:
      ValueError: as `check.stages` and `check.bands`.
    """
    stages, flights = mesh.shape[STAGE], _rows(cfg)[0]
    check.stages(stages, cfg)
    check.bands(mesh.shape[CONTEXT], cfg)
    band = CONTEXT if mesh.shape[CONTEXT] > 1 else None
    sharded = jax.shard_map(
        functools.partial(_tick, stages=stages, band=band, cfg=cfg),
        mesh=mesh,
        in_specs=(_EVERYWHERE, _specs(cfg), flights),
        out_specs=(_specs(cfg), flights),
        axis_names=_manual(mesh),
        check_vma=False,
    )

    def tick(p: dict, state: PipelineState, entering: BlockInput) -> tuple[PipelineState, jax.Array]:
        state, latents = sharded(p, state, entering)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh, cfg)), latents

    return rollout.make_program(tick, "block", donate_argnums=1)


@functools.lru_cache(maxsize=8)
def make_first(cfg: Config, mesh: Mesh):
    """The first block of every stream, drawn by all stages together and seen after one program; state donated.

    Every stage must know the scenes; what was under way is dropped.

    Returns:
      (weights of the transformer, state, entering, places of the next blocks) -> (state, latents), as `make_tick`.

    Raises:
      ValueError: as `check.bands`, for all devices of a row's bands and stages.
    """
    stages, flights = mesh.shape[STAGE], _rows(cfg)[0]
    check.bands(stages * mesh.shape[CONTEXT], cfg)
    sharded: Any = jax.shard_map(
        functools.partial(_draw_first, stages=stages, cfg=cfg),
        mesh=mesh,
        in_specs=(_EVERYWHERE, _specs(cfg), PartitionSpec(DATA), PartitionSpec(DATA)),
        out_specs=(_specs(cfg), flights),
        axis_names=_manual(mesh),
        check_vma=False,
    )

    def first(p: dict, state: PipelineState, entering: BlockInput, following: Place) -> tuple[PipelineState, jax.Array]:
        state, latents = sharded(p, state, jax.tree.map(lambda leaf: leaf[0], entering), following)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh, cfg)), latents

    return rollout.make_program(first, "block", donate_argnums=1)


def _change(
    p: dict, state: PipelineState, held: Any, cross: Any, slot: jax.Array, where: jax.Array, *, cfg: Config
) -> PipelineState:
    """Another scene for one slot of a stage if `where`, bool [1, 1]: what its memories know of it, and its prompt."""
    layers = int(cfg.dit.layer_loop != "unroll")

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:  # [L, B, ...] and [L, 1, ...], or of one layer
        at: list[Any] = [0] * whole.ndim
        at[layers] = slot
        return jax.lax.dynamic_update_slice(whole, part, at)

    def new(state: PipelineState) -> PipelineState:
        memories = engine.kind(cfg).refill(p, _own(state.memories), held, slot)
        return PipelineState(_held(memories), state.flight, _held(jax.tree.map(put, _own(state.cross), cross)))

    return jax.lax.cond(where[0, 0], new, lambda state: state, state)


@functools.lru_cache(maxsize=8)
def make_change(cfg: Config, mesh: Mesh):
    """Changes the scene of a stream at some stages, state donated.

    Returns:
      (weights, state, held, cross, slot, where) -> state. held: from `rollout.prefill`; slot: of the stream within its
      row; where: bool [stages, rows].
    """

    def change(p: dict, state: PipelineState, held: Any, cross: Any, slot: jax.Array, where: Any) -> PipelineState:
        state = jax.shard_map(
            functools.partial(_change, cfg=cfg),
            mesh=mesh,
            in_specs=(_EVERYWHERE, _specs(cfg), _EVERYWHERE, _EVERYWHERE, _EVERYWHERE, PartitionSpec(STAGE, DATA)),
            out_specs=_specs(cfg),
            axis_names=_manual(mesh),
            check_vma=False,
        )(p, state, held, cross, slot, where)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh, cfg))

    return jax.jit(change, donate_argnums=1)


def abstract(p: dict, scene: Scene, entering: BlockInput, *, mesh: Mesh, cfg: Config) -> PipelineState:
    """Shapes, dtypes and shardings of a state.

    Args:
      p: weights of the transformer.
      scene: of one stream.
      entering: as a tick takes it, [stages, streams, ...].
      mesh: from `mesh.make_mesh`.
      cfg: the run.
    """
    stages, streams = entering.noise.shape[:2]
    layers = int(cfg.dit.layer_loop != "unroll")

    def enter(p: dict, block: BlockInput) -> Flight:
        return rollout.enter(p, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), block), cfg=cfg)

    def begin(p: dict, scene: Scene) -> Any:
        held = rollout.prefill(p, scene, cfg=cfg)
        if stages > 1:
            return rollout.begin(p, held, check.stages(stages, cfg), cfg=cfg)
        return engine.kind(cfg).begin(p, held, cfg=cfg)

    def of_stage(leaf: Any, *, axis: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((stages, *leaf.shape[:axis], streams, *leaf.shape[axis + 1 :]), leaf.dtype)

    flat, deep = functools.partial(of_stage, axis=0), functools.partial(of_stage, axis=layers)
    memories = _map_memories(deep, flat, jax.eval_shape(begin, p, scene))
    flight = jax.tree.map(flat, jax.eval_shape(enter, p, entering)) if stages > 1 else None
    state = PipelineState(memories, flight, jax.tree.map(deep, scene.cross))
    lying = shardings(state, mesh, cfg)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, lying)


def make_empty(state: Any):
    """() -> a state of `abstract` with nothing in it: no scene, no block."""
    return jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
