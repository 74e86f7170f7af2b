"""Sequential block autoregression: the oracle of every faster schedule, and the trainers' rollout."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import Config
from avatar_jax.diffusion import flow, schedule
from avatar_jax.models import audio, condition, dit, vae
from avatar_jax.nn import kv
from avatar_jax.stream import clock
from avatar_jax.stream.state import BlockInput, StreamState, Weights


def _memory(p: dict, reference: jax.Array, cfg: Config) -> Any:
    """One memory with nothing but the reference [B, 1, h, w, C] in it."""
    tokens = condition.embed_reference(p, reference, cfg.dit)
    held = dit.prefill(p, tokens, clock.grid_phase(clock.STILL, cfg), cfg=cfg.dit)
    slots = cfg.stream.window_blocks * cfg.stream.block_latents * cfg.tokens_per_frame
    if isinstance(p["blocks"], tuple):
        return tuple(kv.empty(k, v, slots) for k, v in held)
    return jax.vmap(functools.partial(kv.empty, slots=slots))(*held)


def start(weights: Weights, reference: jax.Array, *, cfg: Config) -> StreamState:
    """The state before block 0.

    Args:
      weights: networks, transformer in streaming layout.
      reference: the portrait in [-1, 1], [B, 1, H, W, 3].
      cfg: the run.
    """
    latent, _ = vae.encode_first(weights.vae, reference, cfg=cfg.vae)
    _, tail = vae.decode_first(weights.vae, latent, cfg=cfg.vae)
    memories = cfg.stream.steps if cfg.stream.history == "timestep" else 1
    memory = _memory(weights.dit, latent, cfg)
    return StreamState(tuple(jax.tree.map(jnp.copy, memory) for _ in range(memories)), tail)


def denoise(p: dict, caches: tuple[Any, ...], block: BlockInput, *, cfg: Config) -> tuple[tuple[Any, ...], jax.Array]:
    """Draws one block: noise to latents through `cfg.stream.steps` Euler steps.

    With "timestep" history step k reads and writes memory k, whose keys are all at step k's noise level; with
    "clean" history the steps overwrite the block's slot of the one memory and a last pass at t = 0 leaves clean keys.

    Returns:
      the memories with this block committed, and its latents [B, F, h, w, C].
    """
    voice = audio.encode(p["audio"]["encoder"], block.features, context=cfg.stream.audio_context, cfg=cfg.dit)
    at = {
        "heard": dit.hear(p, (voice,), cfg=cfg.dit),
        "phase": block.phase,
        "reference_phase": block.reference_phase,
        "slots": block.slots,
        "filled": block.filled,
    }
    levels = schedule.sigmas(cfg.stream.steps, cfg.stream.shift)
    memories, x = list(caches), block.noise
    for step, (level, below) in enumerate(itertools.pairwise(levels)):
        memory = step % len(memories)
        known = dit.level(p, level, cfg=cfg.dit)
        memories[memory], v = dit.apply_block(p, memories[memory], x, known, **at, cfg=cfg.dit)
        x = flow.euler(x, v, level, below)
    if cfg.stream.history == "clean":
        memories[0], _ = dit.apply_block(p, memories[0], x, dit.level(p, np.zeros(()), cfg=cfg.dit), **at, cfg=cfg.dit)
    return tuple(memories), x


def block(weights: Weights, state: StreamState, inputs: BlockInput, *, cfg: Config) -> tuple[StreamState, jax.Array]:
    """One block from noise to pixels.

    Returns:
      the state after it, and uint8 frames [B, T, H, W, 3].
    """
    caches, latent = denoise(weights.dit, state.caches, inputs, cfg=cfg)
    pixels, tail = vae.decode_step(weights.vae, state.tail, latent, cfg=cfg.vae)
    frames = vae.to_uint8(pixels)
    return StreamState(caches, tail), frames


@functools.lru_cache(maxsize=8)
def make_start(cfg: Config):
    """`start` compiled for `cfg`, once for all avatars: (weights, reference) -> state."""
    return jax.jit(lambda weights, reference: start(weights, reference, cfg=cfg))


@functools.lru_cache(maxsize=8)
def make_block(cfg: Config):
    """`block` compiled for `cfg`, once for all avatars, state donated: (weights, state, inputs) -> (state, frames)."""
    return jax.jit(lambda weights, state, inputs: block(weights, state, inputs, cfg=cfg), donate_argnums=1)
