"""Published weights: every golden case through the real converter, and what holds them to the full-size files.

Golden cases are read from the folder in GOLDEN_DIR (default: tests/golden), whatever cases it holds.
"""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from avatar_jax.core import spec as specs
from avatar_jax.core import tree
from avatar_jax.core.published import UMT5_XXL
from avatar_jax.io.convert import table, wan, wan_vae
from avatar_jax.io.convert.published import Tensors
from avatar_jax.models import condition, dit, umt5, vae
from avatar_jax.nn import rope
from tests.acceptance import absent, report
from tests.published import live_avatar
from tests.published.case import Case
from tests.published.folder import shapes
from tests.published.kinds import KINDS, kind_of
from tests.published.s2v import voice_of

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(os.environ.get("GOLDEN_DIR", ROOT / "tests" / "golden"))
row = functools.partial(report.row, "weights")

CASES = sorted(path.parent for path in GOLDEN.glob("*/case.json"))


@pytest.mark.parametrize("folder", CASES, ids=lambda path: path.name)
def test_golden(folder: pathlib.Path):
    run, _ = KINDS[kind_of(folder)]
    worst = run(Case(folder))
    name, figure = max(worst.items(), key=lambda item: item[1])
    bar = "at most 1 of the case's tolerance"
    assert row(f"golden {folder.name}", f"{figure:.3f} ({name}; {len(worst)} tensors)", bar, figure <= 1.0)


@pytest.mark.parametrize("folder", CASES, ids=lambda path: path.name)
def test_golden_control_fails(folder: pathlib.Path):
    run, nudged = KINDS[kind_of(folder)]
    assert max(run(Case(folder, nudged)).values()) > 1.0


def _tensors(sources: table.Table, spec: specs.Spec) -> int:
    return sum(len(sources[path].keys(leaf)) for path, leaf in tree.flatten(spec).items())


def test_full_size_counts():
    """live_avatar.md sections 0, 1.10 and 14; the LoRA adapts q, k, v, o and both feed-forward matrices, rank 128."""
    speech = wan.dit_config(wan.PUBLISHED["s2v_14b"], Tensors({}), layer_loop="scan", compute_dtype="bfloat16")
    spec = dit.spec(speech)
    shapes = tree.flatten(spec)
    adapted = [
        path for path in shapes if path.startswith(("blocks/", "audio/injectors/attention")) and path.endswith("/w")
    ]
    rank = sum(128 * sum(shapes[path].shape[1:]) * shapes[path].shape[0] for path in adapted)
    autoencoder = wan_vae.config(Tensors({}))
    held = wan_vae.spec(autoencoder)
    found = {
        "S2V-14B parameters": specs.count(spec),
        "S2V-14B tensors": _tensors(wan.table(speech), spec),
        "LoRA parameters": rank,
        "LoRA tensors": 2 * sum(shapes[path].shape[0] for path in adapted),
        "VAE parameters": specs.count(held),
        "VAE tensors": _tensors(wan_vae.table(autoencoder), held),
    }
    promised = dict(zip(found, (16_295_755_609, 1260, 676_331_520, 896, 126_892_531, 194), strict=True))
    text = specs.count(umt5.spec(UMT5_XXL))
    wrong = {name: count for name, count in found.items() if count != promised[name]}
    figure = f"{len(found) - len(wrong)} of {len(found)} exact{wrong or ''}; UMT5 {text / 1e9:.3f} B"
    met = not wrong and f"{text / 1e9:.3f}" == "5.681"
    assert row("full-size parameter counts", figure, "exactly the published ones; UMT5 5.681 B", met)


def test_positions_beyond_the_published_table():
    """The published table ends at position 45,000; block 20,000 starts at latent 60,000."""
    folder = ROOT / "tests" / "golden" / "liveavatar_causal_block"
    early, late = (_blocks_from(Case(folder), first) for first in (20, 20_000))
    error = float(np.abs(late - early).max() / np.abs(early).max())
    bar = "at most 1e-5, relative, through a wrapped ring"
    assert row("block 20,000 against block 20", f"{error:.1e}", bar, error <= 1e-5)


def _blocks_from(case: Case, first: int) -> np.ndarray:
    """Velocities of six blocks of a stream whose ring and clock start at block `first`."""
    io, length = case.tensors("single_online"), case.about["pipeline"]["num_frames_per_block"]
    stream = live_avatar.Stream(case, io["context"], memories=1, window=4)
    stream.prefill(io["prefill0.ref_latents"], io["prefill0.motion_latents"])
    # Motion stands at fixed negative times, so only what rolls with the stream can be compared: motion rolls here too.
    motion = condition.motion_phase((4, 4), (8, 8), stream.cfg)
    grid = {"head_size": stream.cfg.head_size, "theta": stream.cfg.rope_theta}
    turn = rope.phase_at(np.array([3 * first]), np.zeros(1), np.zeros(1), **grid)
    stream.motion_at = rope.Phase(
        motion.cos * turn.cos - motion.sin * turn.sin, motion.sin * turn.cos + motion.cos * turn.sin
    )
    flows = []
    for block in range(6):
        x = io["noise"].reshape(-1, *io["noise"].shape[1:])[block % 3][:, :length]
        sound = io["audio"][..., 12 * block : 12 * (block + 1)]
        voices = (voice_of(stream.p, sound, stream.cfg),)
        pose = io["cond_states"][0][:, :length]
        flows.append(stream.step(x, 0, 600.0, first + block, 30, voices, pose, filled=block))
    return np.stack(flows)


def test_streaming_vae_at_the_published_geometry():
    cfg = wan_vae.config(Tensors({}))
    p = specs.init(vae.spec(cfg), jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (1, 13, 4, 4, cfg.latent_channels))
    traces = []

    @jax.jit
    def step(tail, z):
        traces.append(z.shape)
        return vae.decode_step(p, tail, z, cfg=cfg)

    frame, tail = vae.decode_first(p, z[:, :1], cfg=cfg)
    frames = [frame]
    for block in range(4):
        out, tail = step(tail, z[:, 1 + 3 * block : 4 + 3 * block])
        frames.append(out)
    whole = vae.decode(p, z, cfg=cfg)
    error = float(jnp.abs(jnp.concatenate(frames, 1) - whole).max())
    figure = f"{error:.1e}, {len(traces)} trace for {len(frames) - 1} blocks"
    bar = "at most 1e-5 of one shot, one trace after the first latent"
    assert row("streaming VAE, published geometry", figure, bar, error <= 1e-5 and len(traces) == 1)


LARGE = {**wan.PUBLISHED["t2v_1b3"], "dim": 3072, "num_heads": 24, "num_layers": 24, "ffn_dim": 14336, "text_dim": 4096}
# Runs the command and says its peak memory, in KiB, on the last line: its own, which getrusage mixes with its parent's.
MEASURED = """
import pathlib, re, runpy
try:
    runpy.run_module("infer.convert", run_name="__main__")
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


def _large(folder: pathlib.Path) -> int:
    """Writes a float16 transformer of 8 GB in shards, as published; returns its bytes."""
    cfg = wan.dit_config(LARGE, Tensors({}), layer_loop="scan")
    rng, shards, where, total = np.random.default_rng(0), [{}], {}, 0
    folder.mkdir()
    for key, shape, _ in shapes(dit.spec(cfg), wan.table(cfg)):
        shards[-1][key] = rng.integers(0, 1 << 14, shape, np.uint16).view(np.float16)
        where[key] = f"model-{len(shards):05d}.safetensors"
        total += shards[-1][key].nbytes
        if sum(value.nbytes for value in shards[-1].values()) > 1e9:
            save_file(shards[-1], folder / where[key])
            shards[-1].clear()
            shards.append({})
    save_file(shards[-1], folder / f"model-{len(shards):05d}.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(LARGE))
    return total


def _command(source: pathlib.Path, output: pathlib.Path, *more: str) -> dict:
    arguments = [sys.executable, "-c", MEASURED, f"--source={source}", f"--output={output}", *more]
    return {"args": arguments, "cwd": ROOT, "env": os.environ | {"JAX_PLATFORMS": "cpu"}}


def _convert(source: pathlib.Path, output: pathlib.Path, *more: str) -> int:
    """Peak KiB of a conversion."""
    done = subprocess.run(**_command(source, output, *more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def _killed(source: pathlib.Path, output: pathlib.Path, arrays: int) -> int:
    """Kills a conversion that has written so many arrays, on its way; returns how many are kept."""
    note = output / "dit.partial" / "progress.json"
    with subprocess.Popen(**_command(source, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and not (note.is_file() and len(json.loads(note.read_text())["done"]) >= arrays):
            time.sleep(0.2)
        assert running.poll() is None, "it ended before it was killed"
        running.kill()
    return len(json.loads(note.read_text())["done"])


def test_conversion_of_8_gb(tmp_path):
    """Converts twice, once killed on the way: the same bytes, and memory that does not follow the size."""
    size = _large(tmp_path / "published")
    straight = _convert(tmp_path / "published", tmp_path / "one")
    left = _killed(tmp_path / "published", tmp_path / "two", arrays=5)
    resumed = _convert(tmp_path / "published", tmp_path / "two")
    same = subprocess.run(["diff", "-rq", tmp_path / "one", tmp_path / "two"], capture_output=True).returncode == 0
    peak = max(straight, resumed) / 1024**2
    kept = f"{left} arrays kept after a kill, {'' if same else 'not '}equal"
    figure = f"{size / 1e9:.1f} GB: peak {peak:.2f} GiB, {kept}"
    eighth = _convert(tmp_path / "published", tmp_path / "fp8", "--quantise=fp8")
    written = sum(path.stat().st_size for path in (tmp_path / "fp8").rglob("*") if path.is_file())
    shutil.rmtree(tmp_path)
    small = eighth / 1024**2 < 2.79 and written < 0.55 * size
    figure_fp8 = f"{written / 1e9:.1f} GB written, peak {eighth / 1024**2:.2f} GiB"
    assert row("the same quantised to fp8", figure_fp8, "half the size, under 3 GB", small)
    assert row(
        "conversion of a sharded 8 GB checkpoint", figure, "under 3 GB, resumable, equal twice", peak < 2.79 and same
    )


def test_against_the_libraries(tmp_path):
    """diffusers and transformers in an environment of their own; every row of tests/parity, and no other."""
    page, bar = tmp_path / "parity.md", "relative 1e-4, in `make parity`, which installs them itself"
    environment = os.environ | {"AVATAR_ACCEPTANCE_WRITE": str(page)}
    done = subprocess.run(["make", "parity"], cwd=ROOT, env=environment, capture_output=True, text=True)
    rows = report.parse(page.read_text()).get("parity", {}) if page.is_file() else {}
    figure = "; ".join(f"{name} {found.figure.split()[0]}" for name, found in rows.items()) or done.stderr[-200:]
    libraries = {"diffusers' Wan transformer", "diffusers' Wan VAE", "transformers' UMT5", "transformers' Wav2Vec2"}
    met = done.returncode == 0 and set(rows) == libraries and all(found.met == "yes" for found in rows.values())
    what = "against libraries live (random weights, three seeds): diffusers' Wan transformer and VAE, "
    assert row(f"{what}transformers' UMT5 and Wav2Vec2", figure, bar, met), done.stdout[-2000:]


@pytest.mark.parametrize("name", ["h200", "v5p", "v6e", "v5e"])
def test_compile_for_absent_devices(name: str, tmp_path):
    """Every program of S2V-14B, on the fewest devices that it fits; docs/meshes.md holds the table."""
    done, reports = absent.compile_for(name, tmp_path / "report.json")
    fits = [f"{r['program']} {r['gates']['fits'][0]} on {r['devices']}" for r in reports]
    broken = [f"{r['program']} {gate}" for r in reports for gate, (_, held) in r["gates"].items() if not held]
    figure = f"{'; '.join(fits)}{'; broken: ' + ', '.join(broken) if broken else ''}"
    gates = "fits, G1 to G4, G6 and G7 hold" if name == "h200" else "fits, G7 holds"
    assert row(f"compile S2V-14B for {name}", figure, gates, done and not broken)
