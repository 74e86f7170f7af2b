"""Attention by JAX's splash kernel for TPU: tiles of scores in fast memory, no buffer of them.

The kernel works on whole tiles, so queries and keys are filled up to them, and keys that do not count are put into
another segment than the queries. It is one device's program: on a mesh whose "tensor" axis has several devices each
runs its own heads, and where a batch is split over "data" and "fsdp" its own rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from avatar_jax.core import axes

LANES = 128  # of a TPU register: tiles and heads come in multiples of it
# Of scores. 640 divides a block of 3200 filled-up tokens evenly; 1024 keys take the compiler three times as long.
TILE_Q, TILE_KV = 640, 512


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    count: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, softmax in float32.

    Args:
      q: [B, S, N, K], K a multiple of 128.
      k, v: [B, W, N, K].
      mask: must be None.
      count: int32 [] or [B], keys from the first that may be seen; None for all.
      interpret: run the kernel's steps as ordinary operations, on any platform.

    Returns:
      [B, S, N, K] in q's dtype.

    Raises:
      ValueError: a dense mask, or heads that do not fill registers.
    """
    if mask is not None:
        raise ValueError("attention='splash' takes no dense mask: choose 'xla' or 'auto'")
    if q.shape[-1] % LANES:
        raise ValueError(f"attention='splash' needs heads of a multiple of {LANES} channels, not {q.shape[-1]}")
    seen = jnp.broadcast_to(jnp.asarray(k.shape[1] if count is None else count, jnp.int32), (len(q),))
    run = functools.partial(_heads, interpret=interpret)
    rows, heads = axes.traced(len(q))
    if rows or heads:
        split = PartitionSpec(rows, None, heads, None)
        # a Pallas call is opaque to the partitioner, and its outputs carry no account of how they vary
        run = jax.shard_map(run, in_specs=(split, split, split, PartitionSpec(rows)), out_specs=split, check_vma=False)
    return run(q, k, v, seen)


def _tile(length: int, most: int) -> tuple[int, int]:
    """A tile and the length filled up to whole tiles."""
    tile = min(most, -(-length // LANES) * LANES)
    return tile, -(-length // tile) * tile


def _heads(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, *, interpret: bool) -> jax.Array:
    (tile_q, rows), (tile_kv, columns) = _tile(q.shape[1], TILE_Q), _tile(k.shape[1], TILE_KV)
    heads = q.shape[2]
    run = kernel.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((rows, columns)) for _ in range(heads)]),
        block_sizes=kernel.BlockSizes(
            block_q=tile_q,
            block_kv=tile_kv,
            block_kv_compute=tile_kv,
            block_q_dkv=tile_q,
            block_kv_dkv=tile_kv,
            block_kv_dkv_compute=tile_kv,
            block_q_dq=tile_q,
            block_kv_dq=tile_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def fill(x: jax.Array, length: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    def one(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
        unseen = (jnp.arange(columns, dtype=jnp.int32) >= seen).astype(jnp.int32)
        return jnp.asarray(run(q, k, v, segment_ids=kernel.SegmentIds(q=jnp.zeros(rows, jnp.int32), kv=unseen)))

    scaled = (q * q.shape[-1] ** -0.5).astype(q.dtype)
    out = jax.vmap(one)(fill(scaled, rows), fill(k, columns), fill(v, columns), seen)
    return out.swapaxes(1, 2)[:, : q.shape[1]].astype(q.dtype)
