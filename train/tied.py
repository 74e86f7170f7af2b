"""Stage one of the knot engine: every block of a window drawn over the memory that its stream would have of the others.

What is remembered is data, a little noised, as the stream's own past will not be perfect either; a block is shown its
knot mostly, and nothing of itself else; the reference lies ahead of every block, as far as a running-ahead reference
ever does (knot_forcing.md sections 1.2, 1.5 and 1.6; `stream/window.py`, tied windows).
"""

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.diffusion import flow
from avatar_jax.stream import clock, rollout, window
from train import windows

SHOWN = 0.9  # share of the blocks after the first that are shown their knot
BLURRED = 0.1  # highest noise level of what is remembered and of knots


def slightly_noised(key: jax.Array, x0: jax.Array) -> jax.Array:
    """Latents [B, ...] at a level each in [0, BLURRED]."""
    level_key, noise_key = jax.random.split(key)
    level = jax.random.uniform(level_key, (len(x0), *(1,) * (x0.ndim - 1)), maxval=BLURRED)
    return flow.add_noise(x0, jax.random.normal(noise_key, x0.shape), level)


def reference_ahead(key: jax.Array, batch: int, cfg: configs.TrainingConfig) -> jax.Array:
    """Position of the reference for each block, 1 to `reference_jump` beyond the last latent it draws, [B, N]."""
    assert cfg.stream.knot is not None
    last = np.array([clock.times(block, cfg)[-1] for block in range(cfg.train.dit_blocks)])
    gap = jax.random.randint(key, (batch, len(last)), 1, cfg.stream.knot.reference_jump + 1)
    return gap + last


def velocity_error(
    p: dict, batch: windows.Batch, key: jax.Array, *, cfg: configs.TrainingConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Error of the velocity [B, N, c + k, h, w, C] of a tied window, its latents, and the levels [B, N].

    batch: from `latents.window_dataset`; cfg: from `windows.sized`.
    """
    assert cfg.stream.knot is not None
    level_key, noise_key, past_key, knot_key, shown_key, place_key, vary_key = jax.random.split(key, 7)
    latent, reference = (batch[name].astype(jnp.float32) for name in ("latent", "reference"))
    blocks, length, k = cfg.train.dit_blocks, cfg.stream.block_latents, cfg.stream.knot.latents
    x0 = jnp.stack([latent[:, clock.times(block, cfg)] for block in range(blocks)], 1)
    sigma = flow.shift(jax.random.uniform(level_key, x0.shape[:2]), cfg.train.dit_shift)
    noise = jax.random.normal(noise_key, x0.shape)
    speakers = windows.learned(vary_key, batch, cfg)
    v = window.tied_velocity(
        p,
        slightly_noised(past_key, latent[:, : blocks * length]),
        flow.add_noise(x0, noise, sigma[..., None, None, None, None]),
        sigma,
        slightly_noised(knot_key, x0[:, :, :k]),
        (jax.random.uniform(shown_key, sigma.shape) < SHOWN) * (np.arange(blocks) > 0).astype(np.float32),
        reference,
        tuple(rollout.voice_of(p, speaker, cfg=cfg) for speaker in speakers),
        ahead=reference_ahead(place_key, len(latent), cfg),
        cross=windows.prompt(p, batch.get("text"), cfg),
        cfg=cfg,
    )
    return v - flow.velocity(x0, noise), x0, sigma


def whole_error(
    p: dict, batch: windows.Batch, key: jax.Array, *, cfg: configs.TrainingConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`velocity_error` of a window as its teacher sees it (`window.teacher`): [B, N, c, h, w, C], and levels [B, N]."""
    level_key, noise_key, vary_key = jax.random.split(key, 3)
    blocks, length = cfg.train.dit_blocks, cfg.stream.block_latents
    x0, reference = (batch[name].astype(jnp.float32) for name in ("latent", "reference"))
    x0 = x0[:, : blocks * length]
    sigma = flow.shift(jax.random.uniform(level_key, x0.shape[:1]), cfg.train.dit_shift)
    noise = jax.random.normal(noise_key, x0.shape)
    speakers = windows.cut(windows.learned(vary_key, batch, cfg), 0, blocks * cfg.block_frames, cfg)
    voices = tuple(rollout.voice_of(p, each, cfg=cfg) for each in speakers)
    noisy, cross = (
        flow.add_noise(x0, noise, sigma[:, None, None, None, None]),
        windows.prompt(p, batch.get("text"), cfg),
    )
    v = window.teacher(p, noisy, sigma, reference, voices, cross=cross, cfg=cfg)
    shape = (len(x0), blocks, length, *x0.shape[2:])
    error = v - flow.velocity(x0, noise)
    return error.reshape(shape), x0.reshape(shape), jnp.repeat(sigma[:, None], blocks, 1)
