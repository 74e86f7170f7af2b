"""The synthetic speech: reproducible, true to its own phonemes, and in step with its own mouth."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from avatar_jax.data import formant, phoneme, recording, speech
from avatar_jax.metrics.sync import best_lag, energy_envelope, pearson

FPS, AUDIO_HZ = 25, 16_000
SAMPLES = 10 * AUDIO_HZ
SHUT = ("P", "B", "M")


@functools.cache
def _speaking(count: int) -> list[speech.Utterance]:
    """Clean utterances in which somebody speaks."""
    made = (speech.utterance(np.random.default_rng(i), SAMPLES, clean=True) for i in itertools.count())
    return list(itertools.islice((said for said in made if said.opening.std() > 0.1), count))


def test_same_seed_same_utterance() -> None:
    one, two = (speech.utterance(np.random.default_rng((3, 4)), SAMPLES) for _ in range(2))
    other = speech.utterance(np.random.default_rng((3, 5)), SAMPLES)
    assert one.phonemes == two.phonemes
    for name in ("waveform", "opening", "width"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(one.waveform, other.waveform)


@pytest.mark.parametrize("frames", [1, 12, 251])
def test_shapes_and_ranges(frames: int) -> None:
    for seed in range(8):
        said = speech.utterance(np.random.default_rng(seed), frames * 640)
        assert said.waveform.shape == (frames * 640,) and said.waveform.dtype == np.float32
        assert said.opening.shape == said.width.shape == (frames,)
        assert np.abs(said.waveform).max() <= 1.0 and np.isfinite(said.waveform).all()
        assert said.opening.min() >= 0 and said.opening.max() <= 1
        assert np.abs(said.width).max() <= 1


def test_phonemes_tile_the_clip() -> None:
    said = _speaking(8)[0]
    ends = [0.0] + [end for _, _, end in said.phonemes]
    assert [start for _, start, _ in said.phonemes] == pytest.approx(ends[:-1])
    assert ends[-1] == SAMPLES / AUDIO_HZ
    assert {symbol for symbol, _, _ in said.phonemes} <= set(phoneme.PHONEMES)


def test_lips_meet_in_every_bilabial() -> None:
    closures = 0
    for said in _speaking(8):
        for symbol, start, _ in said.phonemes:
            shut = phoneme.PHONEMES[symbol][0]
            first = int(np.ceil(start * FPS - 0.5))  # the first frame centre in the closure, of at least 48 ms
            if symbol in SHUT and shut.lips_shut and start > 0 and first < len(said.opening):
                assert said.opening[first] < 0.02, (symbol, start)
                closures += 1
    assert closures > 20


def test_silence_rests_the_mouth_exactly() -> None:
    checked = 0
    for said in _speaking(8):
        centres = (np.arange(len(said.opening)) + 0.5) / FPS
        for symbol, start, end in said.phonemes:
            if symbol in phoneme.PAUSES:
                inside = (centres > start + 0.062) & (centres < end - 0.062)
                np.testing.assert_array_equal(said.opening[inside], 0)
                np.testing.assert_array_equal(said.width[inside], 0)
                checked += inside.sum()
    assert checked > 50


def test_noise_without_speech_leaves_the_mouth_shut() -> None:
    score = phoneme.silence(2.0)
    rng = np.random.default_rng(0)
    dry = formant.synthesise(rng, score, formant.draw_voice(rng), samples=32_000, audio_hz=AUDIO_HZ)
    heard = recording.record(rng, dry, audio_hz=AUDIO_HZ)
    opening, width = speech.mouth(score, video_frames=50, fps=FPS)
    assert np.abs(heard).max() > 0.01
    assert not opening.any() and not width.any()


def test_opening_follows_loudness_without_lag() -> None:
    scores, lags = [], []
    for said in _speaking(8):
        envelope = energy_envelope(said.waveform, AUDIO_HZ, FPS)
        scores.append(pearson(said.opening, envelope))
        lags.append(best_lag(said.opening, envelope, 5))
    assert 0.6 < np.mean(scores) < 0.95
    assert max(map(abs, lags)) <= 1 and np.median(lags) == 0


def _hold(symbol: str) -> phoneme.Score:
    """One vowel held for a second."""
    row = list(phoneme.GESTURES).index(phoneme.PHONEMES[symbol][0])
    one = np.ones(1)
    return phoneme.Score(np.array([row]), 0 * one, one, 0 * one, ((symbol, 0.0, 1.0),))


def _share(symbol: str, hertz: float) -> float:
    """Decibels of a held vowel's power within 130 Hz of a frequency, relative to all of it."""
    rng = np.random.default_rng(1)
    voice = dataclasses.replace(
        formant.draw_voice(rng),
        f0_hz=100,
        tract=1.0,
        formant_gains=np.ones(3),
        breathiness=0.0,
        whisper=False,
    )
    sound = formant.synthesise(rng, _hold(symbol), voice, samples=AUDIO_HZ, audio_hz=AUDIO_HZ)
    power = np.abs(np.fft.rfft(sound * np.hanning(AUDIO_HZ))) ** 2  # 1 Hz a bin
    centre = round(hertz)
    return float(10 * np.log10(power[centre - 130 : centre + 130].sum() / power.sum()))


@pytest.mark.parametrize(("vowel", "other"), [("AA", "IY"), ("IY", "UW"), ("UW", "IY"), ("AE", "AA")])
def test_vowels_carry_their_second_formant(vowel: str, other: str) -> None:
    hertz = phoneme.PHONEMES[vowel][0].f2
    assert _share(vowel, hertz) > _share(other, hertz) + 8


def test_open_vowels_are_open_and_round_vowels_are_round() -> None:
    tracks = {s: speech.mouth(_hold(s), video_frames=25, fps=FPS) for s in ("AA", "IY", "UW")}
    opening = {s: track[0][12] for s, track in tracks.items()}
    width = {s: track[1][12] for s, track in tracks.items()}
    assert opening["AA"] > 0.9 > opening["IY"] > opening["UW"] > 0.2
    assert width["IY"] > 0.7 and abs(width["AA"]) < 0.1 and width["UW"] < -0.7


@pytest.mark.parametrize(
    ("samples", "audio_hz", "fps"), [(0, 16_000, 25), (100, 16_000, 25), (640, 16_001, 25), (640, 16_000, 30)]
)
def test_refuses_broken_geometry(samples: int, audio_hz: int, fps: int) -> None:
    with pytest.raises(ValueError, match=r"audio_hz|samples"):
        speech.utterance(np.random.default_rng(0), samples, audio_hz=audio_hz, fps=fps)
