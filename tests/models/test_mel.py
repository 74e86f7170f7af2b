"""The causal log-mel front end: streamed == whole, causality, the librosa oracle, silence, gain."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import strategies as st

from avatar_jax.models import mel
from configs import tiny

CFG = tiny.get_config().mel
FRAME = CFG.samples_per_frame
WHOLE = jax.jit(mel.whole, static_argnums=1)
STEP = jax.jit(mel.step, static_argnums=2)


def _speechlike(frames: int, seed: int = 0) -> np.ndarray:
    """A voiced, amplitude-modulated sound with pauses, [frames * 640] float32."""
    random = np.random.default_rng(seed)
    t = np.arange(frames * FRAME) / CFG.audio_hz
    voice = sum(np.sin(2 * np.pi * 120 * k * t + random.uniform(0, 6)) / k for k in range(1, 30))
    envelope = np.clip(np.sin(2 * np.pi * 3 * t), 0, None)
    return (0.1 * voice * envelope + 1e-3 * random.standard_normal(t.size)).astype(np.float32)


def _stream(samples: np.ndarray, frames: list[int]) -> np.ndarray:
    state, out, at = mel.empty(CFG), [], 0
    for count in frames:
        state, features = STEP(state, samples[at : at + count * FRAME], CFG)
        out.append(np.asarray(features))
        at += count * FRAME
    return np.concatenate(out)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.permutations([0, 1, 1, 2, 3, 12]))
def test_streamed_equals_whole_over_any_split(frames: list[int]) -> None:
    samples = _speechlike(sum(frames))
    whole = np.asarray(WHOLE(samples, CFG))
    assert whole.shape == (sum(frames), CFG.features)
    np.testing.assert_allclose(_stream(samples, frames), whole, atol=1e-5, rtol=0)


def test_a_loud_past_does_not_leak_into_the_streamed_tail() -> None:
    samples = _speechlike(40)
    samples[20 * FRAME :] = 0
    streamed = _stream(samples, [1] * 40)
    np.testing.assert_allclose(streamed, np.asarray(WHOLE(samples, CFG)), atol=1e-5, rtol=0)
    np.testing.assert_allclose(streamed[21:], np.tile(mel.silence(CFG), (19, 1)), atol=1e-6)


def test_matches_librosa_on_the_same_windows() -> None:
    samples = _speechlike(25)
    ahead = CFG.window_samples - CFG.hop_samples + (CFG.fft - CFG.window_samples) // 2
    padded = np.pad(samples, (ahead, (CFG.fft - CFG.window_samples) // 2))
    energy = librosa.feature.melspectrogram(
        y=padded,
        sr=CFG.audio_hz,
        n_fft=CFG.fft,
        hop_length=CFG.hop_samples,
        win_length=CFG.window_samples,
        center=False,
        n_mels=CFG.mels,
        fmin=CFG.low_hz,
        fmax=CFG.high_hz,
    )
    log = np.log10(np.maximum(energy.T, CFG.floor))
    lowest = np.log10(CFG.floor)
    expected = (log - lowest) * 2.5 / (1.5 - lowest) - 1
    features = np.asarray(WHOLE(samples, CFG)).reshape(-1, CFG.mels)
    np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize("frame", [0, 3, 9])
def test_features_never_see_the_future(frame: int) -> None:
    samples = _speechlike(10)
    changed = samples.copy()
    changed[(frame + 1) * FRAME :] = 0.7
    before, after = (np.asarray(WHOLE(x, CFG)) for x in (samples, changed))
    np.testing.assert_array_equal(before[: frame + 1], after[: frame + 1])
    if frame < 9:
        assert np.abs(before[frame + 1] - after[frame + 1]).max() > 0.01


def test_silence_is_minus_one_and_full_scale_speech_stays_in_range() -> None:
    quiet = np.asarray(mel.whole(jnp.zeros(5 * FRAME), CFG))
    np.testing.assert_allclose(quiet, np.tile(mel.silence(CFG), (5, 1)), atol=1e-6)
    loud = _speechlike(50)
    loud = loud / np.abs(loud).max()
    features = np.asarray(WHOLE(loud, CFG))
    assert features.min() >= -1 - 1e-6
    assert 1.0 < features.max() < 2.0


def test_gain_is_an_offset_not_a_normalisation() -> None:
    samples = _speechlike(20)
    a, b = (np.asarray(WHOLE(x, CFG)) for x in (samples, samples * 0.1))
    voiced = b > 0
    shift = (a - b)[voiced]
    np.testing.assert_allclose(shift, 2 * 2.5 / (1.5 - np.log10(CFG.floor)), atol=1e-4)


def test_batches_and_jit_agree_with_single_calls() -> None:
    batch = np.stack([_speechlike(4, seed) for seed in range(3)])
    together = np.asarray(mel.whole(jnp.asarray(batch), CFG))
    assert together.shape == (3, 4, CFG.features)
    for row, samples in zip(together, batch, strict=True):
        np.testing.assert_allclose(np.asarray(WHOLE(samples, CFG)), row, atol=1e-5)


def test_partial_frames_are_refused_with_the_unit() -> None:
    with pytest.raises(ValueError, match=r"641 samples.*multiples of 640"):
        mel.step(mel.empty(CFG), jnp.zeros(641), CFG)


def test_other_geometry() -> None:
    cfg = dataclasses.replace(CFG, mels=20, window_samples=320, hop_samples=320)
    assert mel.whole(jnp.zeros(2 * FRAME), cfg).shape == (2, 2 * 20)
