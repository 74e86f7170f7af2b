"""How a drawn head moves: one value a video frame for each control, and a sampler of natural motion."""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d


class Pose(NamedTuple):
    """The controls at one video frame (see `Controls`)."""

    mouth_open: float
    mouth_width: float
    yaw: float
    pitch: float
    roll: float
    x: float
    y: float
    scale: float
    blink: float
    brow: float
    smile: float
    gaze_x: float
    gaze_y: float


CONTROL_NAMES = Pose._fields
NEUTRAL = Pose(*(float(name == "scale") for name in CONTROL_NAMES))
# Controls that drive a picture together, in the order of a signal's numbers (`config.dit.signals` chooses among them).
SIGNALS = {
    "head": ("yaw", "pitch", "roll", "x", "y", "scale"),
    "gaze": ("gaze_x", "gaze_y", "blink"),
    "expression": ("brow", "smile"),
    "mouth": ("mouth_open", "mouth_width"),
}


@dataclasses.dataclass
class Controls:
    """float32 [T] a field: mouth_open 0..1, mouth_width -1 (rounded)..+1 (spread), angles in radians (yaw to the
    viewer's right, pitch down, roll clockwise), x and y in fractions of the frame, scale about 1, blink 0..1,
    brow, smile, gaze_x and gaze_y in -1..1."""

    mouth_open: np.ndarray
    mouth_width: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    blink: np.ndarray
    brow: np.ndarray
    smile: np.ndarray
    gaze_x: np.ndarray
    gaze_y: np.ndarray

    def __len__(self) -> int:
        return len(self.mouth_open)

    def as_array(self) -> np.ndarray:
        """float32 [T, 13] in the order of CONTROL_NAMES."""
        return np.stack([getattr(self, name) for name in CONTROL_NAMES], axis=-1).astype(np.float32)

    def at(self, frame: int) -> Pose:
        """The pose at one video frame."""
        return Pose(*(float(getattr(self, name)[frame]) for name in CONTROL_NAMES))

    @classmethod
    def from_array(cls, array: np.ndarray) -> "Controls":  # [T, 13]
        """The inverse of `as_array`."""
        return cls(*np.asarray(array, np.float32).T)


def signals(controls: np.ndarray) -> dict[str, np.ndarray]:
    """Controls [T, 13] as driving signals by name, each float32 [T, width], deviations from the neutral pose."""
    moved = np.asarray(controls, np.float32) - np.array(NEUTRAL, np.float32)
    return {name: moved[:, [CONTROL_NAMES.index(part) for part in parts]] for name, parts in SIGNALS.items()}


def _wander(rng: np.random.Generator, video_frames: int, sigma: float) -> np.ndarray:
    """Stationary low-passed noise [T] of unit deviation, soft-limited to about +-2."""
    pad = int(4 * sigma) + 1
    noise = gaussian_filter1d(rng.standard_normal(video_frames + 2 * pad), sigma)[pad : pad + video_frames]
    # A Gaussian filter leaves white noise a variance of 1 / (2 sqrt(pi) sigma).
    return 2.0 * np.tanh(noise * np.sqrt(2.0 * np.sqrt(np.pi) * sigma) / 2.0)


def _blinks(rng: np.random.Generator, video_frames: int) -> np.ndarray:
    """Blinks of 3 to 5 frames every 2 to 6 s at 25 frames a second. [T] in 0..1"""
    blink = np.zeros(video_frames)
    frame = int(rng.integers(5, 100))
    while frame < video_frames:
        length = int(rng.integers(3, 6))
        curve = np.sin(np.pi * (np.arange(length) + 0.8) / (length + 0.6)) ** 0.6
        stop = min(frame + length, video_frames)
        blink[frame:stop] = curve[: stop - frame]
        frame += int(rng.integers(50, 150))
    return blink


def _saccades(rng: np.random.Generator, video_frames: int) -> np.ndarray:
    """Gaze that rests mostly near the viewer and jumps within 2 frames. [T, 2] in -1..1"""
    gaze = np.zeros((video_frames, 2))
    frame = 0
    while frame < video_frames:
        target = np.clip(rng.normal(0, (0.38, 0.2)), -0.9, 0.9) * (rng.random() < 0.6)
        gaze[frame:] = target
        frame += int(rng.integers(14, 65))
    return gaussian_filter1d(gaze, 0.8, axis=0, mode="nearest")


def sample_motion(
    rng: np.random.Generator,
    video_frames: int,
    speaking: np.ndarray,
    *,
    mouth_open: np.ndarray,
    mouth_width: np.ndarray,
) -> Controls:
    """Natural motion around a given mouth.

    Args:
      rng: the generator of everything but the mouth.
      video_frames: T.
      speaking: float32 [T], the loudness envelope in 0..1; emphasis nods the head and lifts the brows.
      mouth_open, mouth_width: float32 [T], passed through.
    """
    emphasis = gaussian_filter1d(np.asarray(speaking, np.float64), 3.0, mode="nearest")
    emphasis -= gaussian_filter1d(emphasis, 20.0, mode="nearest")
    gaze = _saccades(rng, video_frames)

    def wander(sigma: float, size: float) -> np.ndarray:
        return size * _wander(rng, video_frames, sigma)

    fields = {
        "mouth_open": mouth_open,
        "mouth_width": mouth_width,
        "yaw": wander(16.0, 0.1) + wander(60.0, 0.05),
        "pitch": wander(16.0, 0.05) + 0.22 * emphasis,
        "roll": wander(20.0, 0.045),
        "x": wander(25.0, 0.012),
        "y": wander(25.0, 0.008) + 0.025 * emphasis,
        "scale": 1.0 + wander(30.0, 0.012),
        "blink": _blinks(rng, video_frames),
        "brow": np.clip(wander(14.0, 0.35) + 1.2 * emphasis, -1.0, 1.0),
        "smile": np.clip(0.25 + wander(30.0, 0.35), -1.0, 1.0),
        "gaze_x": gaze[:, 0],
        "gaze_y": gaze[:, 1],
    }
    return Controls(**{name: np.asarray(value, np.float32) for name, value in fields.items()})


# Deviation, and frames over which it is smooth, of a performance: wide and quick enough to tell its parts from another.
_PERFORMED = {
    "yaw": (0.12, 12.0),
    "pitch": (0.07, 10.0),
    "roll": (0.05, 10.0),
    "x": (0.014, 12.0),
    "y": (0.011, 12.0),
    "scale": (0.017, 10.0),
    "brow": (0.5, 6.0),
    "smile": (0.5, 8.0),
    "gaze_x": (0.4, 6.0),
    "gaze_y": (0.25, 6.0),
}


def perform(rng: np.random.Generator, motion: Controls) -> Controls:
    """The same mouth, everything else as an actor would move it for a camera that reads signals.

    Every control wanders through its range by itself, whatever is said; lids close for longer than in a blink.
    """
    length = len(motion)
    fields = {name: _performed(rng, name, length) for name in _PERFORMED}
    fields["blink"] = np.clip(1.5 * (_wander(rng, length, 4.0) - 0.5), 0.0, 1.0)
    return dataclasses.replace(motion, **{name: value.astype(np.float32) for name, value in fields.items()})


def _performed(rng: np.random.Generator, name: str, length: int) -> np.ndarray:
    """One control of a performance. [T]"""
    size, sigma = _PERFORMED[name]
    wandered = getattr(NEUTRAL, name) + size * _wander(rng, length, sigma)
    return np.clip(wandered, -1.0, 1.0) if name in SIGNALS["expression"] else wandered


# Controls whose effect is a small part of what varies in a picture.
_SMALL = ("x", "y", "scale", "gaze_x", "gaze_y", "brow", "smile")


def twin(rng: np.random.Generator, motion: Controls) -> Controls:
    """The same motion but for one control of `_SMALL`, which is performed anew."""
    name = _SMALL[int(rng.integers(len(_SMALL)))]
    return dataclasses.replace(motion, **{name: _performed(rng, name, len(motion)).astype(np.float32)})
