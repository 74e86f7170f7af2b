"""Attention by cuDNN's fused kernel: half precision on NVIDIA GPUs from Ampere on, no buffer of scores."""

import jax
import jax.numpy as jnp


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, count: jax.Array | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, softmax in float32.

    Args:
      q: [B, S, N, K], bfloat16 or float16.
      k, v: [B, W, N, K].
      mask: bool, broadcastable to [B, N, S, W]; written out in full, so not for long sequences.
      count: int32 [] or [B], keys from the first that may be seen; the kernel skips what lies behind them.

    Returns:
      [B, S, N, K] in q's dtype.
    """
    lengths = None if count is None else jnp.broadcast_to(count, (len(q),))
    queries = None if count is None else jnp.full((len(q),), q.shape[1], jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, query_seq_lengths=queries, key_value_seq_lengths=lengths, implementation="cudnn"
    )
