"""Convolutions over [B, T, H, W, C]: spatial, and causal in time with an explicit history.

A causal kernel of `kt` frames needs the `kt - 1` frames before its input. They are passed in and handed out, so a
clip may be cut anywhere (Wan 2.1 VAE streaming). A missing history means zero frames.

XLA:CPU runs a 2-D convolution over concatenated time taps several times faster than its native 3-D one, and GPU and
TPU compilers do well with the same form at these sizes; `taps` is that form.
"""

import jax
import jax.numpy as jnp

from avatar_jax.core.spec import Leaf

Padding = str | tuple[tuple[int, int], tuple[int, int]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def spec(kernel: tuple[int, int, int], inputs: int, outputs: int, init: str = "newest") -> dict[str, Leaf]:
    """Spec of a convolution with `kernel` (time, rows, columns); it starts as a 2-D one on the newest frame."""
    return {
        "w": Leaf((*kernel, inputs, outputs), (None, None, None, None, "conv_out"), init),
        "b": Leaf((outputs,), ("conv_out",), "zeros"),
    }


def _spatial(x: jax.Array, w: jax.Array, stride: int, padding: Padding) -> jax.Array:
    batch, time = x.shape[:2]
    y = jax.lax.conv_general_dilated(
        x.reshape(batch * time, *x.shape[2:]),
        w.astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=_LAYOUT,
    )
    return y.reshape(batch, time, *y.shape[1:])


def spatial(p: dict, x: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """A 2-D convolution of every frame. x: [B, T, H, W, C]; p["w"]: [1, kh, kw, C, O]."""
    return _spatial(x, p["w"][0], stride, padding) + p["b"].astype(x.dtype)


def taps(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    """Valid convolution along time, same-padded in space, as one 2-D convolution over concatenated time taps.

    x: [B, kt - 1 + T, H, W, C]; w: [kt, kh, kw, C, O] -> [B, ceil(T / stride), H, W, O].
    """
    kernel_time, rows, columns, inputs, outputs = w.shape
    frames = x.shape[1] - kernel_time + 1
    stacked = jnp.concatenate([x[:, i : i + frames : stride] for i in range(kernel_time)], -1)
    folded = w.transpose(1, 2, 0, 3, 4).reshape(rows, columns, kernel_time * inputs, outputs)
    return _spatial(stacked, folded, 1, "SAME")


def causal(p: dict, x: jax.Array, history: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Causal convolution in time, same-padded in space.

    Args:
      p: weights, "w" [kt, kh, kw, C, O].
      x: [B, T, H, W, C].
      history: the kt - 1 frames before `x`, [B, kt - 1, H, W, C]; None for zeros.

    Returns:
      [B, T, H, W, O] and the history for the next call.
    """
    w, past = p["w"], p["w"].shape[0] - 1
    zeros = jnp.zeros((x.shape[0], past, *x.shape[2:]), x.dtype)
    if history is None and x.shape[1] == 1:  # the other taps see only zeros
        return _spatial(x, w[-1], 1, "SAME") + p["b"].astype(x.dtype), jnp.concatenate([zeros[:, 1:], x], 1)
    padded = jnp.concatenate([zeros if history is None else history, x], 1)
    return taps(padded, w) + p["b"].astype(x.dtype), padded[:, padded.shape[1] - past :]
