"""Self-forcing: what a generator streams, made to be trained on, and its gradient one block at a time.

With s the exit step, drawn once for a rollout, and G the prediction of x0, every block i runs (live_avatar.md section
7.2, Algorithm 1)

(1)  x   <- (1 - s_{k+1}) G(x, k; history) + s_{k+1} e     without gradient, for the steps k before s
(2)  X_i  = G(x, s; history)                                with gradient

and the keys and values of (2), noisy as they are and without gradient, are the history of the next blocks. That is the
history corruption of the paper: training sees the noise level at which a stream of "timestep" history keeps its past.

A rollout may start from data: block 0 then enters (2) as real latents noised to the level of s, so that its history has
the motion of real video and not what the generator makes of it (against motion collapse).

Because nothing but the weights joins the blocks' gradients, they can be had one after the other (Algorithm 2):
`generate` keeps only x and the history, and its backward pass runs (2) once more for each block. `generate_whole` lets
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
from avatar_jax.stream import rollout
from avatar_jax.stream.state import BlockInput


class Task(NamedTuple):
    """What a rollout is made from."""

    memory: Any  # with nothing but the scene in it, from `rollout.begin`
    blocks: BlockInput  # every leaf with a leading axis of blocks, [N, ...]
    cross: Any  # the prompt, or None
    exit_step: jax.Array  # int32 []
    key: jax.Array  # of the noise between steps
    anchor: jax.Array | None = None  # real latents of block 0, [B, F, h, w, C]: starts of the rollouts that have one
    anchored: jax.Array | None = None  # bool [B], which have


class Kept(NamedTuple):
    """What is remembered of a block, instead of all that its gradient needs."""

    x: jax.Array  # that the exit step saw, [B, F, h, w, C]
    history: Any  # keys and values it left, one pair a layer


def approach(p: dict, memory: Any, block: BlockInput, task: Task, key: jax.Array, *, cfg: Config) -> jax.Array:
    """Equation (1): from a block's noise to what its exit step sees."""
    flight, table = rollout.enter(p, block, cfg=cfg), jnp.asarray(rollout.levels(cfg.stream))
    heard = dit.hear(p, flight.voices, cfg=cfg.dit)

    def step(number: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        memory, x = carry
        at = dataclasses.replace(flight, latent=x)
        memory, x0 = rollout.predict(p, memory, at, number, heard, task.cross, cfg=cfg)
        noise = jax.random.normal(jax.random.fold_in(key, number), x.shape)
        return memory, flow.add_noise(x0, noise, table[number + 1]).astype(x.dtype)

    return jax.lax.fori_loop(0, task.exit_step, step, (memory, flight.latent))[1]


def anchor(x: jax.Array, number: jax.Array, block: BlockInput, task: Task, cfg: Config) -> jax.Array:
    """What the exit step sees of block 0 where a rollout starts from data: real latents, noised to its level."""
    if task.anchor is None or task.anchored is None:
        return x
    level = jnp.asarray(rollout.levels(cfg.stream))[task.exit_step]
    real = flow.add_noise(task.anchor, block.noise, level).astype(x.dtype)
    return jnp.where((task.anchored & (number == 0))[:, None, None, None, None], real, x)


def leave(p: dict, memory: Any, block: BlockInput, x: jax.Array, task: Task, *, cfg: Config) -> tuple[Any, jax.Array]:
    """Equation (2) from x on: the memory with the block's keys at this level, and X_i [B, F, h, w, C], float32."""
    flight = dataclasses.replace(rollout.enter(p, block, cfg=cfg), latent=x)
    heard = dit.hear(p, flight.voices, cfg=cfg.dit)
    return rollout.predict(p, memory, flight, task.exit_step, heard, task.cross, cfg=cfg)


def _slot(number: jax.Array, cfg: Config) -> jax.Array:
    return number % cfg.stream.window_blocks


def _draw(p: dict, memory: Any, number: jax.Array, block: BlockInput, task: Task, cfg: Config) -> tuple[Any, Any]:
    """One block, its gradient through the exit step alone: the memory, and (X_i, what is kept of it)."""
    still = jax.lax.stop_gradient
    key = jax.random.fold_in(task.key, number)
    x = still(approach(still(p), memory, block, task, key, cfg=cfg))
    x = anchor(x, number, block, task, cfg)
    memory, drawn = leave(p, still(memory), block, x, task, cfg=cfg)
    memory = still(memory)
    take = functools.partial(
        kv.read_slot, slot=_slot(number, cfg), tokens=cfg.stream.block_latents * cfg.tokens_per_frame
    )
    return memory, (drawn, Kept(x, kv.each(p["blocks"], take, memory)))


def _roll(p: dict, task: Task, cfg: Config) -> tuple[jax.Array, Kept]:
    """All blocks: X [N, B, F, h, w, C], and what is kept of each."""

    def step(memory: Any, xs: tuple[jax.Array, BlockInput]) -> tuple[Any, Any]:
        return _draw(p, memory, *xs, task, cfg)

    count = task.blocks.noise.shape[0]
    return jax.lax.scan(step, task.memory, (jnp.arange(count, dtype=jnp.int32), task.blocks))[1]


def generate_whole(p: dict, task: Task, *, cfg: Config) -> jax.Array:
    """The generated video [N, B, F, h, w, C], float32; autodiff keeps what all blocks need."""
    return _roll(p, task, cfg)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _generate(p: dict, task: Task, cfg: Config) -> jax.Array:
    return _roll(p, task, cfg)[0]


def _forward(p: dict, task: Task, cfg: Config) -> tuple[jax.Array, Any]:
    drawn, kept = _roll(p, task, cfg)
    return drawn, (p, task, kept)


def _before(p: dict, number: jax.Array, kept: Kept, task: Task, cfg: Config) -> Any:
    """The memory that a block saw: the scene, and the blocks that are still in its window, where they were.

    Of a block that came too early to have them all, the places that count as unfilled hold another's.
    """
    memory = task.memory
    for back in range(1, cfg.stream.window_blocks):
        past = jnp.maximum(number - back, 0)
        history = jax.tree.map(lambda leaf, past=past: leaf[past], kept.history)
        put = functools.partial(kv.write_slot, slot=_slot(number - back, cfg))
        memory = kv.each(p["blocks"], put, memory, history)
    return memory


def _backward(cfg: Config, residuals: Any, gradient: jax.Array) -> tuple[dict, None]:
    p, task, kept = residuals

    def step(total: dict, number: jax.Array) -> tuple[dict, None]:
        block, x, pull = jax.tree.map(lambda leaf: leaf[number], (task.blocks, kept.x, gradient))
        memory = _before(p, number, kept, task, cfg)
        again = jax.vjp(lambda p: leave(p, kv.Read(memory), block, x, task, cfg=cfg)[1], p)[1]
        return jax.tree.map(jnp.add, total, again(pull)[0]), None

    zeros = jax.tree.map(jnp.zeros_like, p)
    return jax.lax.scan(step, zeros, jnp.arange(len(gradient), dtype=jnp.int32))[0], None


_generate.defvjp(_forward, _backward)


def generate(p: dict, task: Task, *, cfg: Config) -> jax.Array:
    """As `generate_whole`, with the gradient of the weights by block replay: the memory of one block's."""
    return _generate(p, task, cfg)
