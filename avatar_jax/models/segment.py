"""Which layers run together: an audio injector follows some of them, at uneven distances.

"scan" makes a loop of every run of layers between two injectors. "fold" makes one of all layers and asks in it whether
an injector follows: less to compile, and no run's weights are copied out of the stack.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig
from avatar_jax.models import audio
from avatar_jax.nn import kv


def runs(cfg: DitConfig) -> list[tuple[int, int, int | None]]:
    """Runs of blocks (start, stop, injector after the run or None)."""
    stops = [layer + 1 for layer in cfg.audio_inject]
    starts = [0, *stops]
    parts: list[tuple[int, int, int | None]] = list(zip(starts, stops, range(len(stops)), strict=False))
    return [*parts, (starts[-1], cfg.layers, None)] if starts[-1] < cfg.layers else parts


def fold(
    body: Callable, listen: Callable, injectors: Any, heard: tuple[tuple[audio.Heard, ...], ...], cfg: DitConfig
) -> tuple[Callable, jax.Array]:
    """One body for all layers of a stack.

    Args:
      body: `(x, weights, memories, state) -> (x, state)`, one layer.
      listen: `(x, weights, voices) -> x`, one injector.
      injectors: weights of all injectors, stacked.
      heard: each injector's side of every voice.
      cfg: transformer configuration.

    Returns:
      a body whose memories are the layer's and the number of the injector that follows, -1 for none; and those
      numbers, int32 [L].
    """
    voices, which = kv.stack(heard), np.full(cfg.layers, -1, np.int32)
    which[list(cfg.audio_inject)] = np.arange(len(cfg.audio_inject))

    def whole(x: jax.Array, weights: Any, given: tuple[Any, jax.Array], state: Any) -> tuple[jax.Array, Any]:
        memories, injector = given
        x, state = body(x, weights, memories, state)

        def spoken(x: jax.Array) -> jax.Array:
            return listen(x, *jax.tree.map(lambda leaf: leaf[injector], (injectors, voices)))

        return jax.lax.cond(injector >= 0, spoken, lambda x: x, x), state

    return whole, jnp.asarray(which)
