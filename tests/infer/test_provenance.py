"""Marked, badged, signed: the video that a command writes, and what is read from it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avatar_jax.io import badge, credential
from avatar_jax.io.errors import InputError
from avatar_jax.io.video import VideoWriter, read_video, remux
from infer import detect
from tests.infer import test_stream_cli
from tests.infer.test_stream_cli import folder, run  # noqa: F401, the fixture

signed = pytest.mark.skipif(not credential.available(), reason=credential.MISSING)


def found(video: Path) -> tuple[int, dict]:
    command = [sys.executable, "-m", "infer.detect", str(video)]
    done = subprocess.run(command, cwd=test_stream_cli.ROOT, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout)


def test_a_video_is_marked_unless_it_is_switched_off(folder: Path):  # noqa: F811
    assert run(folder, "--watermark_id=7", "--badge").returncode == 0
    code, said = found(folder / "talk.mp4")
    assert code == 0 and said["watermark"] and said["payload"] == "00000007"
    assert json.loads((folder / "talk.json").read_text())["provenance"]["watermark"] == "00000007"
    shown = read_video(folder / "talk.mp4")[0]
    assert shown[:, -20:, 4:200].max() > 180 > 120 > shown[:, :200].mean()  # white letters below
    done = run(folder, "--overwrite", "--watermark=off", "--c2pa=off")
    assert done.returncode == 0 and done.stderr.startswith("--watermark=off: nothing in the pixels")
    assert json.loads((folder / "talk.json").read_text())["provenance"] == {
        "watermark": "off",
        "badge": False,
        "c2pa": "off",
    }
    assert "watermark off, C2PA off" in done.stdout
    assert not detect.read(folder / "talk.mp4", "avatar_jax").marked


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--watermark=perhaps", "--watermark=perhaps"),
        ("--watermark_id=-1", "--watermark_id=-1"),
        ("--c2pa_chain=mine.pem", "give both, or neither"),
    ],
)
def test_refusals_before_any_work(folder: Path, argument: str, words: str):  # noqa: F811
    done = run(folder, argument)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_what_is_no_video(tmp_path: Path):
    (tmp_path / "notes.mp4").write_text("These are notes.")
    for name, words in (("notes.mp4", "is not a video"), ("none.mp4", "no such file")):
        with pytest.raises(InputError, match=words):
            detect.read(tmp_path / name, "avatar_jax")


@pytest.mark.parametrize("size", [(96, 96), (720, 1280), (256, 64)])
def test_badge_changes_its_corner_alone(size: tuple[int, int]):
    frames = np.full((2, *size, 3), 128, np.uint8)
    shown = badge.make_badge(height=size[0], width=size[1])(frames)
    changed = np.argwhere((shown != frames).any((0, 3)))
    assert changed[:, 0].min() >= size[0] * 3 // 4 and changed[:, 0].max() == size[0] - 1 and changed[:, 1].min() == 0
    assert shown.max() > 200 and shown.min() < 60 and frames.min() == 128
    with pytest.raises(ValueError, match="too small for a badge"):
        badge.make_badge(height=6, width=6)


def video(path: Path) -> Path:
    with VideoWriter(path, height=96, width=96, fps=25, audio_hz=None, overwrite=True) as writer:
        writer.write(
            np.random.default_rng(0).integers(0, 256, (10, 96, 96, 3), dtype=np.uint8), np.zeros(0, np.float32)
        )
    return path


def test_without_the_library_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(credential, "available", lambda: False)
    with pytest.raises(InputError, match="pip install"):
        credential.sign(tmp_path / "a.mp4", tmp_path, tmp_path, {})


@signed
def test_credential_is_valid_and_notices_a_changed_byte(tmp_path: Path):
    chain, key = credential.make_chain(tmp_path / "own")
    assert key.stat().st_mode & 0o077 == 0
    assert credential.make_chain(tmp_path / "own") == (chain, key)  # once
    made = video(tmp_path / "talk.mp4")
    assert credential.verify(made) is None
    credential.sign(made, chain, key, {"watermark": "41565452"})
    said = credential.verify(made)
    assert said and said["state"] == "Valid" and not said["problems"] and not said["trusted"]
    assert said["about"] == {"watermark": "41565452"}
    assert len(read_video(made)[0]) == 10 and {path.name for path in tmp_path.iterdir()} == {"own", "talk.mp4"}
    remux(made, tmp_path / "copy.mp4")
    assert credential.verify(tmp_path / "copy.mp4") is None  # what a copy of the streams drops
    whole = bytearray(made.read_bytes())
    whole[-200] ^= 1
    made.write_bytes(whole)
    changed = credential.verify(made)
    assert changed and changed["state"] == "Invalid" and changed["problems"] == ["assertion.bmffHash.mismatch"]
