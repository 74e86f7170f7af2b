"""The converter's command: a published folder to a checkpoint that loads, resumes and repeats."""

import filecmp
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from avatar_jax.core import quant, tree
from avatar_jax.core.spec import Leaf
from avatar_jax.io.convert import store, table, wan
from avatar_jax.io.convert.published import Tensors
from avatar_jax.models import dit

ROOT = pathlib.Path(__file__).parents[2]
CASE = ROOT / "tests" / "golden" / "liveavatar_causal_block"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def published(tmp_path: pathlib.Path) -> pathlib.Path:
    """The golden transformer as it would be downloaded: two shards, an index, a configuration."""
    folder, weights = tmp_path / "published", load_file(CASE / "weights.safetensors")
    folder.mkdir()
    names = sorted(weights)
    where = {
        name: f"diffusion_pytorch_model-0000{1 + 2 * i // len(names)}-of-00002.safetensors"
        for i, name in enumerate(names)
    }
    for file in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    shutil.copy(CASE / "case.json", folder / "config.json")
    (folder / "config.json").write_text(json.dumps(json.loads((CASE / "case.json").read_text())["config"]))
    return folder


def convert(*arguments: str) -> subprocess.CompletedProcess:
    """Runs the command."""
    command = [sys.executable, "-m", "infer.convert", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def test_a_folder_becomes_a_checkpoint(published: pathlib.Path, tmp_path: pathlib.Path):
    done = convert(f"--source={published}", f"--output={tmp_path / 'one'}")
    assert done.returncode == 0, done.stderr
    assert "dit: 168 mapped, 0 unused, 0 missing, 0 of wrong shape" in done.stdout
    tensors = Tensors(load_file(CASE / "weights.safetensors"))
    cfg = wan.dit_config(json.loads((published / "config.json").read_text()), tensors, layer_loop="scan")
    expected = tree.flatten(table.load(wan.table(cfg), dit.spec(cfg), tensors, origin="case"))
    found = tree.flatten(store.load(tmp_path / "one" / "dit", dit.spec(cfg)))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert convert(f"--source={published}", f"--output={tmp_path / 'two'}").returncode == 0
    assert equal(tmp_path / "one", tmp_path / "two")


def equal(one: pathlib.Path, two: pathlib.Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    files = [sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()) for root in (one, two)]
    return files[0] == files[1] and not any(filecmp.cmpfiles(one, two, map(str, files[0]), shallow=False)[1:])


@pytest.mark.parametrize(("kind", "stored"), [("fp8", "float8_e4m3fn"), ("int8", "int8")])
def test_a_quantised_checkpoint(published: pathlib.Path, tmp_path: pathlib.Path, kind: str, stored: str):
    """The bytes are those of the loaded weights quantised; nothing that the rule leaves out is touched."""
    for output in ("one", "two"):
        done = convert(f"--source={published}", f"--output={tmp_path / output}", f"--quantise={kind}")
        assert done.returncode == 0, done.stderr
    assert equal(tmp_path / "one", tmp_path / "two")
    tensors = Tensors(load_file(CASE / "weights.safetensors"))
    cfg = wan.dit_config(json.loads((published / "config.json").read_text()), tensors, layer_loop="scan")
    weights = table.load(wan.table(cfg), dit.spec(cfg), tensors, origin="case")
    found = tree.flatten(store.load(tmp_path / "one" / "dit", dit.spec(cfg)))
    for name, value in tree.flatten(weights).items():
        if quant.published(name):
            expected = quant.quantise(np.asarray(value), kind)
            assert found[name].dtype == stored
            np.testing.assert_array_equal(found[name].value, expected.value, err_msg=name)
            np.testing.assert_array_equal(found[name].scale, expected.scale, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    p = dit.lay_out(tree.unflatten(found), cfg)
    rows = dit.remember(p, jnp.ones((1, 3, cfg.text_width)), cfg=cfg)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))


@pytest.mark.parametrize("form", [store.STORED, store.Form(quantise="int8")], ids=["stored", "int8"])
def test_a_stopped_run_goes_on(tmp_path: pathlib.Path, form: store.Form):
    tensors = Tensors(
        {f"layers.{i}.w": np.full((2, 3), i, np.float32) for i in range(3)} | {"b": np.ones(3, np.float32)}
    )
    spec = {"b": Leaf((3,), (None,)), "blocks": {"w": Leaf((3, 3, 2), (None, None, None))}}
    sources = {"blocks/w": table.Source("layers.{}.w", table.linear), "b": table.Source("b")}
    read = []

    class Failing(Tensors):
        def read(self, key: str) -> np.ndarray:
            read.append(key)
            if key == "layers.1.w" and len(read) < 4:
                raise KeyboardInterrupt
            return super().read(key)

    failing = Failing(tensors._tensors)
    with pytest.raises(KeyboardInterrupt):
        store.write(tmp_path / "out", spec, sources, failing, origin={"a": 1}, form=form)
    assert not (tmp_path / "out").exists()
    store.write(tmp_path / "out", spec, sources, failing, origin={"a": 1}, form=form)
    assert read.count("b") == 1  # not read again
    w = store.load(tmp_path / "out", spec)["blocks"]["w"]
    if form.quantise:
        w = np.swapaxes(w.value * w.scale[..., None], -1, -2)
    np.testing.assert_allclose(w[2], np.full((3, 2), 2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda folder: (folder / INDEX.replace(".safetensors.index.json", "-00002-of-00002.safetensors")).unlink(),
            "no such file",
        ),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: 'model_type' is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not a readable JSON file"),
        (
            lambda folder: [path.unlink() for path in folder.glob("*.safetensors*")],
            "no published weights that are known",
        ),
        (shutil.rmtree, "no such folder"),
    ],
    ids=["shard", "config", "json", "empty", "folder"],
)
def test_bad_input_is_one_line(published: pathlib.Path, tmp_path: pathlib.Path, harm, words: str):
    harm(published)
    done = convert(f"--source={published}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
