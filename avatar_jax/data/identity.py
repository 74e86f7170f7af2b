"""Who is drawn: the parameters of one face of the drawn world, and a tasteful sampler of them."""

import colorsys
import dataclasses
from typing import Any

import numpy as np

KINDS = ("human", "cartoon", "animal", "robot", "alien", "ghost")
HAIRS = ("bald", "short", "bob", "long", "bun", "curly", "mohawk", "cap")
EARS = ("side", "round", "pointed", "floppy", "none")
BEARDS = ("none", "moustache", "goatee", "full")
GLASSES = ("none", "round", "square")
CLOTHES = ("crew", "vneck", "shirt", "striped")
BACKGROUNDS = ("flat", "gradient", "disc", "hills")
CATEGORIES = {
    "kind": KINDS,
    "hair": HAIRS,
    "ears": EARS,
    "beard": BEARDS,
    "glasses": GLASSES,
    "clothes": CLOTHES,
    "background": BACKGROUNDS,
}

Colour = tuple[float, float, float]  # RGB in 0..1


@dataclasses.dataclass(frozen=True)
class Identity:
    """One face. Names are from CATEGORIES; every other number is in 0..1 and scaled where it is drawn."""

    kind: str
    hair: str
    ears: str
    beard: str
    glasses: str
    clothes: str
    background: str
    face_width: float
    face_square: float
    jaw: float
    ear_size: float
    eye_size: float
    eye_spacing: float
    eye_shape: float
    eye_height: float
    brow_thickness: float
    brow_tilt: float
    nose_size: float
    nose_width: float
    lip_thickness: float
    mouth_width: float
    mouth_height: float
    fringe: float
    skin: Colour
    hair_colour: Colour
    iris: Colour
    lip: Colour
    cloth: Colour
    accent: Colour
    backdrop: Colour
    backdrop_low: Colour

    def vector(self) -> np.ndarray:
        """float32 [V]: the one-hot categories, then the numbers and colours, all in 0..1."""
        values: list[float] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in CATEGORIES:
                values += [float(value == name) for name in CATEGORIES[field.name]]
            else:
                values += list(value) if isinstance(value, tuple) else [value]
        return np.asarray(values, np.float32)


def mix(a: Colour, b: Colour, amount: float) -> Colour:
    """`a` moved towards `b` by `amount` in 0..1."""
    return (a[0] + (b[0] - a[0]) * amount, a[1] + (b[1] - a[1]) * amount, a[2] + (b[2] - a[2]) * amount)


def shade(colour: Colour, amount: float) -> Colour:
    """`colour` darkened by `amount`, drifting to a cool hue as painted shadows do."""
    return mix(colour, (0.16, 0.09, 0.22), amount)


def _hex(text: str) -> Colour:
    return (int(text[0:2], 16) / 255, int(text[2:4], 16) / 255, int(text[4:6], 16) / 255)


def _palette(text: str) -> tuple[Colour, ...]:
    return tuple(_hex(word) for word in text.split())


_SKINS = _palette("ffe3cf f9d2b4 f0bd97 dea174 c48558 a4683f 80502f 5f3a24")  # light to deep
_HAIR_COLOURS = _palette("241c1c 3b2a22 5a3a26 7b4b2a a8743f d9b066 f0dca0 b5502a 8d8d92 d8d8dc")
_DYED = _palette("e2709c 4fa6a8 8a74c9 5b8fd0 79b36b")
_IRISES = _palette("4a2f1e 6b4a2b 3f6f4a 3d6c9c 5c7f91 2b2b33 7c8a5a")
_FURS = _palette("e2934e b4793f 8c6248 a9a7a6 f1e2c8 6e6a70 d9b98c f4f0ea c97b63 8fa3b8")
_METALS = _palette("b9c4cd 9fb3c2 d8d2c4 8fc0bd e0b47a a9b0c9 d99a8b")
_ALIENS = _palette("8fc76a 5fb7a0 6ea8d8 a48fd6 b7d36b 58c0c7")
_SPIRITS = _palette("f4f2f8 e3ecf7 efe4f4 dff0ea f8ecd9")


def _pick(rng: np.random.Generator, options: tuple[Any, ...], weights: tuple[float, ...] | None = None) -> Any:
    share = None if weights is None else np.asarray(weights) / np.sum(weights)
    return options[int(rng.choice(len(options), p=share))]


def _jitter(rng: np.random.Generator, colour: Colour, amount: float = 0.025) -> Colour:
    moved = np.clip(np.asarray(colour) + rng.normal(0, amount, 3), 0.0, 1.0)
    return (float(moved[0]), float(moved[1]), float(moved[2]))


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)


def _skin(rng: np.random.Generator, kind: str) -> Colour:
    if kind in ("human", "cartoon"):
        place = rng.uniform(0, len(_SKINS) - 1.001)
        return _jitter(rng, mix(_SKINS[int(place)], _SKINS[int(place) + 1], place % 1.0), 0.012)
    table = {"animal": _FURS, "robot": _METALS, "alien": _ALIENS, "ghost": _SPIRITS}[kind]
    return _jitter(rng, _pick(rng, table))


def _lip(rng: np.random.Generator, kind: str, skin: Colour) -> Colour:
    """Lips keep the skin's depth and lean to rose; painted lips lean further."""
    if kind in ("robot", "animal", "ghost"):
        return shade(skin, float(rng.uniform(0.35, 0.55)))
    rose = _hsv(rng.uniform(-0.03, 0.02), rng.uniform(0.55, 0.75), rng.uniform(0.68, 0.85))
    return mix(skin, rose, float(rng.uniform(0.45, 0.9)))


def _far(rng: np.random.Generator, avoid: tuple[Colour, ...], draw: Any, least: float) -> Colour:
    """The first of 12 drawn colours at least `least` away from all of `avoid`, else the farthest."""
    options = [draw(rng) for _ in range(12)]
    gaps = [min(float(np.linalg.norm(np.subtract(o, a))) for a in avoid) for o in options]
    good = [o for o, gap in zip(options, gaps, strict=True) if gap >= least]
    return good[0] if good else options[int(np.argmax(gaps))]


def _backdrop(rng: np.random.Generator) -> Colour:
    if rng.random() < 0.8:
        return _hsv(rng.random(), rng.uniform(0.12, 0.32), rng.uniform(0.82, 0.95))
    return _hsv(rng.uniform(0.4, 0.95), rng.uniform(0.35, 0.55), rng.uniform(0.36, 0.55))


def _colours(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    skin = _skin(rng, kind)
    backdrop = _far(rng, (skin,), _backdrop, 0.34)
    hue = colorsys.rgb_to_hsv(*backdrop)[0] + rng.choice([0.33, 0.42, 0.5, 0.58, 0.67])

    def cloth(r: np.random.Generator) -> Colour:
        return _hsv(hue + r.normal(0, 0.04), r.uniform(0.32, 0.58), r.uniform(0.42, 0.76))

    hair = _far(rng, (skin,), lambda r: _jitter(r, _pick(r, _DYED if r.random() < 0.13 else _HAIR_COLOURS)), 0.3)
    fabric = _far(rng, (skin, backdrop), cloth, 0.35)
    low = _hsv(colorsys.rgb_to_hsv(*backdrop)[0] + rng.uniform(-0.12, 0.12), rng.uniform(0.15, 0.4), 0.9)
    return {
        "skin": skin,
        "hair_colour": hair,
        "iris": _jitter(rng, _pick(rng, _IRISES)),
        "lip": _lip(rng, kind, skin),
        "cloth": fabric,
        "accent": _far(rng, (fabric, skin), lambda r: _hsv(hue + r.uniform(0.3, 0.7), 0.48, r.uniform(0.5, 0.88)), 0.3),
        "backdrop": backdrop,
        "backdrop_low": mix(backdrop, low, 0.55),
    }


def _styles(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    person = kind in ("human", "cartoon")
    hair = _pick(rng, HAIRS, (0.7, 1.6, 1.2, 1.3, 0.9, 1.1, 0.5, 0.9)) if person else "bald"
    if kind == "animal" and rng.random() < 0.2:
        hair = "cap"
    bearded = person and hair in ("bald", "short", "mohawk", "cap", "curly") and rng.random() < 0.42
    ears = {
        "animal": _pick(rng, ("round", "pointed", "floppy")),
        "alien": _pick(rng, ("side", "pointed", "none")),
    }
    return {
        "hair": hair,
        "ears": ears.get(kind, "none" if kind == "ghost" else "side"),
        "beard": _pick(rng, BEARDS[1:]) if bearded else "none",
        "glasses": _pick(rng, GLASSES[1:]) if person and rng.random() < 0.24 else "none",
        "clothes": _pick(rng, CLOTHES),
        "background": _pick(rng, BACKGROUNDS, (1.0, 1.4, 0.9, 0.7)),
    }


def sample_identity(rng: np.random.Generator) -> Identity:
    """One random identity: about half humans, the rest cartoons, animals, robots, aliens and ghosts."""
    kind = _pick(rng, KINDS, (0.5, 0.18, 0.14, 0.08, 0.06, 0.04))
    numbers = [f.name for f in dataclasses.fields(Identity) if f.type is float or f.type == "float"]
    genes: dict[str, Any] = {name: float(rng.beta(1.6, 1.6)) for name in numbers}
    return Identity(kind=kind, **_styles(rng, kind), **genes, **_colours(rng, kind))
