"""Multi-head attention over weight dicts; the kernel is a name in the configuration, never chosen silently."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from avatar_jax.core.spec import Leaf
from avatar_jax.kernels import cudnn, reference, splash
from avatar_jax.nn import dense, norm

KERNELS = ("reference", "xla", "cudnn", "splash")
HALVES = (jnp.bfloat16, jnp.float16)  # what cuDNN's fused attention computes in
Memory = tuple[jax.Array, jax.Array]


def resolve(name: str, platform: str, *, half: bool, masked: bool) -> str:
    """The kernel behind `name` on a platform.

    "auto" is "reference" on CPU, "cudnn" on GPU in half precision, "splash" on TPU without a dense mask, else "xla".

    Raises:
      ValueError: an unknown kernel name.
    """
    if name == "auto":
        if platform == "cpu":
            return "reference"
        fused = {"gpu": "cudnn" if half else "xla", "tpu": "xla" if masked else "splash"}
        return fused.get(platform, "xla")
    if name not in KERNELS:
        raise ValueError(f"config.dit.attention={name!r}: must be 'auto' or one of {KERNELS}")
    return name


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    kernel: str,
    mask: jax.Array | None = None,
    count: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v.

    Args:
      q: [B, S, N, K].
      k, v: [B, W, N, K].
      kernel: "auto" or one of KERNELS.
      mask: bool to [B, N, S, W], true where a query may look; None for everywhere.
      count: int32 [] or [B], keys from the first that may be seen; None for all.
    """
    name = resolve(kernel, jax.default_backend(), half=q.dtype in HALVES, masked=mask is not None)
    if name == "cudnn":
        return cudnn.attention(q, k, v, mask, count)
    if name == "splash":
        return splash.attention(q, k, v, mask, count)
    if count is not None:
        seen = (jnp.arange(k.shape[1]) < jnp.reshape(count, (-1, 1)))[:, None, None]
        mask = seen if mask is None else mask & seen
    if name == "reference":
        return reference.attention(q, k, v, mask)
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def spec(width: int, out_init: str = "fan_in") -> dict[str, dict[str, Leaf]]:
    """Query, key, value and output projections with RMS-normalised queries and keys."""
    return {
        "q": dense.spec(width, width, ("embed", "heads")),
        "k": dense.spec(width, width, ("embed", "heads")),
        "v": dense.spec(width, width, ("embed", "heads")),
        "o": dense.spec(width, width, ("heads", "embed"), out_init),
        "norm_q": norm.rms_spec(width),
        "norm_k": norm.rms_spec(width),
    }


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[..., D] -> [..., N, K]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def queries(p: dict, x: jax.Array, *, heads: int, eps: float) -> jax.Array:
    """Normalised queries; the norm is over all D channels, before the head split. [B, S, D] -> [B, S, N, K]."""
    return split_heads(norm.rms_norm(p["norm_q"], dense.apply(p["q"], x), eps), heads)


def keys_values(p: dict, x: jax.Array, *, heads: int, eps: float) -> tuple[jax.Array, jax.Array]:
    """Normalised keys, and values. [B, W, D] -> two [B, W, N, K]."""
    k = norm.rms_norm(p["norm_k"], dense.apply(p["k"], x), eps)
    return split_heads(k, heads), split_heads(dense.apply(p["v"], x), heads)


def output(p: dict, mixed: jax.Array) -> jax.Array:
    """Heads joined and projected. [B, S, N, K] -> [B, S, D]."""
    return dense.apply(p["o"], mixed.reshape(*mixed.shape[:-2], -1))


def cross(p: dict, x: jax.Array, memories: Iterable[Memory], *, heads: int, eps: float, kernel: str) -> jax.Array:
    """Attention of x [B, S, D] over each memory (keys and values [B, W, N, K]) by itself, summed, then projected."""
    q = queries(p, x, heads=heads, eps=eps)
    return output(p, functools.reduce(jnp.add, (attend(q, k, v, kernel=kernel) for k, v in memories)))
