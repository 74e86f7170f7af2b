"""A visible badge in a corner of the picture: this is generated."""

from collections.abc import Callable
from typing import Any

import numpy as np

TEXT, SMALLEST = "AI-generated", 9  # pixels of its letters at least: what can still be read
SHARE, OPACITY = 1 / 16, 0.75  # letters' share of the picture's shorter side; of the plate


def _plate(text: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour float32 [h, w] of a plate, white letters on black, and how much of it is seen, [h, w] in 0..1."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(SMALLEST, round(SHARE * min(height, width)))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    edge = max(1, size // 4)
    plate = Image.new("L", (round(right - left) + 2 * edge, round(bottom - top) + 2 * edge))
    ImageDraw.Draw(plate).text((edge - left, edge - top), text, fill=255, font=font)
    letters = np.asarray(plate, np.float32) / 255
    return letters * 255, OPACITY + (1 - OPACITY) * letters


def make_badge(*, height: int, width: int, text: str = TEXT) -> Callable[[Any], np.ndarray]:
    """A function that puts the badge into the lower left corner of frames uint8 [T, H, W, 3].

    A text too long for the picture becomes its first word. Raises ValueError where that does not fit either.
    """
    for said in (text, text.partition("-")[0]):
        colour, seen = _plate(said, height, width)
        if seen.shape[0] <= height and seen.shape[1] <= width:
            break
    else:
        raise ValueError(f"frames of {height} x {width} are too small for a badge")
    rows, columns = slice(height - seen.shape[0], height), slice(0, seen.shape[1])

    def put(frames: Any) -> np.ndarray:
        shown = np.array(frames)
        under = shown[:, rows, columns].astype(np.float32)
        blend = under + seen[..., None] * (colour[..., None] - under)
        shown[:, rows, columns] = np.round(blend).astype(np.uint8)
        return shown

    return put
