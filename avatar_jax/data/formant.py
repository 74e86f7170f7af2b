"""A formant synthesiser: a score of gestures in, speech out, about 200 times faster than real time on a core.

Source and filter: a band-limited sawtooth (glottal flow at -12 dB/octave, lips' radiation at +6) and white
noise pass through the magnitude response of the vocal tract, applied to overlapping short-time spectra. Three
formants move; the higher ones and the spectral tilt belong to the voice. All controls are piecewise constant
gesture targets smoothed with centred Hann windows, which is what makes neighbouring phonemes run into each
other.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import scipy.fft
import scipy.ndimage

from avatar_jax.data.phoneme import FRICTIONS, GESTURES, Score

CONTROL_HZ = 500
_HOPS_PER_SECOND = 125
_FORMANT_SECONDS, _VOICE_SECONDS, _NOISE_SECONDS, _PITCH_SECONDS = 0.060, 0.024, 0.010, 0.160

_TABLE = {
    name: np.array([getattr(g, name) for g in GESTURES], np.float32)
    for name in ("f1", "f2", "f3", "voice", "breath", "friction", "nasal", "opening", "width", "lips_shut")
}
_SPECTRUM = np.array([FRICTIONS.index(g.spectrum) for g in GESTURES])
# Peak in Hz, width below and above it in octaves, of each friction spectrum.
_FRICTION_BANDS = {
    "none": (3000, 2.0, 2.0),
    "low": (700, 1.0, 0.8),
    "mid": (1900, 0.4, 0.7),
    "high": (4200, 0.6, 0.6),
    "flat": (5000, 2.5, 1.5),
    "sh": (3000, 0.35, 0.8),
    "s": (6200, 0.45, 0.6),
}


@dataclasses.dataclass(frozen=True)
class Voice:
    """A speaker: pitch, vocal-tract length (formants divide by it), and the colour of the source."""

    f0_hz: float
    pitch_range: float  # scale of the intonation, 1 = the score's
    tract: float
    formant_gains: np.ndarray  # [3] idiosyncratic factors
    bandwidth: float
    tilt_hz: float  # above it the source falls by another 6 dB/octave
    breathiness: float
    jitter: float
    shimmer_db: float
    whisper: bool


def draw_voice(rng: np.random.Generator) -> Voice:
    """A random speaker: child, woman or man, pressed or breathy, now and then whispering."""
    tract = float(rng.uniform(0.8, 1.25))
    centre = 190 / tract**2.2  # long tracts go with low voices
    f0 = float(np.clip(centre * 2 ** rng.normal(0, 0.35), 70, 350))
    return Voice(
        f0_hz=f0,
        pitch_range=float(rng.uniform(0.3, 1.4)),
        tract=tract,
        formant_gains=rng.uniform(0.94, 1.06, size=3),
        bandwidth=float(rng.uniform(0.8, 1.5)),
        tilt_hz=float(np.exp(rng.uniform(np.log(1500), np.log(12_000)))),
        breathiness=float(rng.uniform(0.01, 0.12)),
        jitter=float(rng.uniform(0.003, 0.015)),
        shimmer_db=float(rng.uniform(0.3, 1.2)),
        whisper=bool(rng.random() < 0.02),
    )


def control_times(samples: int, audio_hz: int) -> np.ndarray:
    """Times in seconds of the control points that cover `samples` samples, at CONTROL_HZ."""
    return np.arange(-(-samples * CONTROL_HZ // audio_hz) + 1) / CONTROL_HZ


def smooth(track: np.ndarray, seconds: float) -> np.ndarray:
    """Centred Hann smoothing of a control track [N] over `seconds`; zeros stay exact beyond its reach."""
    taps = np.hanning(2 * round(seconds * CONTROL_HZ / 2) + 1)[1:-1].astype(np.float32)
    return scipy.ndimage.correlate1d(track.astype(np.float32), taps / taps.sum(), mode="nearest")


def target(name: str, rows: np.ndarray) -> np.ndarray:
    """The table's column `name` for gesture rows [N]."""
    return _TABLE[name][rows]


def _pitch_hz(rng: np.random.Generator, voice: Voice, score: Score, index: np.ndarray) -> np.ndarray:
    """Fundamental frequency [N]: the score's accents, slow drift, and jitter."""
    semitones = smooth(score.pitch[index] * voice.pitch_range, _PITCH_SECONDS)
    drift = smooth(rng.standard_normal(index.size), 0.3) * 6.0
    jitter = smooth(rng.standard_normal(index.size), 0.012) * voice.jitter * 12 * 3
    return np.clip(voice.f0_hz * 2 ** ((semitones + drift + jitter) / 12), 60, 450)


def _sawtooth(f0_hz: np.ndarray, audio_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """A sawtooth [n] whose jump is rounded over one sample (polyBLEP), and its phase in [0, 1)."""
    step = (f0_hz / audio_hz).astype(np.float32)
    phase = np.cumsum(step, dtype=np.float64) % 1.0
    phase = phase.astype(np.float32)
    after, before = np.minimum(phase / step, 1.0) - 1, np.minimum((1 - phase) / step, 1.0) - 1
    return 2 * phase - 1 + after * after - before * before, phase


def _resonance(
    frequency: np.ndarray, centre: np.ndarray | np.float32, bandwidth: np.ndarray | np.float32
) -> np.ndarray:
    """Power response of a two-pole resonator with unit gain at 0 Hz; all broadcast."""
    square, centre_square = frequency * frequency, centre * centre
    return centre_square**2 / ((square - centre_square) ** 2 + square * bandwidth**2)


def _fixed_response(voice: Voice, frequency: np.ndarray) -> np.ndarray:
    """Power response [bins] of what does not move: higher formants, the source's tilt, a block at 0 Hz."""
    power = 1 / (1 + (frequency / voice.tilt_hz) ** 2) * frequency**2 / (frequency**2 + 60.0**2)
    for number in range(4, 11):
        centre = np.float32((number - 0.5) * 1000 / voice.tract)
        power = power * _resonance(frequency, centre, np.float32(voice.bandwidth * (60 * number - 40)))
    return power


def _formants(rng: np.random.Generator, voice: Voice, score: Score, index: np.ndarray) -> np.ndarray:
    """The three moving formants in Hz [N, 3]: targets never hit twice alike, joined by smooth glides."""
    tracks = []
    for name, gain in zip(("f1", "f2", "f3"), voice.formant_gains, strict=True):
        miss = rng.normal(0, 0.05, size=score.row.size)
        log_hz = np.log(target(name, score.row) * (gain / voice.tract)) + miss
        tracks.append(np.exp(smooth(log_hz[index], _FORMANT_SECONDS)))
    return np.stack(tracks, axis=1)


def _tract(voice: Voice, formants: np.ndarray, nasal: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Magnitude response [hops, bins] from formants in Hz [hops, 3] and nasality [hops]."""
    power = _fixed_response(voice, frequency)[None]
    for i, base in enumerate((75.0, 100.0, 140.0)):
        width = voice.bandwidth * base * (1 + 0.8 * nasal)
        power = power * _resonance(frequency[None], formants[:, i, None], width[:, None].astype(np.float32))
    notch = np.exp(-(((frequency - 900 / voice.tract) / 350) ** 2)) * 0.85
    return np.sqrt(power) * (1 - nasal[:, None] * notch[None])


def _friction_spectra(voice: Voice, frequency: np.ndarray) -> np.ndarray:
    """Magnitude responses [FRICTIONS, bins], each passing white noise at unit power."""
    rows = []
    for name in FRICTIONS:
        peak, below, above = _FRICTION_BANDS[name]
        octaves = np.log2(np.maximum(frequency, 20) * voice.tract**0.6 / peak)
        shape = np.exp(-0.5 * (octaves / np.where(octaves < 0, below, above)) ** 2)
        rows.append(shape / np.sqrt(np.mean(shape**2)))
    return np.asarray(rows, np.float32)


def _reference_gains(voice: Voice, frequency: np.ndarray) -> tuple[float, float]:
    """Gains that bring a voiced and a whispered AA of this voice to unit power."""
    formants = np.array([[730.0, 1090.0, 2440.0]], np.float32) / voice.tract
    response = _tract(voice, formants, np.zeros(1, np.float32), frequency)[0]
    harmonics = np.arange(1, int(frequency[-1] / voice.f0_hz) + 1)
    lines = 2 / (np.pi * harmonics) * np.interp(harmonics * voice.f0_hz, frequency, response)
    return float(1 / np.sqrt(0.5 * np.sum(lines**2))), float(1 / np.sqrt(np.mean(response**2)))


def _spectra(signal: np.ndarray, hop: int, hops: int) -> np.ndarray:
    """Short-time spectra [hops, 2 hop + 1] under Hann windows of three hops, centred on k hop."""
    window = np.hanning(3 * hop + 1)[:-1].astype(np.float32) / 1.5
    padded = np.pad(signal, (3 * hop // 2, 3 * hop + hop))
    views = np.lib.stride_tricks.sliding_window_view(padded, 3 * hop)[::hop][:hops]
    padded = np.pad(views * window, ((0, 0), (hop // 2, hop - hop // 2)))
    return cast(np.ndarray, scipy.fft.rfft(padded, axis=1))  # scipy's is twice as fast as numpy's on rows


def _overlap_add(spectra: np.ndarray, hop: int, samples: int) -> np.ndarray:
    """The signal [samples] of the short-time spectra made by `_spectra`, after filtering."""
    frames = cast(np.ndarray, scipy.fft.irfft(spectra, n=4 * hop, axis=1)).reshape(-1, 4, hop)
    out = np.zeros((frames.shape[0] + 3, hop), np.float32)
    for k in range(4):
        out[k : k + frames.shape[0]] += frames[:, k]
    return out.reshape(-1)[2 * hop : 2 * hop + samples]


def synthesise(rng: np.random.Generator, score: Score, voice: Voice, *, samples: int, audio_hz: int) -> np.ndarray:
    """Dry speech [samples] float32; a stressed AA has RMS about 1. Deterministic in the state of `rng`."""
    times = control_times(samples, audio_hz)
    index = np.maximum(np.searchsorted(score.start, times, side="right") - 1, 0)
    rows = score.row[index]
    loudness = 10 ** (16 * (score.level[index] - 1) / 20)
    at = np.arange(samples, dtype=np.float64) * (CONTROL_HZ / audio_hz)
    grid = np.arange(times.size)

    def level(name: str, seconds: float) -> np.ndarray:
        return np.interp(at, grid, smooth(target(name, rows) * loudness, seconds)).astype(np.float32)

    hop = audio_hz // _HOPS_PER_SECOND
    hops = -(-samples // hop) + 2
    frequency = np.arange(2 * hop + 1, dtype=np.float32) * (audio_hz / (4 * hop))
    step = CONTROL_HZ // _HOPS_PER_SECOND
    coarse = np.minimum(np.arange(hops) * step, times.size - 1)
    formants = _formants(rng, voice, score, index)[coarse]
    tract = _tract(voice, formants, smooth(target("nasal", rows), _VOICE_SECONDS)[coarse], frequency)
    weights = np.eye(len(FRICTIONS), dtype=np.float32)[_SPECTRUM[rows[coarse]]]
    friction_response = weights @ _friction_spectra(voice, frequency)

    saw, phase = _sawtooth(np.interp(at, grid, _pitch_hz(rng, voice, score, index)), audio_hz)
    voiced_gain, breath_gain = _reference_gains(voice, frequency)
    noise = rng.standard_normal(samples, dtype=np.float32)
    voicing = level("voice", _VOICE_SECONDS) * _shimmer(rng, voice, at, grid)
    breath = level("breath", _NOISE_SECONDS) + voicing * (0.25 if voice.whisper else voice.breathiness) * phase
    source = breath_gain * breath * noise
    if not voice.whisper:
        source += voiced_gain * voicing * saw
    rustle = level("friction", _NOISE_SECONDS) * np.roll(noise, samples // 2)
    spectra = _spectra(source, hop, hops) * tract + _spectra(rustle, hop, hops) * friction_response
    return _overlap_add(spectra, hop, samples)


def _shimmer(rng: np.random.Generator, voice: Voice, at: np.ndarray, grid: np.ndarray) -> np.ndarray:
    decibels = smooth(rng.standard_normal(grid.size), 0.02) * voice.shimmer_db * 3
    return np.interp(at, grid, 10 ** (decibels / 20)).astype(np.float32)
