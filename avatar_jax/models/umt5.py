"""The UMT5 text encoder: T5 with a relative position bias in every layer (live_avatar.md section 3)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import Umt5Config
from avatar_jax.core.spec import Leaf, stack
from avatar_jax.nn import dense, kv, norm
from avatar_jax.nn.attention import split_heads


def _block_spec(cfg: Umt5Config) -> dict:
    into, out = (cfg.width, cfg.attention_width), (cfg.attention_width, cfg.width)
    return {
        "norm1": norm.rms_spec(cfg.width),
        "q": dense.matrix_spec(*into, ("embed", "heads")),
        "k": dense.matrix_spec(*into, ("embed", "heads")),
        "v": dense.matrix_spec(*into, ("embed", "heads")),
        "o": dense.matrix_spec(*out, ("heads", "embed")),
        "position": Leaf((cfg.buckets, cfg.heads), (None, "heads"), "normal"),
        "norm2": norm.rms_spec(cfg.width),
        "gate": dense.matrix_spec(cfg.width, cfg.ffn, ("embed", "mlp")),
        "in": dense.matrix_spec(cfg.width, cfg.ffn, ("embed", "mlp")),
        "out": dense.matrix_spec(cfg.ffn, cfg.width, ("mlp", "embed")),
    }


def spec(cfg: Umt5Config) -> dict:
    """Every weight of the encoder, blocks stacked."""
    return {
        "tokens": Leaf((cfg.vocabulary, cfg.width), (None, "embed"), "normal"),
        "blocks": stack(_block_spec(cfg), cfg.layers),
        "norm": norm.rms_spec(cfg.width),
    }


def bucket(relative: np.ndarray, cfg: Umt5Config) -> np.ndarray:
    """Bucket of each relative position (key minus query): exact up to a quarter of them, then logarithmic."""
    half = cfg.buckets // 2
    exact, distance = half // 2, np.abs(relative)
    growth = np.log(np.maximum(distance, 1) / exact) / np.log(cfg.reach / exact)
    far = np.minimum(exact + (growth * (half - exact)).astype(np.int64), half - 1)
    return np.where(relative > 0, half, 0) + np.where(distance < exact, distance, far)


def apply(p: dict, ids: jax.Array, mask: jax.Array, *, cfg: Umt5Config) -> jax.Array:
    """Text rows of token ids.

    Args:
      p: weights.
      ids: int32 [B, S].
      mask: 1 for tokens, 0 for padding, [B, S].
      cfg: the encoder.

    Returns:
      float32 [B, S, D]; rows of padding mean nothing.
    """
    chex.assert_equal_shape([ids, mask])
    place = np.arange(ids.shape[1])
    buckets = bucket(place[None, :] - place[:, None], cfg)
    seen = mask[:, None, None, :] > 0

    def body(x, weights, _):
        h = norm.rms_norm(weights["norm1"], x, cfg.eps)
        q, k, v = (split_heads(dense.apply(weights[name], h), cfg.heads) for name in "qkv")
        scores = jnp.einsum("bsnk,bwnk->bnsw", q, k, preferred_element_type=jnp.float32)  # not scaled, as in T5
        scores += weights["position"][buckets].transpose(2, 0, 1)
        shares = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(jnp.float32).min), -1).astype(x.dtype)
        mixed = jnp.einsum("bnsw,bwnk->bsnk", shares, v)
        x = x + dense.apply(weights["o"], mixed.reshape(*x.shape[:2], -1))
        h = norm.rms_norm(weights["norm2"], x, cfg.eps)
        h = dense.apply(weights["in"], h) * jax.nn.gelu(dense.apply(weights["gate"], h))
        return x + dense.apply(weights["out"], h), ()

    x, _ = kv.loop(body, p["tokens"][ids], p["blocks"], kv.nothing(p["blocks"]), start=0, stop=cfg.layers)
    return norm.rms_norm(p["norm"], x, cfg.eps).astype(jnp.float32)
