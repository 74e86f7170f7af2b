"""Recording conditions: what a room, a microphone and a line do to dry speech.

A network that learns from synthetic speech alone must not learn its cleanliness, so every utterance passes
through a random one of these.
"""

from __future__ import annotations

import numpy as np

_FFT_UNIT = 4096  # transforms of a multiple of this length are fast


def _decibel(value: float | np.ndarray) -> float | np.ndarray:
    return 10 ** (value / 20)


def _channel(rng: np.random.Generator, frequency: np.ndarray) -> np.ndarray:
    """Magnitude response of microphone and line: tilt, a few broad bumps, band limits."""
    octaves = np.log2(np.maximum(frequency, 20) / 1000)
    decibels = rng.uniform(-1.5, 3.0) * octaves
    for _ in range(3):
        bump = (octaves - rng.uniform(-3, 3)) / rng.uniform(0.3, 1)
        decibels = decibels + rng.normal(0, 3) * np.exp(-0.5 * bump**2)
    low = rng.uniform(30, 250)
    high = rng.uniform(3300, 7500) if rng.random() < 0.35 else 12_000
    band = (1 + (low / np.maximum(frequency, 1)) ** 4) * (1 + (frequency / high) ** 12)
    return _decibel(decibels) / np.sqrt(band)


def _room(rng: np.random.Generator, audio_hz: int) -> np.ndarray:
    """Impulse response of a small room: the direct sound, then a diffuse tail after 2 to 15 ms."""
    decay_seconds = rng.uniform(0.1, 0.5)
    taps = int(decay_seconds * audio_hz)
    tail = rng.standard_normal(taps) * 10 ** (-3 * np.arange(taps) / taps)
    tail[: int(rng.uniform(0.002, 0.015) * audio_hz)] = 0
    tail *= _decibel(rng.uniform(-22, -7)) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return tail


def _noise(rng: np.random.Generator, frequency: np.ndarray, points: int) -> np.ndarray:
    """Stationary noise [points] of unit power with a random tilt (white to brown)."""
    white = np.fft.rfft(rng.standard_normal(points, dtype=np.float32))
    shape = (np.maximum(frequency, 50) / 50) ** -rng.uniform(0, 1.2)
    noise = np.fft.irfft(white * shape.astype(np.float32), n=points)
    return noise / np.sqrt(np.mean(noise**2))


def _tones(rng: np.random.Generator, samples: int, audio_hz: int) -> np.ndarray:
    """Mains hum, or a few plucked chords, of unit power."""
    time = np.arange(samples) / audio_hz
    out = np.zeros(samples)
    if rng.random() < 0.4:
        mains = rng.choice([50.0, 60.0])
        for harmonic in (1, 2, 3, 5):
            out += rng.uniform(0.1, 1) * np.sin(2 * np.pi * mains * harmonic * time + rng.uniform(0, 6))
    else:
        beat_seconds = rng.uniform(0.25, 1.0)
        beats = int(samples / audio_hz / beat_seconds) + 1
        beat = np.minimum((time / beat_seconds).astype(int), beats - 1)
        envelope = np.exp(-(time - beat * beat_seconds) * rng.uniform(0.5, 4))
        for _ in range(3):
            note = 110 * 2 ** (rng.integers(0, 30, size=beats) / 12)
            tone = 2 * np.pi * np.cumsum(note[beat]) / audio_hz
            out += envelope * (np.sin(tone) + 0.4 * np.sin(2 * tone) + 0.2 * np.sin(3 * tone))
    return out / np.sqrt(np.mean(out**2))


def _knocks(rng: np.random.Generator, noise: np.ndarray, audio_hz: int) -> np.ndarray:
    """Passing sounds of a room (rustle, knocks, a chair): `noise` under a few random swells."""
    time = np.arange(noise.size, dtype=np.float32) / audio_hz
    envelope = np.zeros(noise.size, np.float32)
    for _ in range(int(rng.integers(1, 5))):
        away = (time - rng.uniform(0, time[-1])) / np.exp(rng.uniform(np.log(0.01), np.log(0.3)))
        envelope += rng.uniform(0.1, 1) * np.exp(-np.abs(away))
    return noise * envelope


def record(rng: np.random.Generator, speech: np.ndarray, *, audio_hz: int) -> np.ndarray:
    """A recording [samples] float32 in [-1, 1] of dry speech whose loud vowels have RMS about 1.

    Peak gain -26 to 0 dBFS, noise 20 to 70 dB below the speech (8 to 20 in one of seven), in half of them a
    room, in some hum, music or knocks. Nothing here moves the sound in time by more than the room's first
    reflections.
    """
    samples = speech.size
    points = -(-(samples + audio_hz // 2) // _FFT_UNIT) * _FFT_UNIT
    frequency = np.arange(points // 2 + 1) * (audio_hz / points)
    response = _channel(rng, frequency)
    if rng.random() < 0.5:
        response = response * np.fft.rfft(_room(rng, audio_hz), n=points)
    spectrum = np.fft.rfft(speech, n=points) * response.astype(np.complex64)
    wet = np.fft.irfft(spectrum, n=points)[:samples].astype(np.float32)
    loud = float(np.sqrt(np.mean(wet**2))) or 1.0
    noise = _noise(rng, frequency, points)[:samples]
    wet += loud * _decibel(-(rng.uniform(20, 70) if rng.random() < 0.86 else rng.uniform(8, 20))) * noise
    if rng.random() < 0.2:
        wet += loud * _decibel(-rng.uniform(0, 25)) * _knocks(rng, noise[::-1], audio_hz)
    if rng.random() < 0.2:
        wet += (loud * _decibel(-rng.uniform(15, 40)) * _tones(rng, samples, audio_hz)).astype(np.float32)
    if rng.random() < 0.15:  # a driven preamplifier
        wet = np.tanh(wet * (rng.uniform(0.5, 1.5) / loud / 3))
    peak = float(np.max(np.abs(wet))) or 1.0
    return (wet * (_decibel(rng.uniform(-26, 0)) / peak)).astype(np.float32)
