"""The face: outline, ears, eyes, brows, nose and the talking mouth, as shapes in head coordinates."""

import numpy as np

from avatar_jax.data.canvas import Shape, oval, shape, surface
from avatar_jax.data.controls import Pose
from avatar_jax.data.identity import Colour, Identity, mix, shade

# The mouth's inside is the same in every identity, so that it can be measured from pixels.
INSIDE: Colour = (0.36, 0.06, 0.11)
TEETH: Colour = (0.98, 0.97, 0.94)
TONGUE: Colour = (0.86, 0.36, 0.40)
WHITE: Colour = (0.99, 0.99, 0.98)
DARK: Colour = (0.13, 0.10, 0.14)
OPENING = 0.42  # head units between the lips at mouth_open = 1

_U = np.sin(np.linspace(-0.5 * np.pi, 0.5 * np.pi, 21))  # [-1, 1], dense at the corners


def lerp(low: float, high: float, gene: float) -> float:
    """The value a gene in 0..1 stands for."""
    return low + (high - low) * gene


def half_width(who: Identity) -> float:
    """Half the width of the face in head units."""
    base = {"robot": 0.86, "ghost": 0.88, "animal": 0.86, "alien": 0.8}.get(who.kind, 0.78)
    return base + lerp(-0.07, 0.08, who.face_width)


def outline(who: Identity, grow: float = 1.0, points: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and jaw weight [points] of the face's edge, clockwise from the right ear, scaled by `grow`."""
    power = 5.0 if who.kind == "robot" else lerp(2.05, 2.6, who.face_square)
    x, y = oval(0.0, 0.0, half_width(who), 1.0, power=power, points=points)
    low = np.clip(y, 0.0, 1.0)
    narrow = {"robot": 0.0, "ghost": -0.05, "animal": 0.02, "alien": 0.42}.get(who.kind, lerp(0.08, 0.3, who.jaw))
    x = x * (1.0 - narrow * low**1.6)
    if who.kind == "alien":
        x = x * (1.0 + 0.12 * np.clip(-y, 0.0, 1.0))
    return x * grow, y * grow, low**1.5


def head(who: Identity) -> list[Shape]:
    """Ears, the face with a shaded edge, cheeks and a forehead light; a muzzle on animals."""
    x, y, jaw = outline(who)
    shapes = ears(who) + [shape(x, y, 0.0, shade(who.skin, 0.14), jaw=jaw)]
    shapes.append(shape(x * 0.955 - 0.025, y * 0.965 - 0.02, 0.04, who.skin, jaw=jaw))
    if who.kind == "robot":
        return shapes + _robot_panel(who)
    blush = {"alien": shade(who.skin, 0.2), "animal": shade(who.skin, 0.12)}.get(
        who.kind, mix(shade(who.skin, 0.1), (0.97, 0.36, 0.36), 0.6)
    )
    for side in (-1.0, 1.0):
        for radius, amount in ((0.21, 0.15), (0.15, 0.3)):
            cx, cy = oval(side * 0.6 * half_width(who), 0.3, radius, radius * 0.75)
            shapes.append(shape(cx, cy, surface(cx, cy), mix(who.skin, blush, amount), jaw=0.2))
    if who.kind == "animal":
        mx, my = oval(0.0, 0.52, 0.56, 0.44, power=2.3)
        pale = mix(who.skin, (1.0, 0.97, 0.92), 0.62)
        shapes.append(shape(mx, my, 0.75, pale, jaw=np.clip((my - 0.3) / 0.7, 0, 1)))
    return shapes


def _robot_panel(who: Identity) -> list[Shape]:
    px, py = oval(0.0, -0.17, half_width(who) * 0.84, 0.36, power=5.0)
    panel = shape(px, py, 0.35, shade(who.skin, 0.3))
    bolts = []
    for side in (-1.0, 1.0):
        bx, by = oval(side * half_width(who) * 0.82, 0.84, 0.045, 0.045, points=14)
        bolts.append(shape(bx, by, 0.3, shade(who.skin, 0.35), jaw=1.0))
    return [panel, *bolts]


def ears(who: Identity) -> list[Shape]:
    """Two ears of the identity's style, behind the face."""
    shapes: list[Shape] = []
    grow = lerp(0.8, 1.25, who.ear_size)
    inner = mix(shade(who.skin, 0.2), (0.95, 0.5, 0.5), 0.25)
    wide = half_width(who)
    for side in (-1.0, 1.0):
        if who.ears == "side" and who.kind == "robot":
            parts = [(oval(side * (wide + 0.03), 0.05, 0.13, 0.24 * grow, power=5.0), shade(who.skin, 0.35))]
        elif who.ears == "side":
            outer = oval(side * (wide - 0.01), 0.06, 0.13 * grow, 0.2 * grow)
            parts = [
                (outer, shade(who.skin, 0.06)),
                (oval(side * (wide + 0.01), 0.07, 0.07 * grow, 0.12 * grow), inner),
            ]
        elif who.ears == "round":
            parts = [
                (oval(side * wide * 0.76, -0.82, 0.3 * grow, 0.3 * grow), shade(who.skin, 0.06)),
                (oval(side * wide * 0.76, -0.82, 0.18 * grow, 0.18 * grow), inner),
            ]
        elif who.ears == "pointed":
            tip = -1.02 - 0.3 * grow if who.kind == "animal" else -0.35
            base = ((0.98, -0.25), (0.2, -0.88)) if who.kind == "animal" else ((0.96, 0.2), (0.96, -0.15))
            reach = 0.86 if who.kind == "animal" else 1.05 + 0.25 * grow
            ear = np.array([(side * wide * bx, by) for bx, by in base] + [(side * wide * reach, tip)]).T
            middle = ear.mean(1, keepdims=True)
            parts = [(ear, shade(who.skin, 0.06)), (middle + 0.55 * (ear - middle), inner)]
        elif who.ears == "floppy":
            parts = [(oval(side * wide * 1.02, -0.22, 0.2 * grow, 0.5 * grow, power=2.3), shade(who.skin, 0.4))]
        else:
            parts = []
        shapes += [shape(part[0], part[1], -0.12, colour) for part, colour in parts]
    return shapes


def _bow(power: float) -> np.ndarray:
    """The upper half of a superellipse over _U: 1 in the middle, 0 at the corners."""
    return np.maximum(0.0, 1.0 - np.abs(_U) ** power) ** (1.0 / power)


def eyes(who: Identity, pose: Pose) -> list[Shape]:
    """Both eyes: white, iris and pupil clipped to the lids, a glint and the lash line."""
    big = {"cartoon": 1.45, "alien": 1.5, "ghost": 1.15, "robot": 1.15, "animal": 1.12}.get(who.kind, 1.0)
    wide = lerp(0.165, 0.2, who.eye_size) * big
    tall = wide * {"robot": 0.85, "ghost": 1.5, "cartoon": 1.1}.get(who.kind, lerp(0.66, 0.95, who.eye_shape))
    bow = _bow(5.0 if who.kind == "robot" else lerp(1.75, 2.2, who.eye_shape))
    cy = lerp(-0.2, -0.08, who.eye_height) - (0.06 if who.kind == "cartoon" else 0.0)
    apart = max(lerp(0.31, 0.38, who.eye_spacing), 1.12 * wide + 0.04)
    open_top = (1.0 + 0.08 * pose.brow) * (1.0 - pose.blink) - 0.55 * pose.blink
    top, bottom = -tall * bow * open_top, 0.8 * tall * bow * (1.0 - 0.12 * max(pose.smile, 0.0))
    shapes: list[Shape] = []
    for side in (-1.0, 1.0):
        shapes += _eye(who, pose, side * apart, cy, wide, tall, top, np.maximum(top, bottom))
    return shapes


def _eye(
    who: Identity,
    pose: Pose,
    cx: float,
    cy: float,
    wide: float,
    tall: float,
    top: np.ndarray,
    low: np.ndarray,
) -> list[Shape]:
    depth = surface(cx, cy)
    lid_x = wide * _U

    def inside(x: float, y: float, radius: float, colour: Colour, points: int = 22) -> Shape:
        px, py = oval(x, y, radius, radius, points=points)
        px = np.clip(px, -wide, wide)
        return shape(cx + px, cy + np.clip(py, np.interp(px, lid_x, top), np.interp(px, lid_x, low)), depth, colour)

    solid = who.kind in ("ghost", "alien")  # eyes all iris
    white = DARK if solid else WHITE
    shapes = [shape(cx + np.r_[lid_x, lid_x[::-1]], cy + np.r_[top, low[::-1]], depth, white)]
    gx, gy = pose.gaze_x * wide * 0.4, pose.gaze_y * tall * 0.3
    radius = min(wide, tall) * {"cartoon": 0.72, "animal": 0.98}.get(who.kind, 0.8)
    if not solid:
        shapes += [inside(gx, gy, radius, who.iris), inside(gx, gy, radius * 0.52, DARK, 16)]
    shapes.append(inside(gx - 0.33 * radius, gy - 0.38 * radius, radius * 0.3, WHITE, 12))
    lash = shade(who.skin, 0.75)
    return [*shapes, shape(cx + lid_x, cy + top, depth, lash, stroke=0.035)]


def brows(who: Identity, pose: Pose) -> list[Shape]:
    """Two tapered brows that rise with `brow`; none on faces that have no hair."""
    if who.kind in ("robot", "ghost", "alien"):
        return []
    lift = {"cartoon": 0.14}.get(who.kind, 0.0)
    cy = lerp(-0.2, -0.08, who.eye_height) - 0.265 - lift - 0.07 * pose.brow
    thick = lerp(0.025, 0.055, who.brow_thickness)
    u = np.linspace(-1.0, 1.0, 9)
    colour = shade(who.skin, 0.25) if who.kind == "animal" else shade(who.hair_colour, 0.25)
    shapes = []
    for side in (-1.0, 1.0):
        x = side * (lerp(0.31, 0.38, who.eye_spacing) + 0.19 * u)
        middle = cy + 0.05 * u**2 + lerp(-0.025, 0.05, who.brow_tilt) * u
        half = thick * (1.0 - 0.75 * np.clip(u, -0.2, 1.0) ** 2)
        both = np.r_[x, x[::-1]]
        shapes.append(shape(both, np.r_[middle - half, (middle + half)[::-1]], surface(both, cy), colour))
    return shapes


def nose(who: Identity) -> list[Shape]:
    """A nose that stands out from the face, so that it shows the head's turn."""
    size = lerp(0.8, 1.25, who.nose_size)
    wide = lerp(0.085, 0.13, who.nose_width)
    if who.kind in ("robot", "ghost"):
        return []
    if who.kind == "animal":
        x, y = oval(0.0, 0.17, 1.5 * wide * size, 0.1 * size, power=2.3)
        glint_x, glint_y = oval(-0.04, 0.13, 0.045, 0.025, points=12)
        return [shape(x, y, 1.0, DARK), shape(glint_x, glint_y, 1.03, mix(DARK, WHITE, 0.55))]
    if who.kind == "alien":
        return [shape(*oval(s * 0.05, 0.2, 0.02, 0.04, points=12), 0.95, shade(who.skin, 0.45)) for s in (-1.0, 1.0)]
    tip = 0.12 if who.kind == "cartoon" else 0.15
    dark = mix(shade(who.skin, 0.2), (0.85, 0.35, 0.3), 0.15)
    x, y = oval(0.0, tip, wide * size, 0.085 * size)
    light_x, light_y = oval(-0.02, tip - 0.03, wide * size * 0.55, 0.045 * size, points=16)
    shapes = [shape(x, y, 0.96, dark), shape(light_x, light_y, 1.02, mix(who.skin, WHITE, 0.18))]
    if who.kind == "human":
        bridge = np.array([(-0.035, -0.16), (0.035, -0.16), (wide * size * 0.7, tip), (-wide * size * 0.7, tip)]).T
        shapes.insert(0, shape(bridge[0], bridge[1], np.array([0.82, 0.82, 0.96, 0.96]), shade(who.skin, 0.07)))
    return shapes


def mouth(who: Identity, pose: Pose) -> list[Shape]:
    """Lips, seam, and the inside with teeth and tongue; the gap is OPENING * mouth_open at the middle."""
    spread = pose.mouth_width * (0.22 if pose.mouth_width > 0 else 0.38)
    half = lerp(0.3, 0.36, who.mouth_width) * (1.0 + spread)
    gap = OPENING * min(max(pose.mouth_open, 0.0), 1.0)
    round_ = max(-pose.mouth_width, 0.0)
    bow = _bow(4.5 if who.kind == "robot" else 2.1)
    line = lerp(0.45, 0.49, who.mouth_height) - 0.07 * (pose.smile + 0.3) * (_U**2 - 0.35) * (1.0 - 0.5 * round_)
    top, low = line - 0.22 * gap * bow, line + 0.78 * gap * bow
    depth = 0.84 - 0.16 * (half * _U / 0.36) ** 2 + (0.14 if who.kind == "animal" else 0.0)
    shapes = _lips(who, half, top, low, depth, round_)

    def band(upper: np.ndarray, lower: np.ndarray, colour: Colour, keep: slice = slice(None)) -> Shape:
        x = half * _U[keep]
        y = np.r_[upper[keep], lower[keep][::-1]]
        return shape(np.r_[x, x[::-1]], y, np.r_[depth[keep], depth[keep][::-1]], colour)

    if gap <= 0.0:
        return shapes
    shapes.append(band(top, low, INSIDE))
    tongue = 0.62 * max(pose.mouth_open - 0.3, 0.0) * OPENING
    if tongue > 0.0:
        rise = np.maximum(0.0, 1.0 - (_U / 0.72) ** 2) ** 0.5
        shapes.append(band(np.maximum(low - tongue * rise, top), low, TONGUE, slice(4, -4)))
    shapes.append(band(top, top + min(0.24 * gap, 0.08) * bow, TEETH, slice(3, -3)))
    return shapes


def _lips(
    who: Identity, half: float, top: np.ndarray, low: np.ndarray, depth: np.ndarray, round_: float
) -> list[Shape]:
    """The lip ring around the opening, lower lip lighter, and the seam of a closed mouth."""
    thick = lerp(0.05, 0.1, who.lip_thickness) * {"ghost": 0.6, "animal": 0.55}.get(who.kind, 1.0)
    thick *= 1.0 + 0.3 * round_
    soft = np.maximum(0.0, 1.0 - _U**2) ** 0.6
    cupid = 1.0 - 0.22 * np.exp(-((_U / 0.16) ** 2))
    x = half * 1.07 * _U
    both, z = np.r_[x, x[::-1]], np.r_[depth, depth[::-1]]
    middle = 0.5 * (top + low)
    upper = shape(both, np.r_[top - thick * soft * cupid, middle[::-1]], z, shade(who.lip, 0.1))
    lower = shape(both, np.r_[middle, (low + 1.25 * thick * soft)[::-1]], z, who.lip)
    seam = shape(half * _U, middle, depth, mix(shade(who.lip, 0.45), INSIDE, 0.5), stroke=0.028)
    return [upper, lower, seam]
