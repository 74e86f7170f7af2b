"""Normalisations, computed in float32 whatever the input's dtype."""

import jax
import jax.numpy as jnp

from avatar_jax.core.spec import Leaf

TORCH_EPS = 1e-5  # the default of the published sources' library, where they do not say


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last axis without affine terms, biased variance; float32 out. x: [..., D]."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)


def affine_spec(width: int) -> dict[str, Leaf]:
    """Scale and bias of a LayerNorm over `width` channels."""
    return {"scale": Leaf((width,), (None,), "ones"), "bias": Leaf((width,), (None,), "zeros")}


def affine(p: dict, normed: jax.Array) -> jax.Array:
    """A LayerNorm's learned part, after `layer_norm`. normed: [..., D]."""
    return normed * p["scale"] + p["bias"]


def rms_spec(width: int) -> dict[str, Leaf]:
    """Scale of an RMS norm over `width` channels."""
    return {"scale": Leaf((width,), (None,), "ones")}


def rms_norm(p: dict, x: jax.Array, eps: float) -> jax.Array:
    """RMS norm over the last axis with a learned scale; float32 inside, input dtype out. x: [..., D]."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * p["scale"]).astype(x.dtype)


def channel_norm(p: dict, x: jax.Array) -> jax.Array:
    """The VAE's norm: x / max(|x|_2, 1e-12) * sqrt(C) * scale over channels. x: [..., C]."""
    y = x.astype(jnp.float32)
    # rsqrt of the clamped square keeps the gradient finite at x = 0
    length = jax.lax.rsqrt(jnp.maximum(jnp.square(y).sum(-1, keepdims=True), 1e-24))
    return (y * length * (x.shape[-1] ** 0.5) * p["scale"]).astype(x.dtype)
