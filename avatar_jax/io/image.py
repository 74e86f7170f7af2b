"""Portraits: any PNG, JPEG or WebP to the model's frame, without distortion and without black bars."""

import contextlib
import os
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from avatar_jax.io.errors import InputError, open_input

FORMATS = ("PNG", "JPEG", "WEBP")
LIMIT_PIXELS = 16 * 2**20  # 4096 x 4096: a 20 KB PNG can decode to 800 MB (decompression bombs)
_SCALES = 100  # steps of the published search for a size
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@contextlib.contextmanager
def _boundary(path: str | os.PathLike[str]) -> Iterator[None]:
    """Decoders raise many exception types on damaged bytes: all become InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except InputError:
        raise
    except BOMBS as error:  # Pillow's own limit acts while the header is read, above ours
        raise InputError(f"{path}: is larger than 16 megapixels (4096 x 4096); scale the portrait down") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path}: is not a PNG, JPEG or WebP image; export the portrait as one of them") from error
    except Exception as error:
        raise InputError(f"{path}: is a damaged image that cannot be decoded; export the portrait again") from error


def _flatten(image: Image.Image, ground: str = "white") -> Image.Image:
    """Any mode to RGB; transparency over a ground, 16-bit grey by its high byte."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, ground), layer).convert("RGB")


def _cover_box(size: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
    """The largest centred box of `size` (columns, rows) with the aspect of height x width."""
    columns, rows = size
    scale = min(columns / width, rows / height)
    left, top = (columns - width * scale) / 2, (rows - height * scale) / 2
    return left, top, columns - left, rows - top


def within(area: int, height: int, width: int, cell: int) -> tuple[int, int] | None:
    """The largest picture of about the shape height x width within an area budget (live_avatar.md section 6.1).

    As published: the picture is scaled down in a hundred steps, never up; both sides are then rounded up to the next
    multiple of `cell`; the first result within the budget is taken.

    Args:
      area: pixels at most.
      height: rows of the original.
      width: columns of it.
      cell: both sides are multiples of it.

    Returns:
      rows and columns; None for a shape so long that no scale fits.
    """
    largest = min(1.0, (area / (height * width)) ** 0.5)
    for step in range(_SCALES):
        scale = largest * (1.0 - step / _SCALES)
        rows, columns = (max(-(-int(side * scale) // cell), 1) * cell for side in (height, width))
        if rows * columns <= area:
            return rows, columns
    return None


def fit_portrait(path: str | os.PathLike[str], *, area: int, cell: int) -> tuple[int, int]:
    """Rows and columns that a portrait gets within an area budget, from its header.

    Raises:
        InputError: as `load_portrait`, or a shape that does not fit.
    """
    with (
        open_input(path, kind="portrait") as file,
        _boundary(path),
        Image.open(file, formats=FORMATS) as image,
    ):
        turned = image.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
        height, width = (image.width, image.height) if turned else (image.height, image.width)
    size = within(area, height, width, cell)
    if size is None:
        raise InputError(f"{path}: {width} x {height} is too long for {area} pixels; crop it nearer to a square")
    return size


def _load(path: str | os.PathLike[str], *, height: int, width: int, ground: str) -> Image.Image:
    """An upright RGB picture that covers height x width, cropped at its centre."""
    with (
        open_input(path, kind="portrait") as file,
        _boundary(path),
        Image.open(file, formats=FORMATS) as image,
    ):
        if image.width * image.height > LIMIT_PIXELS:
            size = f"{image.width} x {image.height} pixels"
            raise InputError(f"{path}: is {size}; the limit is 16 megapixels (4096 x 4096), scale the portrait down")
        image.load()
        upright = _flatten(ImageOps.exif_transpose(image), ground)
        box = _cover_box(upright.size, height, width)
        return upright.resize((width, height), Image.Resampling.LANCZOS, box=box)


def load_portrait(path: str | os.PathLike[str], *, height: int, width: int) -> np.ndarray:  # uint8 [H, W, 3]
    """Reads a portrait, upright (EXIF), scaled to cover the frame and cropped at its centre.

    The content decides the format, and the size is checked before a pixel is decoded. Only the first image of
    an animation is read.

    Raises:
        InputError: missing, unreadable, not an image, damaged, or above 16 megapixels.
    """
    return np.asarray(_load(path, height=height, width=width, ground="white"))


def load_mask(path: str | os.PathLike[str], *, height: int, width: int) -> np.ndarray:  # float32 [H, W] in 0..1
    """Reads a mask drawn over a portrait and placed as the portrait is: white 1, black or transparent 0.

    Raises:
        InputError: as `load_portrait`, or a mask with nothing in it.
    """
    mask = np.asarray(_load(path, height=height, width=width, ground="black").convert("L"), np.float32) / 255.0
    if not mask.any():
        raise InputError(f"{path}: is all black; a mask is white where its speaker is")
    return mask
