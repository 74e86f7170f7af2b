"""Training on many devices: what lies where.

The mesh has the axes data, fsdp and tensor (`config.train.mesh`). Batches are split over data and fsdp, weights, their
averages and the optimiser's state over fsdp and tensor; XLA partitions the step from that alone, and adds the gathers
of weights and the sums of gradients. Each process reads the rows of its own devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avatar_jax.core import axes
from avatar_jax.core.axes import DATA, FSDP
from avatar_jax.core.config import TrainMesh

RULES: axes.Rules = {axes.HEADS: axes.TENSOR, axes.MLP: axes.TENSOR, axes.EMBED: FSDP}


def make_mesh(cfg: TrainMesh, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run, its tensor devices neighbours, of the `devices` given or all there are.

    Raises:
      ValueError: more devices are wanted than there are, or not all that several processes have.
    """
    devices, several = jax.devices() if devices is None else devices, jax.process_count() > 1
    if cfg.devices > len(devices) or (several and cfg.devices != len(devices)):
        wanted = f"data x fsdp x tensor = {cfg.data} x {cfg.fsdp} x {cfg.tensor} = {cfg.devices}"
        raise ValueError(f"config.train.mesh: {wanted}, but there are {len(devices)} devices; make them equal")
    return axes.make_mesh(devices[: cfg.devices], {DATA: cfg.data, FSDP: cfg.fsdp, axes.TENSOR: cfg.tensor})


def everywhere(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices that share a batch."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def lying(state: Any, weights: Any, mesh: Mesh) -> Any:
    """Where each leaf of a state lies.

    A state holds trees of weights' form: the weights, averages, moments. A leaf whose path ends with a weight's, and
    that has its rank, lies as that weight does; any other is everywhere.

    Args:
      state: arrays or their shapes.
      weights: the shardings of the weights, by path.
      mesh: the devices.
    """
    known = {_names(path): where for path, where in jax.tree_util.tree_flatten_with_path(weights)[0]}

    def find(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        ends = (known[names[at:]] for at in range(len(names)) if names[at:] in known)
        return next((where for where in ends if len(where.spec) == leaf.ndim), everywhere(mesh))

    return jax.tree_util.tree_map_with_path(find, state)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def make_state(build: Callable[..., Any], weights: Any, mesh: Mesh, *given: Any) -> Any:
    """What `build(*given)` returns, each leaf made where it belongs: never whole on one device. See `lying`."""
    return jax.jit(build, out_shardings=lying(jax.eval_shape(build, *given), weights, mesh))(*given)


def make_step(step: Callable, state: Any, mesh: Mesh) -> Callable:
    """`step(state, batch, key, ...) -> (state, scalars)`, compiled: the state given up and back where it was.

    Kernels that XLA does not partition find the mesh while the step is traced.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, state)

    def placed(*given: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(*given)

    return jax.jit(placed, out_shardings=(where, everywhere(mesh)), donate_argnums=0)


def spread(batch: Any, mesh: Mesh | None) -> Any:
    """This process' rows of a batch, as part of the whole batch on the mesh."""
    if mesh is None:
        return batch
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows(mesh), np.asarray(leaf)), batch)


def copied(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process has alike, whole on every device."""

    def copy(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, everywhere(mesh), lambda index: leaf[index])

    return jax.tree.map(copy, tree)


def whole(tree: Any) -> Any:
    """Arrays gathered from all devices to every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(np.asarray, tree)


class Share(NamedTuple):
    """Which part of every batch this process reads: number `index` of `count` equal ones."""

    index: int
    count: int

    def of(self, parts: grain.MapDataset) -> grain.MapDataset:
        """This process' parts of a dataset whose batches are one part each."""
        return parts if self.count == 1 else parts[self.index :: self.count]


def share(batch: int, mesh: Mesh) -> Share:
    """The part of a batch that this process' devices need."""
    held = rows(mesh).addressable_devices_indices_map((batch,)).values()
    spans = [index[0].indices(batch)[:2] for index in held if index]
    first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
    return Share(first // (last - first), batch // (last - first))
