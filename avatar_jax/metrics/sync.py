"""Lip-sync proxies: how well a measured mouth follows the sound.

These are correlations of the mouth opening, as read from drawn faces by this project's reader, with either
the true opening or the loudness of the speech. They are not SyncNet and their numbers do not compare with its
LSE-C and LSE-D.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d

from avatar_jax.metrics.mouth import read_frames

ENVELOPE_SIGMA_FRAMES = 1.0  # 40 ms at 25 frames a second: the reach of lips and jaw
MAX_LAG_FRAMES = 8


class SyncScore(NamedTuple):
    """Pearson r at lag 0, and the lag in frames at which it is highest (positive: the mouth comes late)."""

    r: float
    lag_frames: int


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two tracks [T]; 0 when one of them is constant.

    Raises ValueError unless both have one length of at least two.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size < 2:
        raise ValueError(f"tracks must have one length of at least 2, got shapes {list(a.shape)} and {list(b.shape)}")
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.clip(np.sum(a * b) / scale, -1.0, 1.0)) if scale > 1e-12 else 0.0


def best_lag(a: np.ndarray, b: np.ndarray, max_lag_frames: int) -> int:
    """The shift in [-max_lag_frames, max_lag_frames] at which `a` best correlates with `b`.

    Positive when `a` comes later: a[t] resembles b[t - lag]. Each shift is scored on the overlap; of equal
    scores the smallest shift wins. Raises ValueError when fewer than two frames would overlap.
    """
    frames = len(a)
    if frames < max_lag_frames + 2 or len(b) != frames:
        raise ValueError(f"{frames} and {len(b)} frames are too few, or unequal, for a lag of {max_lag_frames}")

    def score(lag: int) -> float:
        late, early = max(lag, 0), max(-lag, 0)
        return pearson(a[late : frames - early], b[early : frames - late])

    lags = sorted(range(-max_lag_frames, max_lag_frames + 1), key=abs)
    return max(lags, key=score)


def energy_envelope(waveform: np.ndarray, audio_hz: int, fps: int) -> np.ndarray:
    """The loudness contour [T] of speech [samples] that a mouth is expected to follow, in [0, 1].

    RMS of each video frame's own samples (T = ceil(samples * fps / audio_hz), the tail padded with silence),
    smoothed over time with a Gaussian of 40 ms at 25 fps, divided by its 95th percentile, compressed by a
    square root (half-way between amplitude and decibels) and clipped at 1. Level does not matter; digital
    silence gives zeros.
    """
    if waveform.ndim != 1 or waveform.size == 0 or audio_hz % fps:
        raise ValueError(f"waveform must be [samples], audio_hz={audio_hz} a multiple of fps={fps}")
    per_frame = audio_hz // fps
    frames = -(-waveform.size // per_frame)
    padded = np.zeros(frames * per_frame)
    padded[: waveform.size] = waveform
    rms = np.sqrt(np.mean(padded.reshape(frames, per_frame) ** 2, axis=1))
    rms = gaussian_filter1d(rms, ENVELOPE_SIGMA_FRAMES, mode="constant")
    loud = np.percentile(rms, 95)
    return np.sqrt(np.clip(rms / loud, 0, 1)).astype(np.float32) if loud > 0 else np.zeros(frames, np.float32)


def sync_score(
    frames_or_opening: np.ndarray, waveform: np.ndarray, *, audio_hz: int = 16_000, fps: int = 25
) -> SyncScore:
    """How the mouth follows the loudness of the speech (`energy_envelope`).

    Takes uint8 RGB frames [T, H, W, 3], which the reader measures, or an opening [T]. A proxy: it rewards
    opening with the voice, not the right vowel. T and the recording may differ by one frame (the shorter
    counts); more raises ValueError.
    """
    opening = read_frames(frames_or_opening).opening if frames_or_opening.ndim == 4 else frames_or_opening
    envelope = energy_envelope(waveform, audio_hz, fps)
    if abs(len(opening) - len(envelope)) > 1:
        raise ValueError(f"{len(opening)} video frames do not fit {len(envelope)} frames of sound")
    frames = min(len(opening), len(envelope))
    opening, envelope = opening[:frames], envelope[:frames]
    return SyncScore(pearson(opening, envelope), best_lag(opening, envelope, min(MAX_LAG_FRAMES, frames - 2)))
