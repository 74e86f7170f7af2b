"""Weights from one declaration: stable draws, loud gaps."""

import jax
import numpy as np
import pytest

from avatar_jax.core import spec, tree
from avatar_jax.core.spec import Leaf
from avatar_jax.io import weights as weight_files

LAYER = {"w": Leaf((8, 4), ("embed", "mlp")), "b": Leaf((4,), ("mlp",), "zeros")}


def test_flatten_round_trip():
    nested = {"b": {"y": 1, "x": 2}, "a": 3}
    assert tree.flatten(nested) == {"a": 3, "b/x": 2, "b/y": 1}
    assert tree.unflatten(tree.flatten(nested)) == nested


def test_a_new_leaf_moves_no_other():
    small = spec.init({"one": LAYER}, jax.random.key(0))
    large = spec.init({"one": LAYER, "two": LAYER}, jax.random.key(0))
    np.testing.assert_array_equal(small["one"]["w"], large["one"]["w"])
    assert not np.array_equal(large["one"]["w"], large["two"]["w"])


def test_stacking_keeps_the_fan_in():
    stacked = spec.stack({"w": Leaf((400, 100), ("embed", "mlp"))}, 3)
    assert stacked["w"].shape == (3, 400, 100) and stacked["w"].axes[0] == "layers"
    assert np.std(spec.init(stacked, jax.random.key(0))["w"]) == pytest.approx(400**-0.5, rel=0.02)


def test_check_names_every_gap():
    wrong = {"w": np.zeros((8, 5)), "extra": np.zeros(2)}
    with pytest.raises(ValueError, match=r"0 mapped, 1 missing, 1 unused, 1 of wrong shape.*missing b.*unused extra"):
        spec.check(LAYER, wrong)


def test_weight_files_round_trip(tmp_path):
    drawn = spec.init({"one": LAYER}, jax.random.key(0))
    weight_files.save(tmp_path / "w.safetensors", drawn)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    read = weight_files.load(tmp_path / "w.safetensors", {"one": LAYER})
    jax.tree.map(np.testing.assert_array_equal, drawn, read)


def test_weight_files_refuse_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no weights at"):
        weight_files.load(tmp_path / "none.safetensors", LAYER)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a tensor file at all")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        weight_files.load(broken, LAYER)


def test_a_larger_network_begins_as_the_smaller_one(tmp_path):
    """What the file lacks keeps its draw; inputs that it lacks count for nothing; outputs that it lacks are refused."""
    small = spec.init({"one": LAYER}, jax.random.key(0))
    weight_files.save(tmp_path / "small.safetensors", small)
    wide = {"w": Leaf((10, 4), ("embed", "mlp")), "b": LAYER["b"]}
    drawn = spec.init({"one": wide, "two": LAYER}, jax.random.key(1))
    begun = weight_files.into(drawn, tmp_path / "small.safetensors", wider=["one/w"])
    jax.tree.map(np.testing.assert_array_equal, begun["two"], drawn["two"])
    np.testing.assert_array_equal(begun["one"]["w"][:8], small["one"]["w"])
    assert not begun["one"]["w"][8:].any()
    grown = spec.init({"one": {"w": Leaf((8, 5), ("embed", "mlp")), "b": LAYER["b"]}}, jax.random.key(1))
    with pytest.raises(ValueError, match=r"small.safetensors: one/w is \(8, 4\), the configuration has \(8, 5\)"):
        weight_files.into(grown, tmp_path / "small.safetensors", wider=["one/w"])
    with pytest.raises(ValueError, match=r"one/w is \(8, 4\), the configuration has \(10, 4\)"):
        weight_files.into(drawn, tmp_path / "small.safetensors")


def test_initialisers_of_time_kernels():
    drawn = spec.init(
        {
            "newest": Leaf((3, 40, 30), (None, None, None), "newest"),
            "hold": Leaf((3, 1, 1, 4, 8), (None,) * 5, "hold"),
        },
        jax.random.key(0),
    )
    assert not drawn["newest"][:-1].any() and np.std(drawn["newest"][-1]) == pytest.approx(40**-0.5, rel=0.1)
    assert not drawn["hold"][:-1].any()
    np.testing.assert_array_equal(drawn["hold"][-1, 0, 0], np.tile(np.eye(4), 2))
