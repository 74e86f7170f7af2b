"""A recording through the live engine, block after block, without letting the devices wait for the host."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

BEHIND = 1  # blocks that may still be under way while another one is read


class Engine(Protocol):
    """What is needed of `avatar_jax.stream.session.Session`."""

    def push_audio(self, samples: np.ndarray) -> list[Any]:
        """Takes sound [n], returns the blocks it completes, each uint8 [T, H, W, 3], perhaps not yet computed."""
        ...

    def finish(self) -> list[Any]:
        """Returns what is left."""
        ...


def blocks(engine: Engine, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames of a recording, each block uint8 [T, H, W, 3] as soon as the next one has been started.

    So the devices draw a block while the one before it is read, encoded and shown.
    """
    waiting: collections.deque[Any] = collections.deque()
    for piece in pieces:
        waiting.extend(engine.push_audio(piece))
        while len(waiting) > BEHIND:
            yield np.asarray(waiting.popleft())
    waiting.extend(engine.finish())
    while waiting:
        yield np.asarray(waiting.popleft())
