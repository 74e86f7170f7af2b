"""Prompts to rows of text features, and those to what every layer reads of them."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.io import checkpoint
from avatar_jax.io.tokenizer import Tokenizer
from avatar_jax.models import dit, umt5


@functools.lru_cache(maxsize=2)
def make_encode(cfg: configs.Umt5Config):
    """`umt5.apply` compiled: (weights, ids, mask) -> rows."""
    return jax.jit(functools.partial(umt5.apply, cfg=cfg))


def encode(folder: pathlib.Path, prompts: list[str], *, text: configs.Umt5Config, length: int) -> list[jax.Array]:
    """Rows of each prompt, float32 [1, n, D], n its tokens with the end one; the encoder is let go afterwards.

    Args:
      folder: the checkpoint.
      prompts: any text.
      text: the encoder.
      length: tokens at most; what is longer is cut.
    """
    tokenizer = Tokenizer(folder / checkpoint.TOKENIZER)
    weights = jax.tree.map(jnp.asarray, checkpoint.load(folder, "umt5", text))
    rows = []
    for prompt in prompts:
        ids, mask = tokenizer.encode(prompt, length)
        rows.append(make_encode(text)(weights, ids, mask)[:, : int(np.sum(mask))])
    return rows


@functools.lru_cache(maxsize=8)
def make_remember(cfg: configs.DitConfig):
    """`dit.remember` compiled: (weights, rows) -> keys and values of every layer."""
    return jax.jit(functools.partial(dit.remember, cfg=cfg))


def remember(p: dict, rows: jax.Array, *, cfg: configs.DitConfig) -> Any:
    """`dit.remember` of rows [1, n, D], compiled once for all lengths: zeros are what it would fill up with."""
    filled = jnp.pad(rows, ((0, 0), (0, cfg.text_tokens - rows.shape[1]), (0, 0)))
    return make_remember(cfg)(p, filled)
