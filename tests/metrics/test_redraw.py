"""Drawing again reads what the drawn world's truth says, on faces in motion that nobody has seen."""

import numpy as np
import pytest

from avatar_jax.data import controls, source
from avatar_jax.metrics import redraw

UNSEEN = 900_000


@pytest.fixture(scope="module")
def read():
    clip = source.clip(UNSEEN, 502, video_frames=24, performed=True)
    frames = clip["frames"][::3]
    return redraw.read_frames(frames, source.identity_of(UNSEEN, 502)), clip["controls"][::3], frames


def test_it_reads_the_truth(read):
    found, true, _ = read
    off = np.abs(found - true).mean(0)
    spread = dict(zip(controls.CONTROL_NAMES, off, strict=True))
    assert max(spread[name] for name in ("yaw", "pitch", "roll", "x", "y")) < 0.01, spread
    assert abs(spread["scale"]) < 0.01 and spread["brow"] < 0.1 and spread["mouth_open"] < 0.05, spread


def test_a_spoiled_picture_is_read_as_well(read):
    found, _, frames = read
    rng = np.random.default_rng(0)
    spoiled = np.clip(frames[:2] + rng.normal(0.0, 8.0, frames[:2].shape), 0, 255).astype(np.uint8)
    again = redraw.read_frames(spoiled, source.identity_of(UNSEEN, 502))
    assert np.abs(again - found[:2])[:, : controls.CONTROL_NAMES.index("gaze_x")].max() < 0.3


def test_no_picture_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        redraw.read_frames(np.zeros((0, 96, 96, 3), np.uint8), source.identity_of(0, 0))
