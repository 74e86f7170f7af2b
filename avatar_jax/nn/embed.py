"""Patches to tokens and back, and the sinusoid embedding of the timestep."""

import jax
import jax.numpy as jnp
import numpy as np


def patchify(z: jax.Array, patch: int) -> jax.Array:
    """Latents [B, F, h, w, C] -> tokens [B, F, (h/patch)(w/patch), C patch^2], channel-major inside a token."""
    batch, frames, rows, columns, channels = z.shape
    z = z.reshape(batch, frames, rows // patch, patch, columns // patch, patch, channels)
    return z.transpose(0, 1, 2, 4, 6, 3, 5).reshape(batch, frames, -1, channels * patch * patch)


def unpatchify(tokens: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Tokens [B, F, rows columns, patch^2 C], channel-minor (Wan's head order), -> [B, F, h, w, C]."""
    batch, frames = tokens.shape[:2]
    z = tokens.reshape(batch, frames, *grid, patch, patch, -1)
    return z.transpose(0, 1, 2, 4, 3, 5, 6).reshape(batch, frames, grid[0] * patch, grid[1] * patch, -1)


def sinusoid(t: jax.Array, features: int) -> jax.Array:
    """[cos(t w_i) | sin(t w_i)], w_i = 10000^(-2i / features), float32. t: 0..1000, [...] -> [..., features]."""
    half = features // 2
    frequency = np.float32(10000.0 ** (-np.arange(half) / half))
    angles = t.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
