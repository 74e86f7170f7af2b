"""Readers and tables of published weights: what they take, what they refuse, and in which words."""

import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from avatar_jax.core import published
from avatar_jax.core.spec import Leaf
from avatar_jax.io.convert import table, wan
from avatar_jax.io.convert.lora import Merged
from avatar_jax.io.convert.published import Pth, Tensors, open_published
from avatar_jax.io.errors import InputError
from tests.io import torch_files


def test_pth_is_read_without_torch(tmp_path):
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.full(1, 7.0, np.float32)}
    torch_files.write(tmp_path / "model.pth", arrays)
    published = open_published(tmp_path / "model.pth")
    assert published.names() == set(arrays)
    for name, array in arrays.items():
        assert published.shape(name) == array.shape
        np.testing.assert_array_equal(published.read(name), array)


def test_a_transposed_pth_tensor_keeps_its_strides(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    torch_files.write(tmp_path / "model.pth", {"w": array})
    np.testing.assert_array_equal(Pth(tmp_path / "model.pth").read("w"), array)


def test_a_malicious_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "owned",))

    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as file:
        file.writestr("evil/data.pkl", pickle.dumps({"w": Evil()}))
    with pytest.raises(InputError, match=r"evil\.pth: refused: it names pathlib"):
        open_published(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), keep=st.integers(0, 400))
def test_garbage_is_one_line(tmp_path, data: bytes, keep: int):
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            open_published(tmp_path / name)
    save_file({"w": np.zeros((8, 8), np.float32)}, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: min(keep, len(whole) - 1)])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        open_published(tmp_path / "cut.safetensors")


def test_shards_by_index(tmp_path):
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "m-00001-of-00002.safetensors")
    save_file({"b": np.full(1, 2.0, np.float32)}, tmp_path / "m-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    published = open_published(tmp_path)
    assert {name: published.read(name).tolist() for name in published.names()} == {"a": [1.0], "b": [2.0]}
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00002\.safetensors: no such file"):
        open_published(tmp_path)
    (tmp_path / "m.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="not an index of shards"):
        open_published(tmp_path)


SPEC = {"w": Leaf((2, 3, 4), (None, None, None)), "b": Leaf((3,), (None,))}
TABLE = {"w": table.Source("layers.{}.weight", table.linear), "b": table.Source("bias")}


def _weights() -> dict[str, np.ndarray]:
    layers = {f"layers.{i}.weight": np.random.default_rng(i).random((4, 3), np.float32) for i in range(2)}
    return layers | {"bias": np.zeros(3, np.float32)}


def test_layers_are_stacked_and_transposed():
    weights = _weights()
    loaded = table.load(TABLE, SPEC, Tensors(weights), origin="file")
    np.testing.assert_array_equal(loaded["w"][1], weights["layers.1.weight"].T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layers.1.weight"), "1 missing.*missing layers.1.weight"),
        (lambda w: w.update(stranger=np.zeros(1)), "1 unused.*unused stranger"),
        (lambda w: w.update({"layers.0.weight": w["layers.0.weight"].T}), r"wrong shape: layers.0.weight \(3, 4\)"),
        (lambda w: w.update({"layers.0.weight": np.zeros(())}), r"wrong shape: layers.0.weight \(\)"),
    ],
)
def test_a_gap_is_named(change, message: str):
    weights = _weights()
    change(weights)
    with pytest.raises(InputError, match=f"^file: does not fit .*{message}"):
        table.load(TABLE, SPEC, Tensors(weights), origin="file")


def _lora(outputs: int = 4, module: str = "layers.0") -> dict[str, np.ndarray]:
    return {
        f"{module}.lora_A.weight": np.ones((2, 3), np.float32),
        f"{module}.lora_B.weight": np.ones((outputs, 2), np.float32),
    }


def test_lora_is_merged_where_it_adapts():
    weights = _weights()
    merged = Merged(Tensors(weights), Tensors(_lora()), alpha=1.0)
    np.testing.assert_array_equal(merged.read("layers.0.weight"), weights["layers.0.weight"] + 1.0)
    np.testing.assert_array_equal(merged.read("layers.1.weight"), weights["layers.1.weight"])


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (_lora(module="other"), "for another model: it adapts 1 tensors not there: other.weight"),
        (_lora(outputs=5), r"for another model: layers.0 \(5, 3\) where it has \(4, 3\)"),
        ({"layers.0.lora_A.weight": np.ones((2, 3))}, "only one half of layers.0"),
        ({"stranger.bias": np.ones(2)}, "not there: stranger.bias"),
    ],
)
def test_a_lora_for_another_model_is_refused(lora: dict, message: str):
    with pytest.raises(InputError, match=message):
        Merged(Tensors(_weights()), Tensors(lora), alpha=1.0)


@pytest.mark.parametrize("name", ["t2v_1b3", "t2v_14b", "s2v_14b"])
def test_the_published_geometry_is_the_published_files(name: str):
    """`core/published.py` says what a `config.json` of that model becomes."""
    read = wan.dit_config(wan.PUBLISHED[name], Tensors({}), layer_loop="unroll", compute_dtype="bfloat16")
    assert read == getattr(published, name.upper())
