"""Synthetic utterances with exact mouth truth: the sound and the mouth come from one score of phonemes.

Three parts behind one function: `phoneme.py` composes, `formant.py` sounds it, `recording.py` records it;
this file adds the mouth and samples it at the centres of the video frames.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from avatar_jax.data import formant, phoneme, recording

_LIP_SECONDS = 0.120  # Hann reach of jaw and lips: 60 ms at half height
_SEAL_SECONDS = 0.045  # how long lips take to part from, or come to, a bilabial closure


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A recording and what the mouth did: T = samples * fps / audio_hz video frames."""

    waveform: np.ndarray  # [samples] float32 in [-1, 1]
    opening: np.ndarray  # [T] float32 in [0, 1]; 0 in silence and in bilabial closures
    width: np.ndarray  # [T] float32 in [-1, 1]; negative is rounded, positive spread
    phonemes: tuple[tuple[str, float, float], ...]  # (symbol, start, end) in seconds; SIL and BR are pauses


def _seal(shut: np.ndarray) -> np.ndarray:
    """Factor in [0, 1] on the opening: 0 while the lips are shut, raised-cosine ramps on both sides."""
    reach = round(_SEAL_SECONDS * formant.CONTROL_HZ)
    points = np.arange(shut.size)
    last = np.maximum.accumulate(np.where(shut, points, -reach - 1))
    following = np.minimum.accumulate(np.where(shut, points, shut.size + reach)[::-1])[::-1]
    distance = np.minimum(np.minimum(points - last, following - points), reach)
    return 0.5 - 0.5 * np.cos(np.pi * distance / reach)


def mouth(score: phoneme.Score, *, video_frames: int, fps: int) -> tuple[np.ndarray, np.ndarray]:
    """Opening [T] in [0, 1] and width [T] in [-1, 1] at the frame centres (k + 0.5) / fps.

    Targets are scaled by loudness, smoothed with a centred window (no lag against the sound) and sealed at
    bilabials.
    """
    times = formant.control_times(video_frames, fps)
    index = np.maximum(np.searchsorted(score.start, times, side="right") - 1, 0)
    rows = score.row[index]
    effort = np.clip(0.45 + 0.65 * score.level[index], 0, 1.15)
    opening = formant.smooth(formant.target("opening", rows) * effort, _LIP_SECONDS)
    opening = np.clip(opening * _seal(formant.target("lips_shut", rows) > 0), 0, 1)
    width = np.clip(formant.smooth(formant.target("width", rows), _LIP_SECONDS), -1, 1)
    centres = (np.arange(video_frames) + 0.5) / fps
    opening, width = (np.interp(centres, times, track).astype(np.float32) for track in (opening, width))
    return opening, width


def _score(rng: np.random.Generator, seconds: float) -> phoneme.Score:
    """Mostly running speech, sometimes with long silences, now and then none at all."""
    kind, rate = rng.random(), float(np.exp(rng.uniform(np.log(3.0), np.log(6.5))))
    if kind < 0.03:
        return phoneme.silence(seconds)
    return phoneme.compose(rng, seconds, syllables_per_second=rate, long_pauses=0.6 if kind < 0.12 else 0.06)


def utterance(
    rng: np.random.Generator, samples: int, *, audio_hz: int = 16_000, fps: int = 25, clean: bool = False
) -> Utterance:
    """A random speaker says random syllables for `samples` samples; deterministic in the state of `rng`.

    `clean` leaves out the recording conditions (the waveform then peaks at 0.5). Raises ValueError when the
    rates have no whole number of samples a frame or a control point, or when `samples` is no whole positive
    number of video frames.
    """
    if audio_hz % fps or audio_hz % formant.CONTROL_HZ:
        raise ValueError(f"audio_hz={audio_hz} must be a multiple of fps={fps} and of {formant.CONTROL_HZ}")
    samples_per_frame = audio_hz // fps
    if samples <= 0 or samples % samples_per_frame:
        raise ValueError(f"samples={samples} must be a positive multiple of {samples_per_frame}")
    score = _score(rng, samples / audio_hz)
    dry = formant.synthesise(rng, score, formant.draw_voice(rng), samples=samples, audio_hz=audio_hz)
    if clean:
        waveform = 0.5 * dry / max(float(np.max(np.abs(dry))), 1e-6)
    else:
        waveform = recording.record(rng, dry, audio_hz=audio_hz)
    opening, width = mouth(score, video_frames=samples // samples_per_frame, fps=fps)
    return Utterance(waveform.astype(np.float32), opening, width, score.phonemes)
