"""What drives a speaker beside the sound, a block at a time: rows of a file, or read from a driving video."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.data.controls import SIGNALS
from avatar_jax.io import pictures

TOGETHER = 64  # pictures that the reader measures at once: the size it is compiled for


class Drive:
    """Rows of driving signals by name, taken in order from pieces of any length."""

    def __init__(self, pieces: Iterator[Mapping[str, np.ndarray]]):
        """Takes the first piece, so that what it costs to begin is spent before anyone waits for a row."""
        self._pieces, self._rows = pieces, dict(next(pieces, {}))

    def read(self, video_frames: int) -> dict[str, np.ndarray]:
        """Rows of the next video frames, each [T, width], fewer at the end of a signal, then none."""
        while min(map(len, self._rows.values()), default=video_frames) < video_frames:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rows = {name: np.concatenate([rows, piece[name]]) for name, rows in self._rows.items()}
        taken = {name: rows[:video_frames] for name, rows in self._rows.items()}
        self._rows = {name: rows[video_frames:] for name, rows in self._rows.items()}
        return taken


def visible(cfg: configs.Config) -> list[str]:
    """Names of the signals that the model reads and a video of a drawn face shows."""
    return [signal.name for signal in cfg.dit.signals if len(SIGNALS.get(signal.name, ())) == signal.width]


def _measured(shown: Iterator[np.ndarray], names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    from avatar_jax.metrics import reader, signals  # needs JAX

    while batch := [reader.fit(picture[None]) for picture in itertools.islice(shown, TOGETHER)]:
        seen = signals.read_frames(np.concatenate(batch))
        yield {name: seen[name] for name in names}


@contextlib.contextmanager
def open_drive(path: Path, cfg: configs.Config) -> Iterator[Drive]:
    """The signals of a driving video that the model reads, row k for video frame k of the stream."""
    with pictures.open_frames(path, fps=cfg.video.fps) as shown:
        yield Drive(_measured(shown, visible(cfg)))
