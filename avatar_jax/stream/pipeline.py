"""Timestep-forcing pipeline: step k lives on stage k with a memory at its own noise level, and blocks stream through.

One tick is one program on every device of a mesh (live_avatar.md sections 6.7 and 12): each stage takes the block that
the stage before it had, runs its steps on it against its own memories, and keeps it for the next tick. Only a flight
moves: latents, the tokens of its sound, and where it stands. Block g is at stage k in tick g + k, and leaves the last
stage P - 1 ticks after it entered the first; stages see blocks in order, so the pipeline draws what `rollout.denoise`
draws.

Stages that have no block yet run on zeros; what they write lies where nothing has been filled, and is overwritten.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avatar_jax.core import axes, check
from avatar_jax.core.config import Config
from avatar_jax.models import dit
from avatar_jax.stream import rollout
from avatar_jax.stream.state import BlockInput, Flight

STAGE = "stage"
_LOCAL, _EVERYWHERE = PartitionSpec(STAGE), PartitionSpec()


@flax.struct.dataclass
class PipelineState:
    """What a tick reads and replaces; every leaf has a leading axis of stages, each stage holding its own entry."""

    memories: tuple[Any, ...]  # one a step of the stage
    flight: Flight  # the block that the stage has just worked on
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
    p: dict, state: PipelineState, entering: BlockInput, *, stages: int, cfg: Config
) -> tuple[PipelineState, jax.Array]:
    """One tick as one stage sees it. Returns its new state, and the latents it is done with, [1, B, F, h, w, C]."""
    stage, steps = jax.lax.axis_index(STAGE), check.stages(stages, cfg)
    flight, cross = rollout.enter(p, entering, cfg=cfg), _own(state.cross)
    if stages > 1:
        before = _own(state.flight)
        moved = jax.lax.ppermute(pack(before), STAGE, [(k, k + 1) for k in range(stages - 1)])
        flight = jax.tree.map(lambda new, old: jnp.where(stage == 0, new, old), flight, unpack(moved, before))
    heard = dit.hear(p, flight.voices, cfg=cfg.dit)
    memories, flight = rollout.advance(p, _own(state.memories), flight, stage * steps, steps, heard, cross, cfg=cfg)
    return PipelineState(_held(memories), _held(flight), state.cross), flight.latent[None]


def _change(state: PipelineState, held: Any, cross: Any, where: jax.Array, *, p: dict) -> PipelineState:
    """Another scene for the stages in `where`, bool [1]: the condition part of their memories, and their prompt."""

    def new(state: PipelineState) -> PipelineState:
        return PipelineState(_held(rollout.refill(p, _own(state.memories), held)), state.flight, _held(cross))

    return jax.lax.cond(where[0], new, lambda state: state, state)


def shardings(state: PipelineState, mesh: Mesh) -> PipelineState:
    """Where every leaf of a state lies: its entry on its stage, the heads of keys and values over the tensor axis."""
    split = axes.TENSOR in mesh.shape

    def heads(leaf: jax.Array) -> NamedSharding:  # [stages, ..., N, K]
        spec = PartitionSpec(STAGE, *(None,) * (leaf.ndim - 3), axes.TENSOR) if split else _LOCAL
        return NamedSharding(mesh, spec)

    def whole(leaf: jax.Array) -> NamedSharding:
        return NamedSharding(mesh, _LOCAL)

    return PipelineState(
        jax.tree.map(heads, state.memories), jax.tree.map(whole, state.flight), jax.tree.map(heads, state.cross)
    )


@functools.lru_cache(maxsize=8)
def make_tick(cfg: Config, mesh: Mesh):
    """One tick compiled for a mesh with a stage axis, state donated.

    Weights are replicated over stages, and sharded over the mesh's other axes as they arrive; the block that enters is
    the same on every device.

    Returns:
      (weights of the transformer, state, entering) -> (state, latents [stages, B, F, h, w, C]); the last stage's
      latents are those of the block that leaves.

    Raises:
      ValueError: as `check.stages`.
    """
    stages = mesh.shape[STAGE]
    check.stages(stages, cfg)
    sharded = jax.shard_map(
        functools.partial(_tick, stages=stages, cfg=cfg),
        mesh=mesh,
        in_specs=(_EVERYWHERE, _LOCAL, _EVERYWHERE),
        out_specs=(_LOCAL, _LOCAL),
        axis_names={STAGE},
        check_vma=False,
    )

    def tick(p: dict, state: PipelineState, entering: BlockInput) -> tuple[PipelineState, jax.Array]:
        state, latents = sharded(p, state, entering)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh)), latents

    return rollout.make_program(tick, "block", donate_argnums=1)


@functools.lru_cache(maxsize=8)
def make_change(cfg: Config, mesh: Mesh):
    """Changes the scene of some stages, state donated: (weights, state, held, cross, bool [stages]) -> state.

    `held`: from `rollout.prefill`.
    """

    def change(p: dict, state: PipelineState, held: Any, cross: Any, where: jax.Array) -> PipelineState:
        state = jax.shard_map(
            functools.partial(_change, p=p),
            mesh=mesh,
            in_specs=(_LOCAL, _EVERYWHERE, _EVERYWHERE, _LOCAL),
            out_specs=_LOCAL,
            axis_names={STAGE},
            check_vma=False,
        )(state, held, cross, where)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh))

    return jax.jit(change, donate_argnums=1)


def start(p: dict, memory: Any, cross: Any, entering: BlockInput, *, mesh: Mesh, cfg: Config) -> PipelineState:
    """The state before tick 0: every stage with the same memory, and no block.

    Args:
      p: weights of the transformer.
      memory: of the scene alone, from `rollout.start`.
      cross: the prompt, or None.
      entering: a block of the stream, for its shapes.
      mesh: with a stage axis.
      cfg: the run.
    """
    stages = mesh.shape[STAGE]

    def everywhere(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf, (stages, *leaf.shape))

    flight = jax.eval_shape(functools.partial(rollout.enter, cfg=cfg), p, entering)
    nothing = jax.tree.map(lambda leaf: np.zeros((stages, *leaf.shape), leaf.dtype), flight)
    memories = tuple(jax.tree.map(everywhere, memory) for _ in range(check.stages(stages, cfg)))
    state = PipelineState(memories, nothing, jax.tree.map(everywhere, cross))
    return jax.device_put(state, shardings(state, mesh))


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """A tree on every device of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, _EVERYWHERE))


def leaving(latents: jax.Array) -> jax.Array:
    """The last stage's latents [B, F, h, w, C] of a tick's [stages, B, F, h, w, C], where they are: nothing moves."""
    last = max(latents.addressable_shards, key=lambda shard: (shard.index[0].start or 0, shard.device.id))
    return last.data[-1]
