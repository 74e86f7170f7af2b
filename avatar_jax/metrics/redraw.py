"""The controls of a drawn face whose identity is known, read by drawing it again until it looks like the frame.

Finer than the networks of `reader`, which know no face in particular: a brow that rises by a pixel is seen. Slower too,
and of use only where the identity's parameters are known, which is in this project's drawn world.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from avatar_jax.data import world
from avatar_jax.data.controls import CONTROL_NAMES, NEUTRAL, SIGNALS, Pose
from avatar_jax.data.identity import Identity
from avatar_jax.metrics import reader, signals

# Of each control: a usual deviation from rest, and its limits.
_RANGES = {
    "mouth_open": (0.25, 0.0, 1.0),
    "mouth_width": (0.3, -1.0, 1.0),
    "yaw": (0.12, -1.0, 1.0),
    "pitch": (0.07, -1.0, 1.0),
    "roll": (0.05, -1.0, 1.0),
    "x": (0.015, -0.5, 0.5),
    "y": (0.012, -0.5, 0.5),
    "scale": (0.02, 0.5, 2.0),
    "blink": (0.35, 0.0, 1.0),
    "brow": (0.5, -1.0, 1.0),
    "smile": (0.5, -1.0, 1.0),
    "gaze_x": (0.4, -1.0, 1.0),
    "gaze_y": (0.3, -1.0, 1.0),
}
_UNIT, _LOW, _HIGH = np.array([_RANGES[name] for name in CONTROL_NAMES]).T
_REST = np.array(NEUTRAL)
_BLURS = (1.5, 1.0, 0.7, 0.7)  # pixels, of each round: what is far off is found in soft pictures
_VARIANCE = 384.0  # of a pixel's error, in squared grey levels; neighbours share theirs
_OUTLIER = 30.0  # grey levels from which on an error counts less and less
_PRIOR = 0.1  # weight of rest, in squared usual deviations
_PROBE = 0.3  # usual deviations between two drawings that make a slope
_LONGEST = 1.5  # usual deviations of one round


def _look(picture: np.ndarray, blur: float) -> np.ndarray:
    return cv2.GaussianBlur(picture.astype(np.float32), (0, 0), blur).ravel()


def _misfit(error: np.ndarray, at: np.ndarray) -> float:
    """What is made small: Cauchy's loss of the pixels, and how far from rest."""
    pixels = _OUTLIER**2 * np.log1p(np.square(error / _OUTLIER)).sum() / _VARIANCE
    return float(pixels + _PRIOR * np.square((at - _REST) / _UNIT).sum())


def _round(who: Identity, target: np.ndarray, at: np.ndarray, blur: float) -> np.ndarray:
    """One step of Gauss and Newton from controls `at` [13], shortened until it fits better."""

    def draw(controls: np.ndarray) -> np.ndarray:
        return _look(world.draw(who, Pose(*map(float, controls)), reader.SIZE), blur)

    base = draw(at)
    error = target - base
    probes = np.where(at + _PROBE * _UNIT > _HIGH, -_PROBE, _PROBE)
    slopes = np.stack([(draw(at + row) - base) for row in np.diag(probes * _UNIT)], -1) / probes
    weighted = slopes / (1.0 + np.square(error / _OUTLIER))[:, None] / _VARIANCE
    pull = weighted.T @ error - _PRIOR * (at - _REST) / _UNIT
    step = np.linalg.solve(weighted.T @ slopes + _PRIOR * np.eye(len(at)), pull).clip(-_LONGEST, _LONGEST)
    for share in (1.0, 0.5, 0.25):
        tried = np.clip(at + share * step * _UNIT, _LOW, _HIGH)
        if _misfit(target - draw(tried), tried) < _misfit(error, at):
            return tried
    return at


def _fit(frame: np.ndarray, start: np.ndarray, who: Identity) -> np.ndarray:
    """Controls [13] of one frame, from a first guess."""
    at = start
    for blur in _BLURS:
        at = _round(who, _look(frame, blur), at, blur)
    return at


def read_frames(frames: np.ndarray, who: Identity) -> np.ndarray:
    """Controls float32 [T, 13] in the order of `CONTROL_NAMES`, as `data.controls.signals` takes them.

    What cannot be seen stays near rest: the gaze behind shut lids, brows on a face without.

    Args:
      frames: uint8 RGB [T, H, W, 3] of any size, of this identity.
      who: whose face it is.

    Raises:
      ValueError: as `reader.fit`.
    """
    frames = reader.fit(frames)
    start = np.tile(_REST, (len(frames), 1))
    for name, rows in signals.read_frames(frames).items():
        start[:, [CONTROL_NAMES.index(part) for part in SIGNALS[name]]] += rows
    with ThreadPoolExecutor() as pool:  # drawing lets go of the interpreter
        fitted = pool.map(functools.partial(_fit, who=who), frames, np.clip(start, _LOW, _HIGH))
        return np.stack(list(fitted)).astype(np.float32)
