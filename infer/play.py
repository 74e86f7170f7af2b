"""Recordings through the live engine, block after block, without letting the devices wait for the host."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.io.audio import AudioStream, aligned
from infer.drive import Drive

BEHIND = 1  # blocks that may still be under way while another one is read
Drawn = list[Any]  # blocks, each uint8 [T, H, W, 3], perhaps not yet computed


class Engine(Protocol):
    """What is needed of `avatar_jax.stream.session.Session`."""

    def push_audio(self, samples: np.ndarray, speaker: int = 0) -> Drawn:
        """Takes sound [n], returns the blocks it completes."""
        ...

    def push_signals(self, name: str, rows: np.ndarray, speaker: int = 0) -> None:
        """Takes a driving signal [T, width], one row a video frame."""
        ...

    def finish(self) -> Drawn:
        """Returns what is left."""
        ...


def speak(
    engine: Engine, audio: Sequence[AudioStream], drives: Sequence[Drive], cfg: configs.Config
) -> Iterator[Drawn]:
    """Pushes each speaker's recording and signals, a block at a time and in step, to the end of the longest."""
    while (piece := aligned([stream.read(cfg.block_samples) for stream in audio])).size:
        for speaker, drive in enumerate(drives):
            for name, rows in drive.read(cfg.block_frames).items():
                engine.push_signals(name, rows, speaker)
        yield [drawn for speaker, sound in enumerate(piece) for drawn in engine.push_audio(sound, speaker)]
    yield engine.finish()


def frames(spoken: Iterable[Drawn]) -> Iterator[np.ndarray]:
    """Blocks of frames on the host: the first at once, each other one as soon as the next has been started.

    So the devices draw a block while the one before it is read, encoded and shown.
    """
    waiting: collections.deque[Any] = collections.deque()
    behind = 0
    for drawn in spoken:
        waiting.extend(drawn)
        while len(waiting) > behind:
            yield np.asarray(waiting.popleft())
            behind = BEHIND
    while waiting:
        yield np.asarray(waiting.popleft())
