"""Key/value memory of a stream, and the layer loop: the only file that knows how layers are laid out.

One buffer a layer holds `[reference | ring of blocks]`, keys after RoPE, so attention reads it as it is: the order of
keys does not matter. The reference's keys are kept unrotated beside it, because its position rolls with the stream.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.nn.rope import Phase, rotate


@flax.struct.dataclass
class KVCache:
    """One layer's memory; R reference tokens, then `window` slots of S tokens."""

    k: jax.Array  # [B, R + window S, N, K], rotated
    v: jax.Array  # [B, R + window S, N, K]
    reference_k: jax.Array  # [B, R, N, K], not rotated


class Stacked(NamedTuple):
    """One layer of a stacked memory: written where it lies, read as a slice."""

    every: KVCache  # [L, ...]
    index: jax.Array  # int32 []

    @property
    def k(self) -> jax.Array:
        return self.every.k[self.index]

    @property
    def v(self) -> jax.Array:
        return self.every.v[self.index]

    @property
    def reference_k(self) -> jax.Array:
        return self.every.reference_k[self.index]


Memory = KVCache | Stacked


class Read(NamedTuple):
    """All layers' memories for a call that leaves them as they are, as the backward pass of a block wants them.

    What a layer wrote would else be kept for every layer: the whole memory as often as there are layers.
    """

    every: Any


def empty(reference_k: jax.Array, reference_v: jax.Array, slots: int) -> KVCache:
    """A layer's memory holding the reference [B, R, N, K] and `slots` free tokens."""
    free = jnp.zeros((reference_k.shape[0], slots, *reference_k.shape[2:]), reference_k.dtype)
    return KVCache(jnp.concatenate([reference_k, free], 1), jnp.concatenate([reference_v, free], 1), reference_k)


def places(times: np.ndarray, capacity: int, sink: int) -> np.ndarray:
    """Ring places of latent frames: the first `sink` stay for ever, the newest `capacity - sink` take turns, int32."""
    return np.where(times < sink, times, sink + (times - sink) % (capacity - sink)).astype(np.int32)


def refill(cache: KVCache, reference_k: jax.Array, reference_v: jax.Array, stream: int | jax.Array = 0) -> KVCache:
    """The same rings, behind another reference [n, R, N, K] in n streams; its keys are turned at the next `commit`."""
    put, at = jax.lax.dynamic_update_slice, (stream, 0, 0, 0)
    return KVCache(cache.k, put(cache.v, reference_v, at), put(cache.reference_k, reference_k, at))


def _write(whole: jax.Array, part: jax.Array, at: Any, layer: jax.Array | None, stream: int = 0) -> jax.Array:
    """`part` [n, m, N, K] at token `at` of streams from `stream` on, in a layer's buffer or layer `layer` of all."""
    if layer is None:
        return jax.lax.dynamic_update_slice(whole, part, (stream, at, 0, 0))
    return jax.lax.dynamic_update_slice(whole, part[None], (layer, stream, at, 0, 0))


def commit(cache: Memory, k: jax.Array, v: jax.Array, *, slots: jax.Array | np.ndarray, reference: Phase) -> Memory:
    """Writes a block's rotated keys and its values into the ring, and turns the reference to its position.

    Args:
      cache: the layer's memory.
      k: [B, S, N, K], rotated.
      v: [B, S, N, K].
      slots: int32 [B, n], or [1, n] for streams in step: a block is cut into n equal pieces, and piece i goes to the
        i-th of these places, counted in pieces. One piece where blocks fill the ring evenly; one a latent frame where
        they do not.
      reference: phases of the reference's current position, [R, K/2] or [B, R, K/2].
    """
    every, layer = (cache, None) if isinstance(cache, KVCache) else cache
    held, (rows, pieces) = every.reference_k.shape[-3], slots.shape
    keys, values, piece = every.k, every.v, k.shape[1] // pieces
    if held:
        keys = _write(keys, rotate(cache.reference_k, reference), 0, layer)
    for row, i in itertools.product(range(rows), range(pieces)):
        streams = slice(row, row + 1) if rows > 1 else slice(None)
        at, part = held + slots[row, i] * piece, slice(i * piece, (i + 1) * piece)
        keys = _write(keys, k[streams, part], at, layer, row)
        values = _write(values, v[streams, part], at, layer, row)
    written = KVCache(keys, values, every.reference_k)
    return written if layer is None else Stacked(written, layer)


def read_slot(cache: KVCache, slot: int | jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the block of `tokens` in a slot of a layer's ring."""
    at = cache.reference_k.shape[1] + slot * tokens
    k, v = (jax.lax.dynamic_slice_in_dim(side, at, tokens, 1) for side in (cache.k, cache.v))
    return k, v


def write_slot(cache: KVCache, keys_values: tuple[jax.Array, jax.Array], slot: int | jax.Array) -> KVCache:
    """The inverse of `read_slot`."""
    k, v = keys_values
    at = cache.reference_k.shape[1] + slot * k.shape[1]
    return KVCache(_write(cache.k, k, at, None), _write(cache.v, v, at, None), cache.reference_k)


def readable(cache: Memory, tokens: jax.Array | np.ndarray) -> Any:
    """How many keys, from the first, hold something when `tokens` ring tokens are filled, in `tokens`' shape."""
    return cache.reference_k.shape[1] + tokens


def layer(tree: Any, index: int) -> Any:
    """Layer `index` of weights or states, stacked along a leading axis or held in a tuple."""
    return tree[index] if isinstance(tree, tuple) else jax.tree.map(lambda leaf: leaf[index], tree)


def unstack(tree: Any, layers: int) -> tuple:
    """Stacked layers as a tuple of layers, the form an unrolled program reads without copies."""
    return tuple(layer(tree, index) for index in range(layers))


def stack(layers: tuple) -> Any:
    """The inverse of `unstack`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def nothing(weights: Any) -> Any:
    """A state without content, in the layout of `weights`."""
    return ((),) * len(weights) if isinstance(weights, tuple) else ()


def each(weights: Any, f: Callable[..., Any], *states: Any) -> Any:
    """What `f` makes of every layer's states, in the layout of `weights`."""
    return tuple(map(f, *states)) if isinstance(weights, tuple) else jax.vmap(f)(*states)


def loop(
    body: Callable[..., tuple[Any, Any]], x: Any, weights: Any, *states: Any, start: int, stop: int
) -> tuple[Any, Any]:
    """Runs layers start..stop: `body(x, weights, *states) -> (x, new state)`, each with its own slice of them.

    Stacked weights and states are scanned; tuples of layers are unrolled.

    Returns:
      x and the new states, in the layout of `weights`.
    """
    if isinstance(weights, tuple):
        new = []
        for index in range(start, stop):
            with jax.named_scope(f"layer{index}"):
                x, state = body(x, weights[index], *(layer(tree, index) for tree in states))
            new.append(state)
        return x, tuple(new)
    part = jax.tree.map(lambda leaf: leaf[start:stop], (weights, *states))
    return jax.lax.scan(lambda carry, xs: body(carry, *xs), x, part)


def rewrite(
    body: Callable[..., tuple[Any, Any]], x: Any, weights: Any, memories: Any, cache: Any, *, start: int, stop: int
) -> tuple[Any, Any]:
    """`loop` where every layer replaces its `KVCache`: `body(x, weights, memories, memory) -> (x, memory)`.

    Stacked caches are carried through the scan and written in place; as scanned inputs and outputs they would be held
    twice. Weights are read by index, so that a run of blocks needs no copy of them.

    Returns:
      x and the memory of all layers, those from start to stop replaced.
    """
    if isinstance(weights, tuple):
        x, new = loop(body, x, weights, memories, cache, start=start, stop=stop)
        return x, (*cache[:start], *new, *cache[stop:])

    def step(carry, index):
        x, cache = carry
        own, seen = jax.tree.map(lambda leaf: leaf[index], (weights, memories))
        x, memory = body(x, own, seen, Stacked(cache, index))
        return (x, memory.every), None

    return jax.lax.scan(step, (x, cache), jnp.arange(start, stop, dtype=jnp.int32))[0]
