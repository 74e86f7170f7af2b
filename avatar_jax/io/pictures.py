"""Videos as they are watched: picture after picture at a steady rate, never more than one of them in memory."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from avatar_jax.io.decoder import open_container
from avatar_jax.io.errors import InputError, open_input


def pictures(container: Any, path: str | os.PathLike[str]) -> Iterator[Any]:
    """Decoded pictures (PyAV frames) of a container's best video track.

    A video that is cut, or damaged further in, ends there. Raises InputError if there is no picture at all.
    """
    track = container.streams.best("video")
    if track is None:
        raise InputError(f"{path}: has no video track; give a video")
    empty = True
    with contextlib.suppress(ValueError):  # FFmpeg's invalid data
        for picture in container.decode(track):
            empty = False
            yield picture
    if empty:
        raise InputError(f"{path}: has no video frames; give a whole video")


@contextlib.contextmanager
def decodable(path: str | os.PathLike[str]) -> Iterator[None]:
    """What PyAV raises on bytes that are no video becomes InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: is not a video that can be decoded; give an mp4, webm or mkv file") from error


def _spans(shown: Iterator[Any], source_fps: float) -> Iterator[tuple[Any, float]]:
    """Each picture, and when the next one takes its place, in seconds from the first one on."""
    current, until = next(shown), 0.0
    start = float(current.time or 0.0)
    for following in shown:
        until = until + 1 / source_fps if following.time is None else float(following.time) - start
        yield current, until
        current = following
    yield current, until + 1 / source_fps


def _steady(shown: Iterator[Any], fps: int, source_fps: float) -> Iterator[np.ndarray]:
    """For every video frame the picture that is on the screen in the middle of it, uint8 RGB [H, W, 3]."""
    frame = 0
    for picture, until in _spans(shown, source_fps):
        while (frame + 0.5) / fps < until:
            yield picture.to_ndarray(format="rgb24")
            frame += 1


@contextlib.contextmanager
def open_frames(path: str | os.PathLike[str], *, fps: int) -> Iterator[Iterator[np.ndarray]]:
    """Opens a video as an iterator of uint8 RGB pictures [H, W, 3], `fps` a second, counted from its first one.

    Of a faster video pictures are left out, of a slower one they are repeated. Raises InputError: missing, unreadable,
    no video, or without pictures.
    """
    with contextlib.ExitStack() as opened:
        with decodable(path):
            file = opened.enter_context(open_input(path, kind="video"))
            container = opened.enter_context(open_container(file))
            shown = pictures(container, path)
            first = next(shown)
            source_fps = float(container.streams.best("video").average_rate or fps)
        yield _steady(itertools.chain([first], shown), fps, source_fps)
