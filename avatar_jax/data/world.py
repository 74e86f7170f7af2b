"""The drawn world: renders an identity under given controls, at any size."""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from avatar_jax.data import face, hair
from avatar_jax.data.canvas import SUPERSAMPLE, Shape, oval, paint, paint_of, place, project, shape
from avatar_jax.data.controls import NEUTRAL, Controls, Pose
from avatar_jax.data.identity import Identity, mix, shade


class _Figure(NamedTuple):
    """The parts of one identity that do not depend on the pose, back to front."""

    behind: list[Shape]
    body: list[Shape]
    head: list[Shape]
    front: list[Shape]


@functools.lru_cache(maxsize=64)
def _figure(who: Identity) -> _Figure:
    head = face.head(who) + hair.beard(who) + face.nose(who)
    return _Figure(hair.behind(who), _body(who), head, hair.front(who))


def _stripe(who: Identity, y: float) -> Shape:
    """A bar across the shoulders, from edge to edge of their outline."""
    level = np.array([y, y, y + 0.08, y + 0.08])
    edge = 1.3 * (1.0 - np.abs((level - 2.0) / 0.86) ** 2.6) ** (1.0 / 2.6)
    return shape(edge * np.array([-1.0, 1.0, 1.0, -1.0]), level, 0.0, who.accent)


def _body(who: Identity) -> list[Shape]:
    """Neck with the chin's shadow, shoulders and the clothes' detail; these shift but do not turn."""
    if who.kind == "ghost":
        return [shape(*oval(0.0, 1.7, 0.98, 1.1, power=2.4, points=40), 0.0, shade(who.skin, 0.12))]
    cloth = who.cloth
    shoulders = shape(*oval(0.0, 2.0, 1.3, 0.86, power=2.6, points=60), 0.0, cloth)
    neck = shape(*oval(0.0, 1.05, 0.34, 0.5, power=4.0), 0.0, shade(who.skin, 0.28))
    if who.clothes == "vneck":
        notch = shape(np.array([-0.33, 0.33, 0.0]), np.array([1.15, 1.15, 1.6]), 0.0, shade(who.skin, 0.28))
        return [shoulders, neck, notch]
    if who.clothes == "shirt":
        flaps = [
            shape(
                s * np.array([0.08, 0.46, 0.62, 0.3]),
                np.array([1.36, 1.06, 1.3, 1.56]),
                0.0,
                mix(cloth, (1, 1, 1), 0.55),
            )
            for s in (-1.0, 1.0)
        ]
        return [neck, shoulders, *flaps]
    ring = shape(*oval(0.0, 1.14, 0.5, 0.17), 0.0, shade(cloth, 0.22))
    hole = shape(*oval(0.0, 1.1, 0.4, 0.14), 0.0, shade(who.skin, 0.28))
    if who.clothes == "crew":
        return [shoulders, neck, ring, hole]
    bars = [_stripe(who, y) for y in (1.27, 1.43)]
    return [shoulders, *bars, neck, ring, hole]


@functools.lru_cache(maxsize=64)
def _background(who: Identity, size: int) -> np.ndarray:
    """uint8 [S, S, 3] at the supersampled size; the caller copies it."""
    side = size * SUPERSAMPLE
    top, low = np.asarray(who.backdrop) * 255, np.asarray(who.backdrop_low) * 255
    ramp = np.linspace(0.0, 1.0, side)[:, None] * (who.background == "gradient")
    canvas = np.repeat(np.round(top + (low - top) * ramp).astype(np.uint8)[:, None], side, axis=1)
    soft = paint_of(mix(who.backdrop, who.backdrop_low, 0.8))
    if who.background == "disc":
        cv2.circle(canvas, (side // 2, side // 2), int(0.46 * side), soft, -1, cv2.LINE_AA)
    if who.background == "hills":
        cv2.ellipse(
            canvas,
            (int(0.12 * side), side),
            (int(0.5 * side), int(0.45 * side)),
            0,
            0,
            360,
            soft,
            -1,
            cv2.LINE_AA,
        )
        deep = paint_of(shade(mix(who.backdrop, who.backdrop_low, 0.8), 0.12))
        cv2.ellipse(canvas, (side, side), (int(0.55 * side), int(0.32 * side)), 0, 0, 360, deep, -1, cv2.LINE_AA)
    canvas.setflags(write=False)
    return canvas


def draw(who: Identity, pose: Pose, size: int = 96) -> np.ndarray:
    """One picture, uint8 RGB [size, size, 3]."""
    figure = _figure(who)
    canvas = _background(who, size).copy()
    moving = face.eyes(who, pose) + face.brows(who, pose) + face.mouth(who, pose)
    shapes = [*figure.behind, *figure.head, *moving, *figure.front]
    outlines = project(shapes, pose, size)
    back = len(figure.behind)
    paint(canvas, shapes[:back], outlines[:back])
    paint(canvas, figure.body, place(figure.body, (0.6 * pose.x, 0.6 * pose.y), size))
    paint(canvas, shapes[back:], outlines[back:])
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)


def render(identity: Identity, controls: Controls, frame: int, size: int = 96) -> np.ndarray:
    """One video frame, uint8 RGB [size, size, 3]."""
    return draw(identity, controls.at(frame), size)


def render_clip(identity: Identity, controls: Controls, size: int = 96) -> np.ndarray:
    """All video frames, uint8 RGB [T, size, size, 3]."""
    return np.stack([draw(identity, controls.at(t), size) for t in range(len(controls))])


def reference(identity: Identity, rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """A portrait, uint8 RGB [size, size, 3]: nearly frontal, eyes open, mouth closed or nearly."""
    yaw, pitch, roll = rng.normal(0.0, (0.05, 0.025, 0.02))
    pose = NEUTRAL._replace(
        yaw=float(yaw),
        pitch=float(pitch),
        roll=float(roll),
        mouth_open=float(max(0.0, rng.uniform(-0.06, 0.06))),
        smile=float(rng.uniform(0.0, 0.6)),
    )
    return draw(identity, pose, size)


def portrait(identity: Identity, size: int = 512) -> np.ndarray:
    """The exactly neutral picture of an identity at any size, uint8 RGB [size, size, 3]."""
    return draw(identity, NEUTRAL._replace(smile=0.35), size)
