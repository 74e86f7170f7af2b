"""What passes inside a network: the output of every linear layer, the stream before and after every block."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from avatar_jax.nn import dense, kv


class Probe:
    """Recorded while a network runs, unrolled and not compiled."""

    def __init__(self) -> None:
        self.outputs: dict[int, list[jax.Array]] = {}
        self.before: list[jax.Array] = []
        self.after: list[jax.Array] = []

    def of(self, layer: dict) -> np.ndarray:
        """What the linear layer with these very weights returned, the last time."""
        return np.asarray(self.outputs[id(layer)][-1])

    def entered(self, block: int, tokens: int) -> np.ndarray:
        """The stream that a block was given, its first tokens."""
        return np.asarray(self.before[block][:, :tokens])

    def left(self, block: int, tokens: int) -> np.ndarray:
        """The stream that a block returned, its first tokens."""
        return np.asarray(self.after[block][:, :tokens])


@contextlib.contextmanager
def probe() -> Iterator[Probe]:
    """Records what runs inside."""
    found, apply, loop = Probe(), dense.apply, kv.loop

    def recorded_apply(p: dict, x: jax.Array) -> jax.Array:
        y = apply(p, x)
        found.outputs.setdefault(id(p), []).append(y)
        return y

    def recorded_loop(body: Any, x: Any, weights: Any, *states: Any, **span: int) -> Any:
        def recorded(x, *more):
            y, state = body(x, *more)
            if isinstance(x, jax.Array):  # not the passes that only make keys and values
                found.before.append(x)
                found.after.append(y)
            return y, state

        return loop(recorded, x, weights, *states, **span)

    with (
        jax.disable_jit(),
        mock.patch.object(dense, "apply", recorded_apply),
        mock.patch.object(kv, "loop", recorded_loop),
    ):
        yield found
