"""Published folders, small: downloaded, converted, and run by the commands of the README."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from avatar_jax.io.video import read_video
from tests.published import folder, mini_live_avatar, mini_t2v

ROOT = pathlib.Path(__file__).parents[2]
RUNS = {"live_avatar": mini_live_avatar, "t2v": mini_t2v}
PROMPT = "--prompt=a woman talks to the camera"


def command(module: str, *arguments: str, devices: int = 1) -> subprocess.CompletedProcess[str]:
    virtual = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": virtual}
    line = [sys.executable, "-m", f"infer.{module}", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Both checkpoints, a portrait twice as wide as high and a recording of 0.7 seconds."""
    root = tmp_path_factory.mktemp("published")
    for name, module in RUNS.items():
        folder.write(root / f"{name}_downloaded", module.get_config())
        done = command("convert", f"--source={root / name}_downloaded", f"--output={root / name}")
        assert done.returncode == 0, done.stderr
        assert "0 unused, 0 missing, 0 of wrong shape" in done.stdout and "orbax" not in done.stderr
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (150, 300, 3), np.uint8)).save(root / "face.png")
    wavfile.write(root / "speech.wav", 16000, (rng.standard_normal(11200) * 3000).astype(np.int16))
    return root


def stream(
    weights: pathlib.Path, name: str, output: pathlib.Path, *further: str, devices: int = 1
) -> subprocess.CompletedProcess[str]:
    config, checkpoint = f"--config=tests/published/mini_{name}.py", f"--checkpoint={weights / name}"
    return command("stream", config, checkpoint, f"--output={output}", *further, devices=devices)


def test_a_portrait_talks(weights: pathlib.Path, tmp_path: pathlib.Path):
    media = (f"--image={weights / 'face.png'}", f"--audio={weights / 'speech.wav'}")
    done = stream(weights, "live_avatar", tmp_path / "talk.mp4", PROMPT, *media)
    assert done.returncode == 0, done.stderr
    frames, sound, fps = read_video(tmp_path / "talk.mp4")
    figures = json.loads((tmp_path / "talk.json").read_text())
    assert figures["conditions"]["resolution"] == [64, 128]  # the portrait's shape, within the area
    assert (len(frames), fps, figures["video_frames"]) == (18, 25.0, 18) and frames.std() > 1.0
    assert abs(len(sound) / 16000 - 0.72) < 0.05 and figures["lip_sync"] is None


@pytest.mark.slow
def test_a_portrait_talks_the_same_on_a_mesh(weights: pathlib.Path, tmp_path: pathlib.Path):
    media = (f"--image={weights / 'face.png'}", f"--audio={weights / 'speech.wav'}")
    videos = []
    for meshed in ((), ("stages=2", "tensor=2"), ("stages=4", "driver=chain")):
        fields = [f"--config.mesh.{field}" for field in meshed]
        done = stream(weights, "live_avatar", tmp_path / "talk.mp4", PROMPT, "--overwrite", *media, *fields, devices=5)
        assert done.returncode == 0, done.stderr
        videos.append(read_video(tmp_path / "talk.mp4")[0].astype(int))
    assert max(np.abs(video - videos[0]).mean() for video in videos) < 0.1  # the same pictures, once encoded


def test_an_8_bit_checkpoint_talks(weights: pathlib.Path, tmp_path: pathlib.Path):
    done = command(
        "convert", f"--source={weights / 'live_avatar_downloaded'}", f"--output={tmp_path / 'w'}", "--quantise=fp8"
    )
    assert done.returncode == 0, done.stderr
    media = (f"--image={weights / 'face.png'}", f"--audio={weights / 'speech.wav'}", f"--checkpoint={tmp_path / 'w'}")
    done = stream(weights, "live_avatar", tmp_path / "talk.mp4", PROMPT, *media)
    assert done.returncode == 0, done.stderr
    assert read_video(tmp_path / "talk.mp4")[0].std() > 1.0


def test_a_prompt_becomes_a_clip(weights: pathlib.Path, tmp_path: pathlib.Path):
    done = stream(weights, "t2v", tmp_path / "cat.mp4", "--prompt=a cat sleeps", "--negative_prompt=the sea")
    assert done.returncode == 0, done.stderr
    frames, sound, fps = read_video(tmp_path / "cat.mp4")
    assert (len(frames), fps, sound.size) == (9, 16.0, 0) and frames.std() > 1.0
    assert json.loads((tmp_path / "cat.json").read_text())["prompts"] == ["a cat sleeps", "the sea"]


def _without(weights: pathlib.Path, tmp_path: pathlib.Path, file: str) -> pathlib.Path:
    shutil.copytree(weights / "live_avatar", tmp_path / "live_avatar")
    (tmp_path / "live_avatar" / file).unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("live_avatar", (), "--prompt is missing"),
        ("t2v", ("--prompt= ",), "--prompt is missing"),
        ("t2v", (PROMPT, "--audio=speech.wav"), "--audio: config 'mini_t2v' makes a clip from a prompt alone"),
        ("live_avatar", (PROMPT, "--config.dit.layers=3"), "layers=4, where config.dit.layers=3"),
        ("live_avatar", (PROMPT, "--config.vae.width=16"), "width=8, where config.vae.width=16"),
        ("live_avatar", (PROMPT, "--checkpoint=nowhere"), "--checkpoint=nowhere: no such folder"),
        ("live_avatar", (PROMPT, "--config.stream.audio_ahead=1"), "config.stream.audio_ahead=1: must be at least 2"),
        ("live_avatar", (PROMPT, "--config.mesh.stages=3"), "config.mesh.stages=3: must divide config.stream.steps=4"),
        ("live_avatar", (PROMPT, "--config.mesh.tensor=3"), "config.mesh.tensor=3: must divide config.dit.heads=4"),
        (
            "live_avatar",
            (PROMPT, "--config.mesh.stages=2"),
            "2 stages x 1 context x 1 tensor need 2 devices, 1 cpu found",
        ),
    ],
)
def test_bad_orders_are_one_line(weights: pathlib.Path, tmp_path: pathlib.Path, name, arguments, words):
    done = stream(weights, name, tmp_path / "out.mp4", *arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_another_models_checkpoint_is_refused(weights: pathlib.Path, tmp_path: pathlib.Path):
    done = stream(weights, "live_avatar", tmp_path / "out.mp4", PROMPT, f"--checkpoint={weights / 't2v'}")
    assert done.returncode == 2 and "dit.json: a checkpoint for another configuration" in done.stderr, done.stderr


def test_a_checkpoint_without_its_tokenizer(weights: pathlib.Path, tmp_path: pathlib.Path):
    harmed = _without(weights, tmp_path, "spiece.model")
    done = stream(harmed, "live_avatar", tmp_path / "out.mp4", PROMPT)
    assert done.returncode == 2 and "spiece.model is missing" in done.stderr, done.stderr


def test_the_embedded_model_reads_no_text(tmp_path: pathlib.Path):
    done = command("stream", f"--output={tmp_path / 'out.mp4'}", PROMPT)
    assert done.returncode == 2 and "'tiny_driven' reads no text" in done.stderr
