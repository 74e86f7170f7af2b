"""What is worn on the head: hair, hats, beards, glasses and antennae, as shapes in head coordinates."""

import numpy as np

from avatar_jax.data.canvas import Shape, oval, shape, surface
from avatar_jax.data.face import half_width, lerp, outline
from avatar_jax.data.identity import Colour, Identity, mix, shade


def behind(who: Identity) -> list[Shape]:
    """The parts behind the body and the face."""
    wide = half_width(who)
    dark = shade(who.hair_colour, 0.22)
    if who.kind in ("robot", "alien"):
        return _antennae(who)
    if who.hair == "long":
        x = np.array([-0.9, -1.08, -1.2, -1.22, -1.1, 1.1, 1.22, 1.2, 1.08, 0.9]) * (wide + 0.06)
        y = np.array([-0.7, -0.3, 0.4, 1.1, 1.55, 1.55, 1.1, 0.4, -0.3, -0.7])
        return [shape(*oval(0.0, -0.28, wide * 1.14, 0.88), -0.3, dark), shape(x, y, -0.3, dark)]
    if who.hair == "bob":
        return [shape(*oval(0.0, 0.05, wide * 1.22, 1.1, power=2.9, points=44), -0.3, dark)]
    if who.hair == "bun":
        return [
            shape(*oval(0.0, -1.12, 0.34, 0.3), -0.35, dark),
            shape(*oval(-0.05, -1.16, 0.22, 0.19), -0.3, who.hair_colour),
        ]
    if who.hair == "curly":
        return _curls(wide * 1.02, 0.92, 0.3, np.linspace(-0.12, 1.12, 11), dark, -0.25)
    return []


def _curls(rx: float, ry: float, radius: float, turns: np.ndarray, colour: Colour, depth: float) -> list[Shape]:
    """Round locks on an arc over the head; turn 0 is the left ear, 1 the right one."""
    angle = np.pi * (1.0 + turns)
    return [
        shape(*oval(rx * np.cos(a), -0.15 + ry * np.sin(a), radius, radius, points=20), depth, colour) for a in angle
    ]


def _antennae(who: Identity) -> list[Shape]:
    shapes: list[Shape] = []
    sides = (0.0,) if who.kind == "robot" else (-1.0, 1.0)
    for side in sides:
        x = np.array([side * 0.25, side * 0.42])
        shapes.append(shape(x, np.array([-0.9, -1.27]), -0.1, shade(who.skin, 0.4), stroke=0.07))
        shapes.append(shape(*oval(side * 0.42, -1.28, 0.11, 0.11, points=20), -0.1, who.accent))
    return shapes


def front(who: Identity) -> list[Shape]:
    """The parts over the face: fringe, hat, glasses."""
    if who.hair == "cap":
        worn = _cap(who)
    elif who.hair == "bald" or who.kind in ("robot", "ghost"):
        worn = []
    elif who.hair == "mohawk":
        worn = _mohawk(who)
    else:
        worn = _scalp(who)
    return _glasses(who) + worn


def _arc(who: Identity, grow: float, below: float) -> tuple[np.ndarray, np.ndarray]:
    """The grown face edge above y = `below`, from the left round the top to the right."""
    x, y, _ = outline(who, grow, points=72)
    order = np.argsort(np.arctan2(x, -y))
    x, y = x[order], y[order]
    keep = y < below
    return x[keep], y[keep]


def _scalp(who: Identity) -> list[Shape]:
    """Hair from the crown to a hairline: one sweep from a parting, and locks at the sides."""
    below = {"short": -0.12, "bun": -0.1, "curly": -0.3}.get(who.hair, 0.5)
    x, y = _arc(who, 1.09, below)
    wide = half_width(who)
    part = lerp(-0.45, 0.45, who.fringe)
    line = np.linspace(1.0, -1.0, 25)
    bulge = np.sqrt(np.maximum(0.0, 1.0 - np.abs(line) ** 3.0))
    swing = 0.2 * np.abs(line - part) ** 1.5
    hair_y = np.minimum(below, -0.74 * bulge + (1.0 - bulge) * below + swing * bulge)
    hair_x = 0.93 * wide * line
    depth = np.r_[np.zeros(len(x)), 0.8 * surface(hair_x, hair_y)]
    shapes = [shape(np.r_[x, hair_x], np.r_[y, hair_y], depth, who.hair_colour)]
    if who.hair == "curly":
        shapes += _curls(wide * 0.82, 0.72, 0.21, np.linspace(0.2, 0.8, 7), who.hair_colour, 0.2)
    shine_x = np.linspace(-0.62, -0.1, 8) * wide
    shine_y = -0.98 + 0.55 * (shine_x + 0.1) ** 2
    glow = mix(who.hair_colour, (1.0, 0.96, 0.9), 0.28)
    return [*shapes, shape(shine_x, shine_y, 0.25, glow, stroke=0.06)]


def _mohawk(who: Identity) -> list[Shape]:
    x, y = _arc(who, 1.02, -0.35)
    line = np.linspace(0.92, -0.92, 15) * half_width(who)
    low = -0.35 - 0.42 * np.sqrt(np.maximum(0.0, 1.0 - (line / half_width(who)) ** 2))
    stubble = shape(np.r_[x, line], np.r_[y, low], 0.0, mix(who.skin, who.hair_colour, 0.3))
    crest_x = np.array([-0.2, -0.27, -0.24, -0.12, 0.0, 0.12, 0.24, 0.27, 0.2, 0.0])
    crest_y = np.array([-0.62, -1.0, -1.24, -1.36, -1.4, -1.36, -1.24, -1.0, -0.62, -0.5])
    return [stubble, shape(crest_x, crest_y, 0.35, who.hair_colour)]


def _cap(who: Identity) -> list[Shape]:
    """A cap: dome, band and brim in the accent colour."""
    x, y = _arc(who, 1.1, -0.42)
    wide = half_width(who)
    dome = shape(x, y, 0.05, who.accent)
    line = np.linspace(-1.0, 1.0, 17)
    brim_low = -0.42 - 0.12 * (1.0 - line**2)
    brim_top = -0.56 - 0.2 * (1.0 - line**2)
    both = np.r_[line, line[::-1]] * wide * 1.06
    level = np.r_[brim_low, brim_top[::-1]]
    brim = shape(both, level, 0.75 * np.sqrt(np.maximum(0.0, 1.0 - (both / (1.1 * wide)) ** 2)), shade(who.accent, 0.3))
    button = shape(*oval(0.0, -1.09, 0.09, 0.06, points=16), 0.0, shade(who.accent, 0.3))
    return [button, dome, brim]


def beard(who: Identity) -> list[Shape]:
    """Facial hair under the mouth, following the jaw."""
    colour = shade(who.hair_colour, 0.08)
    if who.beard == "full":
        x, y, jaw = outline(who, 1.02, points=60)
        keep = y > 0.16
        x, y, jaw = x[keep], y[keep], jaw[keep]
        line = np.linspace(-1.0, 1.0, 21)
        top = 0.16 + 0.2 * (1.0 - np.abs(line) ** 6)
        px, py = np.r_[x, 0.97 * half_width(who) * line], np.r_[y, top]
        return [shape(px, py, np.r_[x * 0, 0.8 * surface(line * 0.9, top)], colour, jaw=np.r_[jaw, line * 0])]
    if who.beard == "goatee":
        x, y = oval(0.0, 0.72, 0.36, 0.36, power=2.6)
        return [shape(x, y, 0.75, colour, jaw=np.clip((y - 0.35) / 0.5, 0.0, 1.0))]
    if who.beard == "moustache":
        line = np.linspace(-1.0, 1.0, 15)
        top = 0.29 + 0.13 * np.abs(line) ** 1.5
        low = top + 0.16 * (1.0 - line**2) ** 0.5
        return [shape(0.38 * np.r_[line, line[::-1]], np.r_[top, low[::-1]], 0.98, colour)]
    return []


def _glasses(who: Identity) -> list[Shape]:
    if who.glasses == "none":
        return []
    apart, cy = lerp(0.31, 0.38, who.eye_spacing), lerp(-0.2, -0.08, who.eye_height)
    radius = 0.34 if who.kind == "cartoon" else 0.28
    apart = max(apart, radius + 0.06)
    frame = shade(who.accent, 0.45)
    shapes = []
    for side in (-1.0, 1.0):
        x, y = oval(side * apart, cy, radius, radius * 0.9, power=2.0 if who.glasses == "round" else 4.0, points=36)
        closed_x, closed_y = np.r_[x, x[:1]], np.r_[y, y[:1]]
        shapes.append(shape(closed_x, closed_y, 0.95 * surface(apart, cy), frame, stroke=0.05))
        arm_x = side * np.array([apart + radius, half_width(who)])
        shapes.append(shape(arm_x, np.array([cy, cy - 0.02]), np.array([0.6, 0.0]), frame, stroke=0.045))
    bridge = np.array([-(apart - radius), apart - radius])
    return [*shapes, shape(bridge, np.array([cy, cy]), 0.9, frame, stroke=0.05)]
