"""The converter's command: a published folder to a checkpoint that loads, resumes and repeats."""

import filecmp
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from avatar_jax.core import tree
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


def test_a_stopped_run_goes_on(tmp_path: pathlib.Path):
    tensors = Tensors(
        {f"layers.{i}.w": np.full((2, 3), i, np.float32) for i in range(3)} | {"b": np.ones(3, np.float32)}
    )
    from avatar_jax.core.spec import Leaf

    spec = {"b": Leaf((3,), (None,)), "w": Leaf((3, 3, 2), (None, None, None))}
    sources = {"w": table.Source("layers.{}.w", table.linear), "b": table.Source("b")}
    read = []

    class Failing(Tensors):
        def read(self, key: str) -> np.ndarray:
            read.append(key)
            if key == "layers.1.w" and len(read) < 4:
                raise KeyboardInterrupt
            return super().read(key)

    failing = Failing(tensors._tensors)
    with pytest.raises(KeyboardInterrupt):
        store.write(tmp_path / "out", spec, sources, failing, origin={"a": 1})
    assert not (tmp_path / "out").exists()
    store.write(tmp_path / "out", spec, sources, failing, origin={"a": 1})
    assert read.count("b") == 1  # not read again
    np.testing.assert_array_equal(store.load(tmp_path / "out", spec)["w"][2], np.full((3, 2), 2.0))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda folder: (folder / INDEX.replace(".safetensors.index.json", "-00002-of-00002.safetensors")).unlink(),
            "no such file",
        ),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: 'model_type' is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not a readable JSON file"),
        (shutil.rmtree, "no such folder"),
    ],
    ids=["shard", "config", "json", "folder"],
)
def test_bad_input_is_one_line(published: pathlib.Path, tmp_path: pathlib.Path, harm, words: str):
    harm(published)
    done = convert(f"--source={published}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
