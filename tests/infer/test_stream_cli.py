"""The file command from outside: a video of the recording's length, one line for bad input, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from avatar_jax.io.video import VideoWriter, read_video
from tests.io import sounds
from tests.io.pictures import bomb

ROOT = Path(__file__).parents[2]
FAKE = [sys.executable, "-m", "tests.infer.fake_stream"]


def write_inputs(folder: Path) -> None:
    """A portrait, recordings good and bad, weights (their files only have to exist) and old outputs."""
    Image.new("RGB", (120, 90), (200, 150, 120)).save(folder / "face.png")
    (folder / "huge.png").write_bytes(bomb(20_000, 20_000))
    sounds.write_recording(folder, "speech.flac")
    (folder / "text.wav").write_text("These are my notes.\n" * 100)
    (folder / "text.png").write_text("No picture.\n")
    soundfile.write(folder / "none.wav", np.zeros(0, np.float32), 16000)
    broken = sounds.chirp(16000, 2)
    broken[-1] = np.nan
    soundfile.write(folder / "nan.wav", broken, 16000, subtype="FLOAT")
    (folder / "half.flac").write_bytes((folder / "speech.flac").read_bytes()[:30_000])
    (folder / "weights").mkdir()
    for name in ("dit", "vae"):
        (folder / "weights" / f"{name}.safetensors").touch()
    (folder / "old.mp4").write_bytes(b"old video")
    (folder / "old.json").write_bytes(b"old figures")
    (folder / "package.json").write_bytes(b"{}")
    Image.new("L", (120, 90), 0).save(folder / "black.png")
    np.save(folder / "head.npy", np.zeros((9, 6)))
    np.savez(folder / "head.npz", head=np.zeros((9, 6)))
    np.savez(folder / "ear.npz", ear=np.zeros((9, 6)))
    np.savez(folder / "narrow.npz", gaze=np.zeros((9, 2)))
    np.savez(folder / "infinite.npz", head=np.full((9, 6), np.inf))
    np.savez(folder / "empty.npz")
    with VideoWriter(folder / "mute.mp4", height=96, width=96, fps=25, audio_hz=None, overwrite=False) as writer:
        writer.write(np.zeros((2, 96, 96, 3), np.uint8), np.zeros(0, np.float32))
    (folder / "config.py").write_text("import nothing_like_this\n")


def order(folder: Path, **changes: str | None) -> list[str]:
    """A good command line, with flags replaced or (None) left out."""
    flags: dict[str, str | None] = {
        "image": f"{folder}/face.png",
        "audio": f"{folder}/speech.flac",
        "output": f"{folder}/talk.mp4",
        "checkpoint": f"{folder}/weights",
    }
    return [f"--{name}={value}" for name, value in (flags | changes).items() if value is not None]


DRIVEN, PLAIN = "--config=configs/tiny_driven.py", "--config=configs/tiny.py"
CASES: dict[str, tuple[dict[str, str | None], list[str], str]] = {  # changed flags, further arguments, expected words
    "no output": ({"output": None}, [], "--output is missing; name the video"),
    "no such image": ({"image": "{}/nobody.png"}, [], "nobody.png: no such file"),
    "text image": ({"image": "{}/text.png"}, [], "text.png: is not a PNG, JPEG or WebP"),
    "huge image": ({"image": "{}/huge.png"}, [], "huge.png: is larger than 16 megapixels"),
    "folder as image": ({"image": "{}"}, [], "is a directory"),
    "no such audio": ({"audio": "{}/nothing.wav"}, [], "nothing.wav: no such file"),
    "text audio": ({"audio": "{}/text.wav"}, [], "text.wav: is not a recording"),
    "empty audio": ({"audio": "{}/none.wav"}, [], "none.wav: holds no sound (0 samples)"),
    "nan audio": ({"audio": "{}/nan.wav"}, [], "nan.wav: has a NaN or infinite sample at 2.000 s"),
    "truncated audio": ({"audio": "{}/half.flac"}, [], "half.flac: is truncated"),
    "image as audio": ({"audio": "{}/face.png"}, [], "face.png: is not a recording"),
    "existing output": ({"output": "{}/old.mp4"}, [], "old.mp4: exists already"),
    "existing figures": ({"output": "{}/package.mp4"}, [], "package.json: exists already"),
    "missing folder": ({"output": "{}/nowhere/talk.mp4"}, [], "does not exist; create it first"),
    "two recordings, nobody's": ({}, ["--audio={}/speech.flac"], "--speakers is missing; say what each of the 2"),
    "one part, two recordings": (
        {},
        ["--audio={}/speech.flac", "--speakers=left"],
        "--speakers=left: names 1 for 2 recordings; give one for each --audio",
    ),
    "two parts, one recording": ({}, ["--speakers=left,right"], "names 2 for 1 recordings"),
    "no such mask": ({}, ["--speakers={}/mask.png"], "mask.png: no such file"),
    "black mask": ({}, ["--speakers={}/black.png"], "black.png: is all black; a mask is white where"),
    "bad second recording": (
        {},
        ["--audio={}/text.wav", "--speakers=left,right"],
        "text.wav: is not a recording",
    ),
    "signals for a model without": (
        {},
        [PLAIN, "--signals={}/head.npz"],
        "--signals: the model of config 'tiny' reads none",
    ),
    "no such signals": ({}, [DRIVEN, "--signals={}/nothing.npz"], "nothing.npz: no such file"),
    "text signals": ({}, [DRIVEN, "--signals={}/text.wav"], "text.wav: is not an .npz of arrays"),
    "an array as signals": ({}, [DRIVEN, "--signals={}/head.npy"], "head.npy: is not an .npz of arrays"),
    "unknown signal": ({}, [DRIVEN, "--signals={}/ear.npz"], "ear.npz: holds 'ear', which is no signal of config"),
    "narrow signal": ({}, [DRIVEN, "--signals={}/narrow.npz"], "'gaze' is float64 [9, 2]; it must be numbers [video"),
    "infinite signal": ({}, [DRIVEN, "--signals={}/infinite.npz"], "infinite.npz: 'head' has an infinite number"),
    "no signals": ({}, [DRIVEN, "--signals={}/empty.npz"], "empty.npz: holds no signal; it may hold head, gaze"),
    "more signals than recordings": (
        {},
        [DRIVEN, "--signals={}/head.npz", "--signals={}/head.npz"],
        "--signals: 2 files for 1 recordings",
    ),
    "drive for a model without": (
        {},
        [PLAIN, "--drive={}/mute.mp4"],
        "--drive: the model of config 'tiny' reads no signal",
    ),
    "no such drive": ({}, [DRIVEN, "--drive={}/nothing.mp4"], "nothing.mp4: no such file"),
    "sound as drive": ({}, [DRIVEN, "--drive={}/speech.flac"], "speech.flac: has no video track; give a video"),
    "text drive": ({}, [DRIVEN, "--drive={}/text.wav"], "text.wav: is not a video that can be decoded"),
    "mute drive alone": ({"audio": None}, [DRIVEN, "--drive={}/mute.mp4"], "mute.mp4: has no audio track"),
    "drive and signals": (
        {},
        [DRIVEN, "--drive={}/mute.mp4", "--signals={}/head.npz"],
        "--drive: --signals drives the same speaker; give one of the two",
    ),
    "more drives than recordings": (
        {},
        [DRIVEN, "--drive={}/mute.mp4", "--drive={}/mute.mp4"],
        "--drive: 2 videos for 1 recordings",
    ),
    "not mp4": ({"output": "{}/talk.avi"}, [], "not an .mp4 name"),
    "no weights": ({"checkpoint": "{}"}, [], "holds neither dit.safetensors nor dit/"),
    "unknown field": ({}, ["--config.stream.stepz=4"], "no such field; did you mean --config.stream.steps"),
    "unknown group": ({}, ["--config.strem.steps=4"], "no such field; did you mean --config.stream.steps"),
    "a group": ({}, ["--config.stream=4"], "--config.stream: no such field"),
    "wrong type": ({}, ["--config.stream.steps=few"], "--config.stream.steps=few"),
    "impossible value": ({}, ["--config.stream.steps=0"], "config.stream.steps=0: must be at least 1"),
    "no such config": ({}, ["--config=configs/nothing.py"], "configs/nothing.py: no such file"),
    "broken config": ({}, ["--config={}/config.py"], "not a configuration (ModuleNotFoundError"),
    "late config": (
        {},
        ["--config.stream.steps=4", "--config=configs/tiny.py"],
        "before a value for --config",
    ),
    "unknown flag": ({}, ["--imgae=face.png"], "Unknown command line flag 'imgae'. Did you mean: image"),
    "stray argument": ({}, ["talk.mp4"], "talk.mp4: unexpected argument"),
    "unknown codec": ({}, ["--vcodec=h264"], "--vcodec=h264"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Every case of CASES, run: the folder and {case: {"code", "text"}}."""
    folder = tmp_path_factory.mktemp("refusals")
    write_inputs(folder)
    lines = []
    for changes, further, _ in CASES.values():
        placed = {name: value and value.format(folder) for name, value in changes.items()}
        lines.append([*order(folder, **placed), *(argument.format(folder) for argument in further)])
    done = subprocess.run([*FAKE, "--cases"], input=json.dumps(lines), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line_before_any_work(
    case: str, refusals: tuple[Path, dict[str, dict[str, Any]]]
) -> None:
    result = refusals[1][case]
    assert result["code"] == 2, result["text"]
    assert CASES[case][2] in result["text"]
    assert result["text"].count("\n") == 1  # neither a traceback nor the start of JAX


def test_bad_input_leaves_the_folder_as_it_was(refusals: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder = refusals[0]
    assert (folder / "old.mp4").read_bytes() == b"old video"
    assert (folder / "old.json").read_bytes() == b"old figures"
    assert not list(folder.glob("*talk*")) + list(folder.glob("*partial*"))


def run(folder: Path, *further: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    command = [*FAKE, *order(folder, **changes), *further]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a portrait, a recording and weights."""
    Image.new("RGB", (120, 90), (200, 150, 120)).save(tmp_path / "face.png")
    sounds.write_recording(tmp_path, "speech.flac")
    (tmp_path / "weights").mkdir()
    for name in ("dit", "vae"):
        (tmp_path / "weights" / f"{name}.safetensors").touch()
    return tmp_path


def test_a_recording_becomes_a_video_of_its_length_with_figures(folder: Path) -> None:
    sound = np.concatenate([sounds.chirp(44100, 1), np.zeros(22050, np.float32), sounds.chirp(44100, 1.015)])
    soundfile.write(folder / "speech.flac", sound, 44100)
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    frames, heard, fps = read_video(folder / "talk.mp4", audio_hz=16000)
    assert (len(frames), fps) == (63, 25)  # 2.515 s
    assert abs(heard.size - round(2.515 * 16000)) <= 640
    dark = np.flatnonzero(frames.mean((1, 2, 3)) < 10)
    np.testing.assert_array_equal(dark, np.arange(dark[0], dark[-1] + 1))
    assert abs(dark[0] - 25) <= 1
    assert abs(dark[-1] - 37) <= 1
    assert np.abs(heard[16800:23200]).max() < 0.02 < np.abs(heard[:16000]).max()
    figures = json.loads((folder / "talk.json").read_text())
    assert figures["video_frames"] == 63
    assert figures["seconds"] == pytest.approx(2.52)
    assert figures["lip_sync"]["r"] > 0.8
    assert abs(figures["lip_sync"]["lag_frames"]) <= 1
    assert figures["compile_s"] == 0.25
    assert figures["conditions"]["resolution"] == [96, 96]
    assert figures["conditions"]["shown"] == [384, 384]
    assert {"device", "dtype", "steps", "versions"} <= figures["conditions"].keys()
    assert figures["config"]["stream"]["steps"] == figures["conditions"]["steps"]
    assert figures["real_time_factor"] == pytest.approx(figures["frames_per_second"] / 25, rel=0.01)
    for words in (
        "first frame",
        "frames a second",
        "real-time factor",
        "lip sync",
        "2.52 s, 63 frames of 96 x 96",
    ):
        assert words in done.stdout
    left = {path.name for path in folder.iterdir()}
    assert left == {"face.png", "speech.flac", "weights", "talk.mp4", "talk.json"}


def test_overwrite_replaces_video_and_figures(folder: Path) -> None:
    (folder / "talk.mp4").write_bytes(b"old video")
    (folder / "talk.json").write_bytes(b"old figures")
    assert run(folder).returncode == 2
    done = run(folder, "--overwrite", "--config.stream.steps=3", "--vcodec=libvpx-vp9")
    assert done.returncode == 0, done.stderr
    assert len(read_video(folder / "talk.mp4")[0]) == 75
    assert json.loads((folder / "talk.json").read_text())["conditions"]["steps"] == 3


def test_signals_reach_the_frames_they_are_for(folder: Path) -> None:
    """Row k drives frame k for as long as there are rows, the sound goes on alone."""
    head = np.zeros((30, 6))
    head[:, 0] = np.linspace(60, 205, 30)
    np.savez(folder / "head.npz", head=head)
    done = run(folder, f"--signals={folder}/head.npz", DRIVEN)
    assert done.returncode == 0, done.stderr
    shown = read_video(folder / "talk.mp4")[0].mean((1, 2, 3))
    assert len(shown) == 75
    np.testing.assert_allclose(shown[:30], head[:, 0], atol=4)
    assert shown[30:].max() < 110


def test_a_driving_video_is_seen_and_heard(folder: Path) -> None:
    """Without --audio it is the recording too, so that the video is as long as it."""
    assert run(folder, audio=None, image=None, output=f"{folder}/drive.mp4").returncode == 0
    wanted = read_video(folder / "drive.mp4")
    done = run(folder, DRIVEN, f"--drive={folder}/drive.mp4", audio=None)
    assert done.returncode == 0, done.stderr
    frames, heard, _ = read_video(folder / "talk.mp4")
    assert len(frames) == len(wanted[0])
    assert np.corrcoef(heard[:16000], wanted[1][:16000])[0, 1] > 0.9
    again = run(folder, DRIVEN, "--overwrite", f"--drive={folder}/drive.mp4", output=f"{folder}/drive.mp4")
    assert again.returncode == 2 and "itself; choose another --output" in again.stderr


def test_several_recordings_are_heard_together(folder: Path) -> None:
    """Each speaker's samples reach the engine as their own; the video is as long as the longest and has their sum."""
    sound = sounds.chirp(16000, 2)
    soundfile.write(folder / "one.wav", 0.5 * sound, 16000)
    soundfile.write(folder / "two.wav", -0.5 * sound[:16000], 16000)
    Image.new("L", (120, 90), 255).save(folder / "mask.png")
    done = run(folder, f"--audio={folder}/two.wav", f"--speakers=left,{folder}/mask.png", audio=f"{folder}/one.wav")
    assert done.returncode == 0, done.stderr
    frames, heard, _ = read_video(folder / "talk.mp4", audio_hz=16000)
    assert len(frames) == 50 and frames[5:20].mean() > 20  # the engine heard the first one, not the sum
    assert np.abs(heard[1600:14400]).max() < 0.05 < np.abs(heard[17600:30400]).max()  # opposites are silence
    assert json.loads((folder / "talk.json").read_text())["lip_sync"] is None  # of whom?


def test_a_single_sample_is_a_single_frame(folder: Path) -> None:
    soundfile.write(folder / "one.wav", np.full(1, 0.5, np.float32), 16000)
    done = run(folder, audio=f"{folder}/one.wav")
    assert done.returncode == 0, done.stderr
    assert len(read_video(folder / "talk.mp4")[0]) == 1
    assert json.loads((folder / "talk.json").read_text())["lip_sync"] is None


def test_the_recording_is_never_its_own_output(folder: Path) -> None:
    assert run(folder).returncode == 0
    before = (folder / "talk.mp4").read_bytes()
    done = run(folder, "--overwrite", audio=f"{folder}/talk.mp4")
    assert done.returncode == 2
    assert "is the recording itself" in done.stderr
    assert (folder / "talk.mp4").read_bytes() == before
    done = run(folder, audio=f"{folder}/talk.mp4", output=f"{folder}/again.mp4")  # a video's sound is a recording
    assert done.returncode == 0, done.stderr
    assert len(read_video(folder / "again.mp4")[0]) == 75


def stop(folder: Path, number: int) -> tuple[int, str]:
    """Starts a slow run, signals it once it has written something; returns the exit code and stderr."""
    # a test run in the background ignores SIGINT, and its children inherit that
    command = ["env", "--default-signal=INT", *FAKE, *order(folder)]
    slow = os.environ | {"FAKE_DELAY_S": "0.15"}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=slow) as process:
        partial, deadline = folder / "talk.partial.mp4", time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size > 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, text = process.communicate(timeout=60)
    return process.returncode, text


def test_ctrl_c_keeps_a_playable_video(folder: Path) -> None:
    sounds.write_recording(folder, "speech.flac", 20)
    (folder / "talk.json").unlink(missing_ok=True)
    code, text = stop(folder, signal.SIGINT)
    assert code == 130
    assert text.count("\n") == 1
    assert "interrupted" in text
    frames, _, _ = read_video(folder / "talk.mp4")
    assert f"{len(frames) / 25:.1f} s" in text
    assert 0 < len(frames) < 500
    assert not (folder / "talk.partial.mp4").exists()


def test_a_kill_leaves_a_playable_partial_video(folder: Path) -> None:
    sounds.write_recording(folder, "speech.flac", 20)
    code, _ = stop(folder, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (folder / "talk.mp4").exists()
    assert len(read_video(folder / "talk.partial.mp4")[0]) > 0


def test_a_full_disk_is_one_line(folder: Path) -> None:
    sounds.write_recording(folder, "speech.flac", 20)
    command = ["bash", "-c", 'ulimit -f 40; exec "$0" "$@"', *FAKE, *order(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "talk.mp4").exists()
    assert not (folder / "talk.json").exists()
