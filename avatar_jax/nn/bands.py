"""Horizontal bands: the rows of every latent frame shared out over mesh axes, one band a device (sequence parallelism).

All that looks at one token, or from one token at something whole, runs on a band as it runs on a frame. Self-attention
alone looks across bands: its queries stay, its keys and values are joined. Axes are manual ones of a `jax.shard_map`.
"""

from typing import Any

import jax

Axes = str | tuple[str, ...] | None  # mesh axes whose devices share the rows; None: every row is here


def cut(tree: Any, over: Axes, dimension: int, frames: int = 1) -> Any:
    """This device's band of every array of a tree.

    Args:
      tree: arrays whose `dimension` holds latent rows, or the tokens of `frames` latent frames.
      over: the axes that share them, which must divide a frame's rows.
      dimension: counted from either end.
      frames: latent frames in that dimension, of each of which the band is cut.
    """
    if over is None:
        return tree

    def own(x: Any) -> jax.Array:
        at = dimension % x.ndim
        split = x.reshape(*x.shape[:at], frames, jax.lax.axis_size(over), -1, *x.shape[at + 1 :])
        band = jax.lax.dynamic_index_in_dim(split, jax.lax.axis_index(over), at + 1, keepdims=False)
        return band.reshape(*x.shape[:at], -1, *x.shape[at + 1 :])

    return jax.tree.map(own, tree)


def join(x: jax.Array, over: Axes, dimension: int, frames: int = 1) -> jax.Array:
    """The inverse of `cut`, on every device: bands put together in the order that one device has."""
    if over is None:
        return x
    split = x.reshape(*x.shape[:dimension], frames, -1, *x.shape[dimension + 1 :])
    whole = jax.lax.all_gather(split, over, axis=dimension + 1, tiled=True)
    return whole.reshape(*x.shape[:dimension], -1, *x.shape[dimension + 1 :])
