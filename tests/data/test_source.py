"""The drawn world as data: deterministic, true to its labels, sharded and resumable."""

import dataclasses

import numpy as np
import pytest

from avatar_jax.data import controls, frames, source, world
from avatar_jax.data.source import WorldSource, clip, make_dataset

SMALL = WorldSource(seed=3, size=32, video_frames=10, count=7)


def test_a_clip_follows_from_its_seed_and_index():
    one, again, other = clip(0, 5, video_frames=12), clip(0, 5, video_frames=12), clip(0, 6, video_frames=12)
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    assert np.abs(one["identity"] - other["identity"]).max() > 0.01
    assert not np.array_equal(one["waveform"], other["waveform"])


def test_shapes_and_ranges():
    made = clip(1, 2, video_frames=25, size=96)
    assert made["frames"].shape == (25, 96, 96, 3) and made["frames"].dtype == np.uint8
    assert made["waveform"].shape == (16000,) and np.abs(made["waveform"]).max() <= 1.0
    assert made["controls"].shape == (25, len(controls.CONTROL_NAMES))
    opening = made["controls"][:, controls.CONTROL_NAMES.index("mouth_open")]
    assert opening.min() >= 0.0 and opening.max() <= 1.0


def still(frames_count: int, **tracks: np.ndarray) -> controls.Controls:
    array = np.tile(np.asarray(controls.NEUTRAL, np.float32), (frames_count, 1))
    for name, track in tracks.items():
        array[:, controls.CONTROL_NAMES.index(name)] = track
    return controls.Controls.from_array(array)


def test_the_mouth_opens_with_its_control():
    for index in range(5):
        who = source.identity_of(0, index)
        shown = world.render_clip(who, still(5, mouth_open=np.linspace(0, 1, 5))).astype(int)
        changed = [int((np.abs(frame - shown[0]).sum(-1) > 30).sum()) for frame in shown]
        assert changed == sorted(changed) and changed[-1] > 60  # pixels at 96 x 96


def test_motion_is_smooth_below_a_pixel():
    who = source.identity_of(0, 1)
    shown = world.render_clip(who, still(2, x=np.array([0.0, 0.002]))).astype(int)  # a fifth of a pixel
    difference = np.abs(shown[1] - shown[0])
    assert 0.0 < difference.mean() < 2.0


def test_a_large_portrait_is_the_small_one_in_detail():
    who = source.identity_of(0, 3)
    large = world.portrait(who, 192).reshape(96, 2, 96, 2, 3).mean((1, 3))
    assert np.abs(large - world.portrait(who, 96)).mean() < 4.0


def test_an_actor_moves_all_but_the_mouth():
    """Each part by itself, and most of them more widely than the same clip would move else."""
    natural, acted = (clip(1, 4, video_frames=96, size=32, performed=each) for each in (False, True))
    for name in ("waveform", "reference", "identity"):
        np.testing.assert_array_equal(natural[name], acted[name])
    mouth = [controls.CONTROL_NAMES.index(name) for name in ("mouth_open", "mouth_width")]
    np.testing.assert_array_equal(natural["controls"][:, mouth], acted["controls"][:, mouth])
    driven = [index for index in range(len(controls.CONTROL_NAMES)) if index not in mouth]
    spread, usual = (
        np.stack([clip(1, i, video_frames=96, size=32, performed=each)["controls"][:, driven] for i in range(8)])
        for each in (True, False)
    )
    wider = spread.std(1).mean(0) / usual.std(1).mean(0)
    assert wider.min() > 0.8 and np.median(wider) > 1.3, wider
    together = np.corrcoef(spread.reshape(-1, len(driven)).T)
    assert np.abs(together - np.eye(len(driven))).max() < 0.5


def test_twins_differ_in_one_small_signal():
    differing = set()
    for index in range(24):
        pair = clip(2, index, video_frames=24, size=64, performed=True, twinned=True)
        alone = clip(2, index, video_frames=24, size=64, performed=True)
        np.testing.assert_array_equal(pair["frames"], alone["frames"])
        (changed,) = np.flatnonzero((pair["controls"] != pair["twin_controls"]).any(0))
        assert pair["twin_frames"].shape == pair["frames"].shape
        differing.add(controls.CONTROL_NAMES[changed])
    assert len(differing) > 4 and not differing & {"mouth_open", "mouth_width", "yaw", "pitch", "roll", "blink"}


def test_a_share_of_the_clips_is_performed():
    some = dataclasses.replace(SMALL, count=40, performed=0.5)
    marked = [bool(some[index]["performed"]) for index in range(40)]
    assert 10 < sum(marked) < 30 and marked == [source.performs(3, index, 0.5) for index in range(40)]
    plain = clip(3, marked.index(False), video_frames=10, size=32)
    np.testing.assert_array_equal(some[marked.index(False)]["frames"], plain["frames"])
    assert not any(SMALL[index]["performed"] for index in range(7))


def test_shards_are_disjoint_and_complete():
    seen = []
    for shard in range(2):
        data = make_dataset(SMALL, batch=1, seed=0, shard_index=shard, shard_count=2, epochs=1)
        seen.append({batch["identity"].tobytes() for batch in data})
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == len(SMALL)


def test_the_middle_of_an_epoch_resumes_exactly():
    data = iter(make_dataset(SMALL, batch=2, seed=0, shard_index=0, shard_count=1, epochs=None).to_iter_dataset())
    for _ in range(2):
        next(data)
    place, expected = data.get_state(), [next(data) for _ in range(2)]
    again = iter(make_dataset(SMALL, batch=2, seed=0, shard_index=0, shard_count=1, epochs=None).to_iter_dataset())
    again.set_state(place)
    for batch in expected:
        np.testing.assert_array_equal(next(again)["frames"], batch["frames"])


def test_bad_shards_are_refused():
    with pytest.raises(ValueError, match="shard_index=2"):
        make_dataset(SMALL, batch=1, seed=0, shard_index=2, shard_count=2, epochs=1)
    with pytest.raises(IndexError):
        SMALL[7]


def test_silent_clips_for_the_vae():
    data = frames.frame_dataset(0, video_frames=5, size=32, batch=2)
    first, again = next(iter(data)), next(iter(data))
    np.testing.assert_array_equal(first, again)
    assert again.shape == (2, 5, 32, 32, 3)
