"""wav2vec2 in a moving window: however sound arrives the same; the published features where the window holds all."""

import dataclasses

import jax
import numpy as np
import pytest

from avatar_jax.core import spec
from avatar_jax.core.config import Config
from avatar_jax.models import wav2vec
from avatar_jax.stream import hear
from tests.published import mini_live_avatar

HOP = 640  # samples of a video frame


def run(past: int, ahead: int) -> Config:
    cfg = mini_live_avatar.get_config()
    return dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, audio_past=past, audio_ahead=ahead))


@pytest.fixture(scope="module")
def weights() -> dict:
    return spec.init(wav2vec.spec(mini_live_avatar.get_config().sound), jax.random.key(0))  # type: ignore[arg-type]


def sound(samples: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def listen(cfg: Config, weights: dict, samples: np.ndarray, pieces: list[int]) -> tuple[np.ndarray, list[int]]:
    """All features, and how many blocks each push gave."""
    ear, blocks, counts, at = hear.make_hearing(cfg, weights)(), [], [], 0
    for size in [*pieces, len(samples)]:
        new = ear.push(samples[at : at + size])
        blocks, counts, at = blocks + new, [*counts, len(new)], at + size
    return np.concatenate(blocks + ear.finish()), counts


def test_a_window_that_holds_the_recording_gives_the_published_features(weights):
    cfg, samples = run(past=40, ahead=40), sound(30 * HOP + 100)
    net = cfg.sound
    heard, counts = listen(cfg, weights, samples, [])
    assert counts == [0]  # it waits for what is ahead
    states = np.asarray(wav2vec.apply(weights, wav2vec.normalise(samples)[None], cfg=net))[:, 0]  # type: ignore[arg-type]
    indices = wav2vec.frame_indices(0, len(heard), fps=25)
    published = wav2vec.read(states, wav2vec.places(indices, states.shape[1])).transpose(1, 0, 2)
    assert np.abs(published[:28]).mean() > 0.1
    np.testing.assert_allclose(heard, published, atol=2e-5)
    assert not heard[31:].any()  # silence fills the last block


def test_however_sound_arrives_the_features_are_the_same(weights):
    cfg, samples = run(past=8, ahead=3), sound(40 * HOP)
    whole, counts = listen(cfg, weights, samples, [])
    assert whole.shape == (48, 25, 24) and counts == [3]  # 40 frames: 12, 24, 36 and the 3 after them are there
    pieces = [15 * HOP - 1, 1, 12 * HOP, 333]
    again, counts = listen(cfg, weights, samples, pieces)
    assert counts == [0, 1, 1, 0, 1]
    np.testing.assert_array_equal(again, whole)


def test_the_past_is_let_go(weights):
    cfg = run(past=8, ahead=3)
    ear = hear.Wav2VecEar(cfg, weights)
    for _ in range(20):
        ear.push(sound(12 * HOP))
    assert len(ear._window.samples) <= (8 + 12 + 3 + 12) * HOP


@pytest.mark.parametrize("samples", [1, 399, 400, 641])
def test_a_recording_shorter_than_a_step(weights, samples):
    heard, _ = listen(run(past=8, ahead=3), weights, sound(samples), [])
    assert heard.shape == (12, 25, 24) and np.isfinite(heard).all()


def test_filling_changes_no_state_before_it(weights):
    net = mini_live_avatar.get_config().sound
    assert not isinstance(net, type(None))
    samples = wav2vec.normalise(sound(9000))
    steps = wav2vec.steps_of(9000, net)  # type: ignore[arg-type]
    hear = jax.jit(wav2vec.apply, static_argnames="cfg")
    alone = np.asarray(hear(weights, samples[None], cfg=net))
    filled = np.pad(samples, (0, 5000))[None]
    among = np.asarray(hear(weights, filled, np.int32(steps), cfg=net))
    np.testing.assert_allclose(among[:, :, :steps], alone, atol=1e-5 * np.abs(alone).max())  # 1e-5 of what is heard
