"""The embedded reader on faces and words that it was not trained on."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from avatar_jax.data import controls, world
from avatar_jax.data.identity import sample_identity
from avatar_jax.metrics import identity, mouth, reader, signals, sync
from configs import reader as settings
from train import reader as training
from train import reader_data

FRESH_SEED = 77  # a stream of faces apart from the training's
ROOT = pathlib.Path(__file__).parents[2]
# r, by control; four clips hardly change their size, and show the gaze's height and a smile to few pixels.
LEAST = {"mouth_open": 0.98, "mouth_width": 0.9, "yaw": 0.97, "pitch": 0.95, "blink": 0.97}
LEAST |= dict.fromkeys(("roll", "x", "y", "gaze_x"), 0.9) | {"brow": 0.8} | dict.fromkeys(("smile", "gaze_y"), 0.5)


@pytest.fixture(scope="module")
def unseen() -> tuple[reader_data.Pool, np.ndarray]:
    """Four speaking faces of 40 frames, and the references of twelve."""
    pool, references = reader_data.render_test(FRESH_SEED, 12, 40)
    speaking = np.argsort(-pool.mouth[..., 0].std(axis=1))[:4]
    order = np.concatenate([speaking, np.setdiff1d(np.arange(12), speaking)])
    parts = dataclasses.fields(pool)
    return reader_data.Pool(*(getattr(pool, part.name)[speaking] for part in parts)), references[order]


def test_opening_agrees_with_the_truth(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    pool, _ = unseen
    for frames, true in zip(pool.frames, pool.mouth, strict=True):
        seen = mouth.read_frames(frames)
        assert seen.opening.shape == seen.width.shape == (40,)
        assert sync.pearson(seen.opening, true[:, 0]) > 0.97
    pooled = np.concatenate([mouth.read_frames(frames).opening for frames in pool.frames])
    assert sync.pearson(pooled, pool.mouth[..., 0].ravel()) > 0.98


def agreement(pool: reader_data.Pool) -> dict[str, float]:
    """r between what is read of the pool's frames and the truth, by control."""
    read = [signals.read_frames(frames) for frames in pool.frames]
    assert all(rows[name].shape == (40, len(controls.SIGNALS[name])) for rows in read for name in controls.SIGNALS)
    truth = {"mouth_open": pool.mouth[..., 0], "mouth_width": pool.mouth[..., 1]}
    truth |= {name: pool.pose[..., i] for i, name in enumerate(reader.POSE)}
    seen = {
        part: np.stack([rows[name][:, i] for rows in read])
        for name, parts in controls.SIGNALS.items()
        for i, part in enumerate(parts)
    }
    return {name: sync.pearson(seen[name].ravel(), true.ravel()) for name, true in truth.items()}


def test_a_videos_signals_agree_with_the_truth(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    r = agreement(unseen[0])
    assert {name for name, least in LEAST.items() if r[name] <= least} == set(), r


def test_opening_and_head_survive_a_generators_faults(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    spoiled = reader_data.spoil_pool(unseen[0])
    assert not np.array_equal(spoiled.frames, unseen[0].frames)
    r = agreement(spoiled)
    assert r["mouth_open"] > 0.95
    assert min(r[name] for name in ("yaw", "roll", "x", "y")) > 0.9, r


def test_a_picture_that_is_moved_moves_the_head_in_its_truth() -> None:
    """The head drawn in its new pose is the picture of the old one, turned, shifted and enlarged."""
    who = sample_identity(np.random.default_rng(5))
    pose = controls.NEUTRAL._replace(yaw=0.1, roll=0.05, x=0.01)
    turn = cv2.getRotationMatrix2D((48, 48), 3.0, 1.04)
    turn[:, 2] += (1.5, -1)

    def draw(pose: controls.Pose) -> tuple[np.ndarray, np.ndarray]:
        one = controls.Controls.from_array(np.array([pose]))
        rows = controls.signals(one.as_array())
        return world.render(who, one, 0), np.concatenate([rows[name][0] for name in ("head", "gaze", "expression")])

    before, truth = draw(pose)
    after = dict(zip(reader.POSE, reader_data.turned(truth, turn), strict=True))
    moved = {name: after[name] for name in ("roll", "x", "y")} | {"scale": 1 + after["scale"]}
    drawn, _ = draw(pose._replace(**moved))
    face = np.s_[25:70, 30:66]  # not the shoulders, which the drawn world does not turn
    warped = cv2.warpAffine(before, turn, (96, 96), flags=cv2.INTER_LINEAR)[face].astype(float)
    assert np.abs(warped - drawn[face]).mean() < 4 < 12 < np.abs(warped - before[face]).mean()


def test_any_size_is_read_alike(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    frames = unseen[0].frames[0][:6]
    double = frames.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(mouth.read_frames(double).opening, mouth.read_frames(frames).opening, atol=1e-5)


def test_batching_changes_nothing(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    frames = unseen[0].frames.reshape(-1, 96, 96, 3)[:70]
    whole = mouth.read_frames(frames).opening
    parts = np.concatenate([mouth.read_frames(part).opening for part in (frames[:3], frames[3:])])
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_own_reference_is_the_nearest(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    pool, references = unseen
    ranks = [
        identity.rank_of_own(frames, references[i], np.delete(references, i, axis=0))
        for i, frames in enumerate(pool.frames)
    ]
    assert np.mean(np.stack(ranks) == 0) > 0.97
    stranger = identity.rank_of_own(pool.frames[0], references[1], references[[0, 2, 3]])
    assert stranger.min() > 0


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 96, 96, 3), np.uint8), np.zeros((2, 96, 96, 3)), np.zeros((96, 96, 3), np.uint8)]
)
def test_refuses_what_is_not_pictures(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        mouth.read_frames(frames)


def test_embedded_weights_fit_the_network_and_the_budget() -> None:
    weights = reader.load_reader()
    fresh = jax.eval_shape(lambda: reader.init(jax.random.key(0), weights["identity/error"].size))
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in fresh.items()}
    assert sum(leaf.nbytes for leaf in weights.values()) < 3_700_000


def test_a_tower_is_trained_without_touching_the_others(tmp_path: pathlib.Path) -> None:
    small = {"towers": ("pose",), "batch": 2, "steps": 2, "warmup": 1, "log_every": 1}
    pool, before = reader_data.render_pool(0, 2, 2), reader.load_reader()
    after = training.train(before, pool, dataclasses.replace(settings.get_config(), **small), tmp_path)
    assert after.keys() == before.keys()
    changed = {name.partition("/")[0] for name in before if not np.array_equal(after[name], before[name])}
    assert changed == {"pose"}


@pytest.mark.slow
def test_a_short_training_learns(tmp_path: pathlib.Path) -> None:
    sizes = {
        "identities": 40,
        "steps": 40,
        "warmup": 5,
        "log_every": 5,
        "test_identities": 4,
        "test_frames": 30,
    }
    command = [sys.executable, "-m", "train.reader", f"--workdir={tmp_path}"]
    subprocess.run([*command, *(f"--config.{k}={v}" for k, v in sizes.items())], check=True, cwd=ROOT)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["opening"] < 0.8 * lines[0]["opening"]
    assert (tmp_path / "reader.safetensors").stat().st_size < 3_700_000
    assert (tmp_path / "loss.png").exists() and (tmp_path / "result.json").exists()
