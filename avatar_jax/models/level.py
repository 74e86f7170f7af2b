"""The noise level as the transformer reads it: a sinusoid through a small network (live_avatar.md section 1.3).

Shapes: B batch, G groups of tokens that share a level, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig
from avatar_jax.nn import dense, embed

TIMESTEPS = 1000.0  # t = 1000 sigma


def spec(cfg: DitConfig) -> dict:
    """Weights of the embedding."""
    width = cfg.width
    return {
        "in": dense.spec(cfg.freq, width, (None, "embed")),
        "out": dense.spec(width, width, ("embed", None)),
        "projection": dense.spec(width, 6 * width, ("embed", None)),
    }


class Level(NamedTuple):
    """A noise level as the blocks and the head read it, float32."""

    embedding: jax.Array  # [B, G, D]
    modulation: jax.Array  # [B, G, 6, D]


def level(p: dict, sigma: jax.Array | np.ndarray | np.floating, *, cfg: DitConfig) -> Level:
    """The embedding of noise levels in 0..1, [B, G], or [] for one that a whole block shares.

    A stream's few levels never change: computed once, they keep a matrix of 6 D^2 numbers out of every step.
    """
    groups = sigma.reshape(1, 1) if isinstance(sigma, np.floating) or not sigma.ndim else sigma
    return read_level(p, jnp.asarray(embed.sinusoid(groups * TIMESTEPS, cfg.freq)), cfg=cfg)


def sinusoids(sigmas: np.ndarray, *, cfg: DitConfig) -> jax.Array:
    """What `read_level` takes, of levels known on the host [n], exact at every one: float32 [n, 1, 1, freq]."""
    return jnp.asarray(embed.sinusoid(sigmas * np.float32(TIMESTEPS), cfg.freq)[:, None, None])


def read_level(p: dict, sinusoid: jax.Array, *, cfg: DitConfig) -> Level:
    """The embedding of a level's sinusoid [B, G, freq]."""
    e = dense.apply(p["time"]["in"], sinusoid)
    e = dense.apply(p["time"]["out"], jax.nn.silu(e))
    e0 = dense.apply(p["time"]["projection"], jax.nn.silu(e))
    return Level(e, e0.reshape(*e.shape[:-1], 6, cfg.width))
