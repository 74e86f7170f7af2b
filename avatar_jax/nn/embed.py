"""Patches to tokens and back, and the sinusoid embedding of the timestep."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


def patchify(z: jax.Array, patch: int) -> jax.Array:
    """Latents [B, F, h, w, C] -> tokens [B, F, (h/patch)(w/patch), C patch^2], channel-major inside a token."""
    return rearrange(z, "B F (h p) (w q) C -> B F (h w) (C p q)", p=patch, q=patch)


def unpatchify(tokens: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Tokens [B, F, rows columns, patch^2 C], channel-minor (Wan's head order), -> [B, F, h, w, C]."""
    return rearrange(tokens, "B F (h w) (p q C) -> B F (h p) (w q) C", h=grid[0], w=grid[1], p=patch, q=patch)


def sinusoid(t: jax.Array | np.ndarray, features: int) -> jax.Array | np.ndarray:
    """[cos(t w_i) | sin(t w_i)], w_i = 10000^(-2i / features), float32. t: 0..1000, [...] -> [..., features].

    Known levels (numpy) get float64 angles on the host, as published; traced ones float32.
    """
    half = features // 2
    frequency = 10000.0 ** (-np.arange(half) / half)
    if isinstance(t, np.ndarray | np.generic):
        angles = np.asarray(t, np.float64)[..., None] * frequency
        return np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    angles = t.astype(jnp.float32)[..., None] * np.float32(frequency)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
