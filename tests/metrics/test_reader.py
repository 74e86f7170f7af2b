"""The embedded reader on faces and words that it was not trained on."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from avatar_jax.data import controls
from avatar_jax.metrics import identity, mouth, reader, sync
from train import reader_data

FRESH_SEED = 77  # a stream of faces apart from the training's
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unseen() -> tuple[reader_data.Pool, np.ndarray]:
    """Four speaking faces of 40 frames, and the references of twelve."""
    pool, references = reader_data.render_test(FRESH_SEED, 12, 40)
    speaking = np.argsort(-pool.mouth[..., 0].std(axis=1))[:4]
    order = np.concatenate([speaking, np.setdiff1d(np.arange(12), speaking)])
    clips = reader_data.Pool(pool.frames[speaking], pool.mouth[speaking], pool.identity[speaking])
    return clips, references[order]


def test_opening_agrees_with_the_truth(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    pool, _ = unseen
    for frames, true in zip(pool.frames, pool.mouth, strict=True):
        seen = mouth.read_frames(frames)
        assert seen.opening.shape == seen.width.shape == (40,)
        assert sync.pearson(seen.opening, true[:, 0]) > 0.97
    pooled = np.concatenate([mouth.read_frames(frames).opening for frames in pool.frames])
    assert sync.pearson(pooled, pool.mouth[..., 0].ravel()) > 0.98


def test_a_videos_signals_are_the_mouths(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    """What the reader can tell of a driving video, in the order and units of the drawn world's signal."""
    pool, _ = unseen
    read = [mouth.signals(frames) for frames in pool.frames]
    assert all(signals.keys() == {"mouth"} <= controls.SIGNALS.keys() for signals in read)
    rows = np.concatenate([signals["mouth"] for signals in read])
    for column, agreement in enumerate((0.98, 0.9)):  # the opening is what the reader was made for
        true = pool.mouth[..., column].ravel()
        assert sync.pearson(rows[:, column], true) > agreement, controls.SIGNALS["mouth"][column]
        assert np.abs(rows[:, column] - true).mean() < 0.1


def test_opening_survives_a_generators_faults(unseen: tuple[reader_data.Pool, np.ndarray]) -> None:
    pool, _ = unseen
    spoiled = reader_data.spoil_clips(pool.frames)
    seen = np.concatenate([mouth.read_frames(frames).opening for frames in spoiled])
    assert not np.array_equal(spoiled, pool.frames)
    assert sync.pearson(seen, pool.mouth[..., 0].ravel()) > 0.95


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
    assert sum(leaf.nbytes for leaf in weights.values()) < 2_000_000


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
    assert (tmp_path / "reader.safetensors").stat().st_size < 2_000_000
    assert (tmp_path / "loss.png").exists() and (tmp_path / "result.json").exists()
