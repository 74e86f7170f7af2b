"""Flat painting in head coordinates: filled shapes on a turning head, drawn supersampled with OpenCV.

The head is about 2 units tall: x to the viewer's right, y down, z towards the viewer, the origin between the eyes and
the nose. A turn moves near points more than far ones, which is all the perspective there is.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from avatar_jax.data.controls import Pose
from avatar_jax.data.identity import Colour

SUPERSAMPLE = 3
UNIT = 0.335  # one head unit as a fraction of the frame
_SHIFT = 6  # fractional bits of a coordinate
PIVOT = np.array([0.0, 0.75, -0.15])  # the top of the neck
JAW_DROP = 0.1  # head units the chin falls at the widest opening


@dataclasses.dataclass(frozen=True)
class Shape:
    """A filled polygon, or a stroke of `stroke` head units along it when that is positive.

    points: [n, 3] head coordinates; jaw: [n] how far each point follows the chin, in 0..1.
    """

    points: np.ndarray
    colour: tuple[int, int, int]
    jaw: np.ndarray
    stroke: float = 0.0


def paint_of(colour: Colour) -> tuple[int, int, int]:
    """8-bit RGB of a colour in 0..1."""
    return (round(colour[0] * 255), round(colour[1] * 255), round(colour[2] * 255))


def shape(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray | float,
    colour: Colour,
    *,
    jaw: np.ndarray | float = 0.0,
    stroke: float = 0.0,
) -> Shape:
    """A `Shape` from coordinate arrays [n]; z and jaw broadcast."""
    x, y, depth, follow = np.broadcast_arrays(x, y, z, jaw)
    return Shape(np.stack([x, y, depth], -1).astype(np.float64), paint_of(colour), follow.astype(float), stroke)


def surface(x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    """Height z of the face above its outline plane: an ellipsoid."""
    return 0.85 * np.sqrt(np.maximum(0.0, 1.0 - np.square(x / 0.98) - np.square(np.asarray(y) / 1.3)))


def oval(
    cx: float, cy: float, rx: float, ry: float, *, power: float = 2.0, points: int = 28
) -> tuple[np.ndarray, np.ndarray]:
    """x and y [points] of a superellipse: power 2 is an ellipse, larger is squarer."""
    angle = np.linspace(0.0, 2.0 * np.pi, points, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    e = 2.0 / power
    return cx + rx * np.sign(c) * np.abs(c) ** e, cy + ry * np.sign(s) * np.abs(s) ** e


def project(shapes: Sequence[Shape], pose: Pose, size: int) -> list[np.ndarray]:
    """Fixed-point canvas coordinates int32 [n, 2] of every shape for one pose."""
    points = np.concatenate([s.points for s in shapes])
    points[:, 1] += np.concatenate([s.jaw for s in shapes]) * (JAW_DROP * pose.mouth_open)
    sy, cy = np.sin(pose.yaw), np.cos(pose.yaw)
    sp, cp = np.sin(pose.pitch), np.cos(pose.pitch)
    sr, cr = np.sin(pose.roll), np.cos(pose.roll)
    turn = np.array([[cy, -sy * sp], [0.0, cp], [sy, cy * sp]])  # columns: screen x and y after yaw, then pitch
    roll = np.array([[cr, sr], [-sr, cr]])
    flat = (points - PIVOT) @ (turn @ roll) * pose.scale + PIVOT[:2]
    return _fixed(flat, shapes, (0.5 + pose.x, 0.5 + pose.y), size)


def place(shapes: Sequence[Shape], shift: tuple[float, float], size: int) -> list[np.ndarray]:
    """As `project` for parts that do not turn: only shifted, by fractions of the frame."""
    flat = np.concatenate([s.points[:, :2] for s in shapes])
    return _fixed(flat, shapes, (0.5 + shift[0], 0.5 + shift[1]), size)


def _fixed(flat: np.ndarray, shapes: Sequence[Shape], centre: tuple[float, float], size: int) -> list[np.ndarray]:
    side = size * SUPERSAMPLE
    # OpenCV puts integer coordinates at pixel centres, hence the half.
    pixels = (flat * UNIT + centre) * side - 0.5
    fixed = np.round(pixels * (1 << _SHIFT)).astype(np.int32)
    return np.split(fixed, np.cumsum([len(s.points) for s in shapes])[:-1])


def paint(canvas: np.ndarray, shapes: Sequence[Shape], outlines: Sequence[np.ndarray]) -> None:
    """Draws the shapes in order onto the supersampled canvas [S, S, 3], in place."""
    unit = UNIT * canvas.shape[0]
    for item, outline in zip(shapes, outlines, strict=True):
        if item.stroke > 0.0:
            width = max(1, round(item.stroke * unit))
            cv2.polylines(canvas, [outline], False, item.colour, width, cv2.LINE_AA, _SHIFT)
        else:
            cv2.fillPoly(canvas, [outline], item.colour, cv2.LINE_AA, _SHIFT)
