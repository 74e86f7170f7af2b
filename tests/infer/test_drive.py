"""What drives a speaker: rows in order from pieces of any length, and those of a video against its truth."""

from pathlib import Path

import numpy as np

from avatar_jax.data import controls, source
from avatar_jax.io.video import VideoWriter
from avatar_jax.metrics import signals, sync
from configs import tiny, tiny_driven
from infer import drive

FRAMES, HOP = 75, 640  # more pictures than are measured at once


def test_rows_come_in_order_from_pieces_of_any_length() -> None:
    rows = np.arange(100.0).reshape(50, 2)
    led = drive.Drive({"head": piece, "gaze": piece[:, :1]} for piece in np.split(rows, [1, 4, 40]))
    taken = [led.read(12) for _ in range(6)]
    assert [len(piece["gaze"]) for piece in taken] == [12, 12, 12, 12, 2, 0]
    np.testing.assert_array_equal(np.concatenate([piece["head"] for piece in taken]), rows)


def test_a_shorter_signal_ends_earlier() -> None:
    led = drive.Drive(iter([{"head": np.zeros((20, 6)), "gaze": np.zeros((5, 3))}]))
    assert [{name: len(rows) for name, rows in led.read(12).items()} for _ in range(2)] == [
        {"head": 12, "gaze": 5},
        {"head": 8, "gaze": 0},
    ]


def test_only_what_a_video_shows_is_read() -> None:
    assert drive.visible(tiny_driven.get_config()) == ["head", "gaze", "expression"]
    assert drive.visible(tiny.get_config()) == []


def test_a_driving_video_gives_the_signals_of_its_frames(tmp_path: Path) -> None:
    """Through a real encoder and the reader, row k is frame k."""
    cfg, clip = tiny_driven.get_config(), source.clip(1_000_100, 2, video_frames=FRAMES, performed=True)
    with VideoWriter(tmp_path / "a.mp4", height=96, width=96, fps=25, audio_hz=16000, overwrite=False) as writer:
        writer.write(clip["frames"], clip["waveform"])
    seen: list[dict[str, np.ndarray]] = []
    with drive.open_drive(tmp_path / "a.mp4", cfg) as led:
        while len((rows := led.read(cfg.block_frames))["head"]):
            seen.append(rows)
    read = {name: np.concatenate([rows[name] for rows in seen]) for name in seen[0]}
    true = controls.signals(clip["controls"])
    assert {name: rows.shape for name, rows in read.items()} == {name: true[name].shape for name in read}
    assert all(np.isfinite(rows).all() for rows in read.values())
    for column, part in enumerate(controls.SIGNALS["head"]):
        if part in ("yaw", "pitch", "roll", "x", "y"):
            assert sync.pearson(read["head"][:, column], true["head"][:, column]) > 0.8, part
    drawn = signals.read_frames(clip["frames"])["head"]
    own = np.abs(read["head"] - drawn).mean()
    assert own < min(np.abs(read["head"][1:] - drawn[:-1]).mean(), np.abs(read["head"][:-1] - drawn[1:]).mean())
