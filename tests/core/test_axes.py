"""Rules from logical axes to a mesh."""

import jax
import pytest
from jax.sharding import PartitionSpec

from avatar_jax.core import axes
from avatar_jax.core.spec import Leaf

SPEC = {
    "q": Leaf((2, 8, 6), ("layers", "embed", "heads")),
    "out": {"w": Leaf((4, 8), ("mlp", "embed")), "b": Leaf((8,), ("embed",))},
}


def mesh_of(count: int):
    return axes.make_mesh(jax.devices()[:count], {axes.TENSOR: count})


def test_names_become_mesh_axes():
    laid = axes.shardings(SPEC, axes.TENSOR_PARALLEL, mesh_of(2))
    assert laid["q"].spec == PartitionSpec(None, None, "tensor")
    assert laid["out"]["w"].spec == PartitionSpec("tensor", None)
    assert laid["out"]["b"].is_fully_replicated


def test_what_does_not_split_is_named():
    with pytest.raises(ValueError, match=r"q: 6 does not split over 4 devices of 'tensor'"):
        axes.shardings(SPEC, axes.TENSOR_PARALLEL, mesh_of(4))


def test_two_dimensions_cannot_share_a_mesh_axis():
    with pytest.raises(ValueError, match="fall on one mesh axis twice"):
        axes.shardings(SPEC, {"heads": "tensor", "embed": "tensor"}, mesh_of(2))


def test_a_mesh_needs_its_devices():
    with pytest.raises(ValueError, match="3 devices given, 4 needed"):
        axes.make_mesh(jax.devices()[:3], {"stage": 2, axes.TENSOR: 2})
