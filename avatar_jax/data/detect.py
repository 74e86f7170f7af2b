"""Where a face is in a picture: what any detector is, one for drawn faces, one for photographs, and both in turn.

Another detector is a function of no arguments that returns a `Detector`, named `module:function` on the command line;
every worker process makes one of its own.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

SIDE = 240  # pixels: pictures are searched with a shorter side of at most this
SMALLEST = 0.12  # of the shorter side: faces below it would fill too few of the model's pixels
AGREE = 0.4  # of the face's size: how far a face may wander through a clip
SEEN = 0.6  # of the looks must find it
TEMPLATE = 32  # pixels of the drawn world's mean face
DRAWN_BOX = (0.25, 0.28, 0.5)  # x, y and side of a face in a picture of the drawn world
DRAWN_FACES, DRAWN_SEED = 64, 31
LIKE = 0.42  # correlation; measured on neutral drawn faces 0.44 to 0.71, on photographs up to 0.36


class Detector(Protocol):
    """Finds the face of a picture."""

    def __call__(self, picture: np.ndarray) -> np.ndarray | None:
        """The main face, x, y, w, h in pixels of uint8 RGB [H, W, 3], from brows to chin; None: there is none."""
        ...


def make(name: str) -> Detector:
    """The detector that `module:function` makes. Raises ValueError for a name that leads to none."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--detector={name}: names no detector ({error}); give module:function") from error


def steady(boxes: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The middle box of a clip's looks, None where too few of them agree."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    middle = np.median(found, 0)
    size = max(middle[2:])
    near = [box for box in found if np.abs((box - middle)[:2] + (box - middle)[2:] / 2).max() < AGREE * size]
    alike = [box for box in near if 0.5 < max(box[2:]) / size < 2.0]
    return np.median(alike, 0) if len(alike) >= SEEN * len(boxes) else None


def _searched(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """The picture at the size in which faces are looked for, and pixels of the original a pixel of it."""
    unit = max(1.0, min(picture.shape[:2]) / SIDE)
    if unit == 1.0:
        return picture, 1.0
    rows, columns = (max(1, round(side / unit)) for side in picture.shape[:2])
    return cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA), unit


def photographs() -> Detector:
    """Local binary patterns in a cascade, OpenCV's frontal faces, which scikit-image carries."""
    from skimage import data, feature

    cascade = feature.Cascade(data.lbp_frontal_face_cascade_filename())

    def find(picture: np.ndarray) -> np.ndarray | None:
        small, unit = _searched(picture)
        shorter = min(small.shape[:2])
        least = max(24, round(SMALLEST * shorter))  # the cascade's own window is 24 pixels
        if shorter < least:
            return None
        found = cascade.detect_multi_scale(
            img=small, scale_factor=1.2, step_ratio=1, min_size=(least, least), max_size=(shorter, shorter)
        )
        if not found:
            return None
        box = max(found, key=lambda box: box["width"])
        return unit * np.array([box["c"], box["r"], box["width"], box["height"]], np.float64)

    return find


def _gradients(picture: np.ndarray) -> np.ndarray:
    """Strength and direction of edges beside their surroundings', whichever side is the darker: float32 [H, W, 3]."""
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255, (0, 0), 0.7)
    x, y = (cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx) for dx in (1, 0))
    strength = np.hypot(x, y)
    strength_near = cv2.blur(strength, (TEMPLATE // 2, TEMPLATE // 2)) + 0.05
    direction = np.arctan2(y, x) * 2  # an edge and its opposite are one
    unit = strength / strength_near
    return np.stack([unit * np.cos(direction), unit * np.sin(direction), unit], -1)


@functools.lru_cache(maxsize=1)
def _template() -> np.ndarray:
    """The mean face of the drawn world, in its edges: float32 [TEMPLATE, TEMPLATE, 3]."""
    from avatar_jax.data import controls, source, world

    size = round(TEMPLATE / DRAWN_BOX[2])
    left, top = (round(part * size) for part in DRAWN_BOX[:2])
    total = np.zeros((TEMPLATE, TEMPLATE, 3), np.float32)
    for index in range(DRAWN_FACES):
        who = source.identity_of(DRAWN_SEED, index)
        pose = controls.NEUTRAL._replace(mouth_open=index % 4 / 4)
        motion = controls.Controls.from_array(np.array([pose], np.float32))
        seen = _gradients(world.render(who, motion, 0, size))
        total += seen[top : top + TEMPLATE, left : left + TEMPLATE]
    return total / DRAWN_FACES


def drawn() -> Detector:
    """Faces of the drawn world: where the edges of a picture are most like those of its mean face."""
    template = _template()

    def find(picture: np.ndarray) -> np.ndarray | None:
        small, unit = _searched(picture)
        shorter = min(small.shape[:2])
        best, box = LIKE, None
        for size in shorter / 1.6 * 1.12 ** -np.arange(18.0):
            if size < max(TEMPLATE / 2, SMALLEST * shorter):
                break
            scale = TEMPLATE / size
            rows, columns = (max(TEMPLATE, round(side * scale)) for side in small.shape[:2])
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            like = cv2.matchTemplate(
                _gradients(cv2.resize(small, (columns, rows), interpolation=method)), template, cv2.TM_CCOEFF_NORMED
            )
            _, value, _, (x, y) = cv2.minMaxLoc(like)
            if value > best:
                best, box = value, unit / scale * np.array([x, y, TEMPLATE, TEMPLATE], np.float64)
        return box

    return find


def faces() -> Detector:
    """Drawn faces first, whose detector does not mistake photographs for them; then photographs."""
    detectors = drawn(), photographs()

    def find(picture: np.ndarray) -> np.ndarray | None:
        return next((box for box in (detector(picture) for detector in detectors) if box is not None), None)

    return find
