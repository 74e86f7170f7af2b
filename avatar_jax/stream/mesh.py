"""The mesh of a pool: rows of streams, stages of a row, bands and heads inside a stage; and what lies where on it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avatar_jax.core import axes
from avatar_jax.core.config import Config
from avatar_jax.stream.state import BlockInput

DATA, STAGE, CONTEXT = "data", "stage", "context"


def make_mesh(devices: Sequence[Any], *, stages: int, data: int = 1, context: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of data rows, each of stages, each of context x tensor devices, the tensor ones neighbours.

    Raises:
      ValueError: as `axes.make_mesh`.
    """
    return axes.make_mesh(devices, {DATA: data, STAGE: stages, CONTEXT: context, axes.TENSOR: tensor})


def make_mesh_of(devices: Sequence[Any], cfg: Config) -> Mesh:
    """`make_mesh` of a run."""
    shape = cfg.mesh
    return make_mesh(devices, stages=shape.stages, data=shape.data, context=shape.context, tensor=shape.tensor)


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """A tree on every device of a mesh."""
    return jax.tree.map(lambda leaf: axes.lay(leaf, NamedSharding(mesh, PartitionSpec())), tree)


@functools.lru_cache(maxsize=8)
def make_share(mesh: Mesh):
    """(a tick's latents, stream) -> the stream's [1, F, h, w, C], on every device of the mesh."""

    def share(latents: jax.Array, stream: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(latents[0], stream, 1)

    return jax.jit(share, out_shardings=NamedSharding(mesh, PartitionSpec()))


@functools.lru_cache(maxsize=1)
def make_row():
    """Blocks of streams as one, with a leading axis for its stage."""
    return jax.jit(lambda *blocks: jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[None], *blocks))


def nothing(block: BlockInput, streams: int, mesh: Mesh) -> dict[Any, BlockInput]:
    """What enters at the stages beyond the first, [1, streams, ...], on every device of this process that has one."""
    zeros = jax.tree.map(lambda leaf: np.zeros((1, streams * len(leaf), *leaf.shape[1:]), leaf.dtype), block)
    return {device: jax.device_put(zeros, device) for device in mesh.devices[:, 1:].flat if is_here(device)}


def enter(rows: list[list[BlockInput]], beyond: dict[Any, BlockInput], mesh: Mesh) -> BlockInput:
    """What a tick takes, [stages, streams, ...], of the blocks of every row, and of `nothing`.

    Only the first stage's entry holds them, so each process lays down the blocks of the rows that begin on it.
    """
    where, parts = axes.over(mesh, STAGE, DATA), []
    for row, stage in np.ndindex(mesh.devices.shape[:2]):
        for device in filter(is_here, mesh.devices[row, stage].flat):
            parts.append(beyond[device] if stage else make_row()(*jax.device_put(rows[row], device)))

    def whole(*leaves: jax.Array) -> jax.Array:
        _, streams, *rest = leaves[0].shape
        shape = (mesh.shape[STAGE], mesh.shape[DATA] * streams, *rest)
        return jax.make_array_from_single_device_arrays(shape, where, list(leaves))

    return jax.tree.map(whole, *parts)


def is_here(device: Any) -> bool:
    """Whether a device is one of this process."""
    return device.process_index == jax.process_index()


def at_home(latents: jax.Array, mesh: Mesh) -> list[jax.Array | None]:
    """Every row's part [1, B, F, h, w, C] of a tick's latents, where blocks come home; None on another process."""
    parts = {shard.device: shard.data for shard in latents.addressable_shards}
    return [parts.get(device) for device in mesh.devices[:, 0, 0, 0]]
