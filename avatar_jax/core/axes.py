"""Logical axis names of weights, and the rules that lay them on a mesh.

Specs name every dimension of a weight (`Leaf.axes`); a rule says which mesh axis such a name is split over, and
everything else is replicated. Networks never see any of it: programs are partitioned from the shardings of their
arguments.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from avatar_jax.core.spec import Leaf, Spec

TENSOR = "tensor"  # the mesh axis that splits one layer's work
DATA, FSDP = "data", "fsdp"  # the mesh axes that split a training batch; the second one splits weights too
LAYERS, EMBED, HEADS, MLP = "layers", "embed", "heads", "mlp"
Rules = Mapping[str, str]  # logical name -> mesh axis

# Heads and the feed-forward's inner width are split, so a layer sums over devices twice for self-attention and once
# each for cross-attention and the feed-forward; the residual stream is whole on every device.
TENSOR_PARALLEL: Rules = {HEADS: TENSOR, MLP: TENSOR}


def make_mesh(devices: Sequence[Any], shape: Mapping[str, int]) -> Mesh:
    """A mesh over `devices` with named axes, partitioned automatically.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    if math.prod(shape.values()) != len(devices):
        raise ValueError(f"mesh {dict(shape)}: {len(devices)} devices given, {math.prod(shape.values())} needed")
    grid = np.asarray(devices, dtype=object).reshape(tuple(shape.values()))
    return Mesh(grid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def over(mesh: Mesh, *names: str | None) -> NamedSharding:
    """An array split over mesh axes, one name or None a dimension, as XLA itself would write it down.

    Axes of one device split nothing and are left out, so that what a program returns is what it takes.
    """
    told = [name if name and mesh.shape[name] > 1 else None for name in names]
    while told and told[-1] is None:
        told.pop()
    return NamedSharding(mesh, PartitionSpec(*told))


def partition(leaf: Leaf, rules: Rules, mesh: Mesh, path: str = "a weight") -> PartitionSpec:
    """How one leaf lies on the mesh.

    Raises:
      ValueError: two dimensions of the leaf fall on one mesh axis, or a dimension does not divide by it.
    """
    names = [rules.get(name) if name else None for name in leaf.axes]
    used = [name for name in names if name]
    if len(used) != len(set(used)):
        raise ValueError(f"{path}: axes {leaf.axes} fall on one mesh axis twice under {dict(rules)}")
    for size, name in zip(leaf.shape, names, strict=True):
        if name and size % mesh.shape[name]:
            raise ValueError(f"{path}: {size} does not split over {mesh.shape[name]} devices of {name!r}")
    return PartitionSpec(*names)


def shardings(spec: Spec, rules: Rules, mesh: Mesh) -> dict[str, Any]:
    """The sharding of every weight of `spec`; raises ValueError as `partition`, naming the weight."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, partition(leaf, rules, mesh, jax.tree_util.keystr(path, simple=True, separator="/"))
        ),
        dict(spec),
        is_leaf=lambda leaf: isinstance(leaf, Leaf),
    )


def lay(leaf: Any, where: NamedSharding) -> jax.Array:
    """An array on the devices of `where`; of a mesh over several processes, each lays what its own devices hold."""
    if where.is_fully_addressable or getattr(leaf, "sharding", None) == where:
        return jax.device_put(leaf, where)
    return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])


def one_layer(tree: Any) -> Any:
    """How one layer lies, of shardings of stacked layers."""
    return jax.tree.map(lambda stacked: NamedSharding(stacked.mesh, PartitionSpec(*stacked.spec[1:])), tree)


def traced(batch: int) -> tuple[tuple[str, ...] | None, str | None]:
    """Axes of the mesh that is told while a program is traced (`jax.sharding.use_abstract_mesh`).

    Returns:
      those that `batch` rows are split over, if they divide, and the tensor axis; None where there is none.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None, None
    free = [name for name in mesh.axis_names if name not in mesh.manual_axes and mesh.shape[name] > 1]
    over = tuple(name for name in (DATA, FSDP) if name in free)
    rows = over if over and batch % math.prod(mesh.shape[name] for name in over) == 0 else None
    return rows, TENSOR if TENSOR in free else None


def spread_tokens(x: jax.Array) -> jax.Array:
    """The stream between two layers [B, S, D] with its tokens split over the tensor axis (sequence parallelism).

    What training keeps of every layer is then a part on each device. Where no mesh is told it stays as it is.
    """
    mesh, (rows, tensor) = jax.sharding.get_abstract_mesh(), traced(len(x))
    if tensor is None or mesh.manual_axes or x.shape[1] % mesh.shape[tensor]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, tensor, None))
