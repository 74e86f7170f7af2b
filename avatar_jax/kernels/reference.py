"""Attention as its formula: the oracle every other kernel is held against."""

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, softmax in float32.

    Args:
      q: [B, S, N, K].
      k: keys [B, W, N, K].
      v: values [B, W, N, K].
      mask: bool, broadcastable to [B, N, S, W], true where a query may look; None for everywhere.

    Returns:
      [B, S, N, K] in q's dtype.
    """
    scores = jnp.einsum("bsnk,bwnk->bnsw", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    shares = jax.nn.softmax(scores, -1).astype(q.dtype)
    return jnp.einsum("bnsw,bwnk->bsnk", shares, v)
