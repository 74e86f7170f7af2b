"""Clips for the watermark: the drawn world, photographs before a hand-held camera, and ten thousand unmarked ones."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from avatar_jax.data import source, world
from tests.acceptance import absent

FRAMES = 50  # 2 s
UNSEEN = 700_000  # a seed that no training run uses
SAMPLES = Path(os.environ.get("AVATAR_SAMPLES", absent.ROOT.parent / "shared" / "samples"))


def drawn(count: int, size: int = 96, frames: int = FRAMES) -> Iterator[np.ndarray]:
    """Clips of the drawn world, each somebody else, uint8 [T, size, size, 3]."""
    for index in range(count):
        yield source.clip(UNSEEN, index, video_frames=frames, size=size)["frames"]


def enlarged(clip: np.ndarray, factor: int = 4) -> np.ndarray:
    """As the file command enlarges small frames before it encodes them."""
    return np.stack([cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) for frame in clip])


@functools.lru_cache
def pictures() -> list[np.ndarray]:
    """Photographs where there are any, else drawn portraits, uint8 [H, W, 3]."""
    found = [cv2.imread(str(path)) for path in sorted(SAMPLES.glob("*.jpg"))]
    drawn_ones = [world.portrait(source.identity_of(UNSEEN, index)) for index in range(3)]
    return [photo[..., ::-1] for photo in found if photo is not None] or drawn_ones


def hand_held(index: int, height: int, width: int, frames: int = FRAMES) -> np.ndarray:
    """A photograph that sways, turns and breathes under a sensor's noise, uint8 [T, H, W, 3]."""
    rng, picture = np.random.default_rng([UNSEEN, index]), pictures()[index % len(pictures())]
    rows, columns = picture.shape[:2]
    scale, t = 1.2 * max(height / rows, width / columns), np.arange(frames) / 25
    sway = [rng.uniform(2, 9) * np.sin(2 * np.pi * (rng.uniform(0.2, 1.0) * t + rng.random())) for _ in range(4)]
    shots = []
    for x, y, turn, breath in np.stack(sway, -1) * (0.3 + width / 1280):
        place = cv2.getRotationMatrix2D((columns / 2, rows / 2), 0.2 * turn, scale * (1 + 0.002 * breath))
        place[:, 2] += width / 2 - columns / 2 + x, height / 2 - rows / 2 + y
        shot = cv2.warpAffine(picture, place, (width, height), borderMode=cv2.BORDER_REFLECT)
        shots.append(np.clip(shot + rng.normal(0, 1.5, (height, width, 1)) + 0.5, 0, 255).astype(np.uint8))
    return np.stack(shots)


def unmarked(count: int) -> Iterator[np.ndarray]:
    """Different grey clips [T, H, W] without a mark: cut, turned, lit and grained from a hundred longer ones."""
    films = [film.mean(-1) for film in drawn(60, frames=150)]
    films += [hand_held(index, 96, 128, frames=150).mean(-1) for index in range(40)]
    films = [film.astype(np.float32) for film in films]
    rng = np.random.default_rng(UNSEEN)
    grain = rng.standard_normal((2 * FRAMES, 192, 192), np.float32)
    for number in range(count):
        film = films[number % len(films)]
        first, side = rng.integers(0, len(film) - FRAMES + 1), rng.integers(64, 97)
        top, left = (rng.integers(0, pixels - side + 1) for pixels in film.shape[1:])
        part = film[first : first + FRAMES, top : top + side, left : left + side]
        part = part[:: rng.choice((-1, 1)), :: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        at, up, over = (rng.integers(0, most) for most in (FRAMES, 96, 96))
        sown = grain[at : at + FRAMES, up : up + side, over : over + side] * np.float32(rng.uniform(0, 2))
        yield np.clip(part * np.float32(rng.uniform(0.6, 1.1)) + sown + 0.5, 0, 255).astype(np.uint8)
