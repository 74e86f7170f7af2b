"""Checkpoints restored to devices, and what is refused before a byte is read."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding

from avatar_jax.core import quant
from avatar_jax.core.spec import Leaf
from avatar_jax.io.convert import store, table
from avatar_jax.io.convert.published import Tensors
from avatar_jax.io.errors import InputError

SPEC = {"b": Leaf((8,), (None,)), "blocks": {"w": Leaf((3, 16, 8), (None, None, None))}}
SOURCES = {"blocks/w": table.Source("layers.{}.w", table.linear), "b": table.Source("b")}
FORMS = {"stored": store.STORED, "fp8": store.Form(quantise="fp8"), "int8": store.Form(quantise="int8")}


@pytest.fixture(params=FORMS)
def checkpoint(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> pathlib.Path:
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.w": rng.normal(size=(8, 16)).astype(np.float32) for i in range(3)}
    tensors["b"] = rng.normal(size=8).astype(np.float32)
    store.write(tmp_path / "out", SPEC, SOURCES, Tensors(tensors), origin={}, form=FORMS[request.param])
    return tmp_path / "out"


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("fsdp", "tensor"))


def test_every_device_gets_its_part(checkpoint: pathlib.Path, mesh: jax.sharding.Mesh):
    places = {
        "b": NamedSharding(mesh, jax.P("tensor")),
        "blocks": {"w": NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))},
    }
    whole, found = store.load(checkpoint, SPEC), store.load(checkpoint, SPEC, places)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    assert jax.tree.structure(found) == jax.tree.structure(whole)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(whole))
    w = found["blocks"]["w"]
    if isinstance(w, quant.QTensor):  # [out, in]
        assert {part.data.shape for part in w.value.addressable_shards} == {(3, 2, 8)}
        parts = {(3, 2)} if w.dtype == np.int8 else {(3,)}
        assert {part.data.shape for part in w.scale.addressable_shards} == parts
        assert w.value.sharding.spec == jax.P(None, "tensor", "fsdp")
    else:
        assert w.sharding == places["blocks"]["w"]
        assert {part.data.shape for part in w.addressable_shards} == {(3, 8, 2)}
    assert len(found["b"].addressable_shards) == 8 and found["b"].sharding == places["b"]


def test_one_device(checkpoint: pathlib.Path):
    last = SingleDeviceSharding(jax.devices()[-1])
    found = store.load(checkpoint, SPEC, {"b": last, "blocks": {"w": last}})
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {last}


def test_shardings_that_do_not_fit(checkpoint: pathlib.Path, mesh: jax.sharding.Mesh):
    whole = NamedSharding(mesh, jax.P())
    with pytest.raises(ValueError, match="1 do not match: blocks/w"):
        store.load(checkpoint, SPEC, {"b": whole})
    with pytest.raises(ValueError, match=r"shardings: blocks/w.*divi"):
        store.load(checkpoint, SPEC, {"b": whole, "blocks": {"w": NamedSharding(mesh, jax.P("tensor"))}})


def test_another_configuration_is_refused(checkpoint: pathlib.Path):
    with pytest.raises(InputError, match=r"1 missing, 0 unused.*missing c"):
        store.load(checkpoint, SPEC | {"c": SPEC["b"]})
    with pytest.raises(InputError, match="1 of wrong shape"):
        store.load(checkpoint, SPEC | {"b": Leaf((9,), (None,))})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "_METADATA").write_text("{"), r"cannot be read \(\w+\); convert it again"),
        (lambda folder: shutil.rmtree(folder / "b"), "1 missing.*missing b"),
        (lambda folder: (folder / "b" / ".zarray").write_text("{"), r"b/.zarray: cannot be read"),
        (lambda folder: (folder / "b" / ".zarray").write_text("{}"), r"b/.zarray: cannot be read \(KeyError"),
    ],
    ids=["structure", "array", "header", "empty"],
)
def test_a_damaged_checkpoint_is_one_line(checkpoint: pathlib.Path, harm, words: str):
    harm(checkpoint)
    with pytest.raises(InputError, match=words) as caught:
        store.load(checkpoint, SPEC)
    assert "\n" not in str(caught.value)


def test_no_checkpoint(tmp_path: pathlib.Path):
    with pytest.raises(InputError, match="no converted checkpoint"):
        store.load(tmp_path, SPEC)
