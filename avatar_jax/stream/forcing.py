"""Self-forcing: what a generator streams, made to be trained on, and its gradient one block at a time.

With s the exit step, drawn once for a rollout, and G the prediction of x0, every block i runs (live_avatar.md section
7.2, Algorithm 1)

(1)  x   <- (1 - s_{k+1}) G(x, k; past) + s_{k+1} e     without gradient, for the steps k before s
(2)  X_i  = G(x, s; past)                                with gradient

and what (2) leaves, without gradient, is the past of the next blocks: in a stream of "timestep" history the keys and
values of (2), noisy as they are, so that training sees the level at which such a stream keeps its past (the history
corruption of the paper); in others those of one more pass over X_i, as the stream makes it; with a knot the next
block's first latents too. There X_i has k latents more than the block shows, and `joined` fuses what two blocks drew.

A rollout may start from data: block 0 then enters (2) as real latents noised to the level of s, so that its history has
the motion of real video and not what the generator makes of it (against motion collapse).

Because nothing but the weights joins the blocks' gradients, they can be had one after the other (Algorithm 2):
`generate` keeps only x and the past, and its backward pass runs (2) once more for each block. `generate_whole` lets
autodiff keep everything, and is what `generate` must equal.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from avatar_jax.core.config import Config
from avatar_jax.diffusion import flow
from avatar_jax.models import dit
from avatar_jax.nn import kv
from avatar_jax.stream import knot, rollout
from avatar_jax.stream.state import BlockInput, Flight, Tied

Past = tuple[Any] | Tied  # one memory, and with the knot engine what ties the next block


class Task(NamedTuple):
    """What a rollout is made from."""

    past: Past  # with nothing but the scene in it, from `begin`
    blocks: BlockInput  # every leaf with a leading axis of blocks, [N, ...]
    cross: Any  # the prompt, or None
    exit_step: jax.Array  # int32 []
    key: jax.Array  # of the noise between steps
    anchor: jax.Array | None = None  # real latents of block 0, [B, F, h, w, C]: starts of the rollouts that have one
    anchored: jax.Array | None = None  # bool [B], which have


class Kept(NamedTuple):
    """What is remembered of a block, instead of all that its gradient needs."""

    x: jax.Array  # that the exit step saw, [B, F, h, w, C]
    knot: jax.Array | None  # that it was shown
    history: Any  # keys and values it left, a pair for each of the places it took, in every layer


def begin(p: dict, held: Any, *, cfg: Config) -> Past:
    """A rollout's past before block 0; held: from `rollout.prefill`."""
    return knot.begin(p, held, cfg=cfg) if cfg.stream.knot else rollout.begin(p, held, 1, cfg=cfg)


def memory_of(past: Past) -> Any:
    """The keys and values of a past."""
    return (past.caches if isinstance(past, Tied) else past)[0]


def _with(past: Past, memory: Any) -> Past:
    return dataclasses.replace(past, caches=(memory,)) if isinstance(past, Tied) else (memory,)


def enter(p: dict, past: Past, block: BlockInput, *, cfg: Config) -> Flight:
    """A block at its first step."""
    return knot.enter(p, past, block, cfg=cfg)[0] if isinstance(past, Tied) else rollout.enter(p, block, cfg=cfg)


def approach(p: dict, past: Past, flight: Flight, task: Task, key: jax.Array, *, cfg: Config) -> jax.Array:
    """Equation (1): from a block's noise to what its exit step sees."""
    table, heard = jnp.asarray(rollout.levels(cfg.stream)), dit.hear(p, flight.voices, cfg=cfg.dit)

    def step(number: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        memory, x = carry
        at = dataclasses.replace(flight, latent=x)
        memory, x0 = rollout.predict(p, memory, at, number, heard, task.cross, cfg=cfg)
        noise = jax.random.normal(jax.random.fold_in(key, number), x.shape)
        return memory, flow.add_noise(x0, noise, table[number + 1]).astype(x.dtype)

    return jax.lax.fori_loop(0, task.exit_step, step, (memory_of(past), flight.latent))[1]


def anchor(x: jax.Array, number: jax.Array, noise: jax.Array, task: Task, cfg: Config) -> jax.Array:
    """What the exit step sees of block 0 where a rollout starts from data: real latents, noised to its level."""
    if task.anchor is None or task.anchored is None:
        return x
    level = jnp.asarray(rollout.levels(cfg.stream))[task.exit_step]
    real = flow.add_noise(task.anchor, noise, level).astype(x.dtype)
    return jnp.where((task.anchored & (number == 0))[:, None, None, None, None], real, x)


def leave(p: dict, past: Past, block: BlockInput, x: jax.Array, task: Task, *, cfg: Config) -> tuple[Any, jax.Array]:
    """Equation (2) from x on: the memory with the block's keys at this level, and X_i [B, F, h, w, C], float32."""
    flight = dataclasses.replace(enter(p, past, block, cfg=cfg), latent=x)
    heard = dit.hear(p, flight.voices, cfg=cfg.dit)
    return rollout.predict(p, memory_of(past), flight, task.exit_step, heard, task.cross, cfg=cfg)


def finish(p: dict, past: Past, flight: Flight, x0: jax.Array, task: Task, *, cfg: Config) -> Past:
    """The past of the next block. past: with the exit step's keys; flight: the block at its first step."""
    if isinstance(past, Tied):
        return knot.finish(p, past, flight, x0, task.cross, cfg=cfg)[0]
    if cfg.stream.history == "timestep":
        return past
    heard = dit.hear(p, flight.voices, cfg=cfg.dit)
    drawn = dataclasses.replace(flight, latent=x0.astype(flight.latent.dtype))
    return (rollout.remember(p, past[0], drawn, flight.latent, heard, task.cross, cfg=cfg),)


def _places(block: BlockInput, cfg: Config) -> tuple[jax.Array, int]:
    """Places in the ring that a block is remembered at, and tokens of each; all streams are in step."""
    count = cfg.stream.block_latents if cfg.stream.knot else 1
    tokens = cfg.stream.block_latents * cfg.tokens_per_frame // count
    return jnp.asarray(block.place.slots)[0, :count], tokens


def _draw(p: dict, past: Past, number: jax.Array, block: BlockInput, task: Task, cfg: Config) -> tuple[Past, Any]:
    """One block, its gradient through the exit step alone: the past of the next, and (X_i, what is kept of it)."""
    still = jax.lax.stop_gradient
    frozen, before, key = still(p), still(past), jax.random.fold_in(task.key, number)
    flight = still(enter(frozen, before, block, cfg=cfg))
    x = still(approach(frozen, before, flight, task, key, cfg=cfg))
    x = anchor(x, number, flight.latent, task, cfg)
    memory, drawn = leave(p, before, block, x, task, cfg=cfg)
    past = still(finish(frozen, _with(before, still(memory)), flight, still(drawn), task, cfg=cfg))
    places, tokens = _places(block, cfg)

    def take(layer: kv.KVCache) -> tuple[tuple[jax.Array, jax.Array], ...]:
        return tuple(kv.read_slot(layer, place, tokens) for place in places)

    shown = before.knot if isinstance(before, Tied) else None
    return past, (drawn, Kept(x, shown, kv.each(p["blocks"], take, memory_of(past))))


def _roll(p: dict, task: Task, cfg: Config) -> tuple[jax.Array, Kept]:
    """All blocks: X [N, B, F, h, w, C], and what is kept of each."""

    def step(past: Past, xs: tuple[jax.Array, BlockInput]) -> tuple[Past, Any]:
        return _draw(p, past, *xs, task, cfg)

    count = task.blocks.noise.shape[0]
    return jax.lax.scan(step, task.past, (jnp.arange(count, dtype=jnp.int32), task.blocks))[1]


def generate_whole(p: dict, task: Task, *, cfg: Config) -> jax.Array:
    """What the blocks draw [N, B, F, h, w, C], float32; autodiff keeps what all blocks need."""
    return _roll(p, task, cfg)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _generate(p: dict, task: Task, cfg: Config) -> jax.Array:
    return _roll(p, task, cfg)[0]


def _forward(p: dict, task: Task, cfg: Config) -> tuple[jax.Array, Any]:
    drawn, kept = _roll(p, task, cfg)
    return drawn, (p, task, kept)


def _before(p: dict, number: jax.Array, kept: Kept, task: Task, cfg: Config) -> Past:
    """The past that a block saw: the scene, and the blocks that are still in its window, where they were.

    To one that has fewer before it, block 0 comes more than once; to block 0 itself, which then writes over it.
    """
    memory, length = memory_of(task.past), cfg.stream.block_latents
    window = cfg.stream.knot.window if cfg.stream.knot else cfg.stream.memory_latents
    for back in range(1, -(-window // length)):
        past = jnp.maximum(number - back, 0)
        block, history = jax.tree.map(lambda leaf, past=past: leaf[past], (task.blocks, kept.history))
        places, _ = _places(block, cfg)

        def put(layer: kv.KVCache, pieces: Any, places: jax.Array = places) -> kv.KVCache:
            for keys_values, place in zip(pieces, places, strict=True):
                layer = kv.write_slot(layer, keys_values, place)
            return layer

        memory = kv.each(p["blocks"], put, memory, history)
    if isinstance(task.past, Tied):
        return Tied((memory,), jax.tree.map(lambda leaf: leaf[number], kept.knot))
    return (memory,)


def _backward(cfg: Config, residuals: Any, gradient: jax.Array) -> tuple[dict, None]:
    p, task, kept = residuals

    def step(total: dict, number: jax.Array) -> tuple[dict, None]:
        block, x, pull = jax.tree.map(lambda leaf: leaf[number], (task.blocks, kept.x, gradient))
        past = _before(p, number, kept, task, cfg)
        read = _with(past, kv.Read(memory_of(past)))
        again = jax.vjp(lambda p: leave(p, read, block, x, task, cfg=cfg)[1], p)[1]
        return jax.tree.map(jnp.add, total, again(pull)[0]), None

    zeros = jax.tree.map(jnp.zeros_like, p)
    return jax.lax.scan(step, zeros, jnp.arange(len(gradient), dtype=jnp.int32))[0], None


_generate.defvjp(_forward, _backward)


def generate(p: dict, task: Task, *, cfg: Config) -> jax.Array:
    """As `generate_whole`, with the gradient of the weights by block replay: the memory of one block's."""
    return _generate(p, task, cfg)


def joined(drawn: jax.Array, cfg: Config) -> jax.Array:
    """The video of what blocks drew, [N, B, F, h, w, C] to [B, N c, h, w, C]; of a knot, the mean of its predictions.

    The gradient reaches both of them. The knot that the last block leaves is not part of it.
    """
    own = drawn[:, :, : cfg.stream.block_latents]
    if cfg.stream.knot:
        length, k = cfg.stream.block_latents, cfg.stream.knot.latents
        mean = (drawn[:-1, :, length:] + own[1:, :, :k]) / 2
        own = own.at[1:, :, :k].set(mean)
    video = jnp.moveaxis(own, 0, 1)
    return video.reshape(len(video), -1, *video.shape[3:])
