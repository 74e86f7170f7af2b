"""Convolutions over [B, T, H, W, C]: spatial, and causal in time with an explicit history.

A causal kernel of `kt` frames needs the `kt - 1` frames before its input. They are passed in and handed out, so a
clip may be cut anywhere (Wan 2.1 VAE streaming). A missing history means zero frames.

A convolution has two forms, and its weights say which: "w" [kt, kh, kw, C, O], as checkpoints hold it, runs as a
2-D convolution over concatenated time taps, several times faster than XLA:CPU's native 3-D one; "kernel"
[O, kt, kh, kw, C], from `lay_out`, runs natively, on GPU without a transpose of pictures or weights.
"""

from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.core.spec import Leaf

Padding = str | tuple[tuple[int, int], tuple[int, int]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_NATIVE = ("NDHWC", "ODHWI", "NDHWC")


def lay_out(p: Any, platform: str) -> Any:
    """A tree of weights in the form that `platform` runs fastest: as it is on CPU, native convolutions elsewhere."""
    if platform == "cpu" or not isinstance(p, dict):
        return p
    if "w" in p and p["w"].ndim == 5:
        return {"kernel": jnp.transpose(p["w"], (4, 0, 1, 2, 3)), "b": p["b"]}
    return {name: lay_out(child, platform) for name, child in p.items()}


def frames_of(p: dict) -> int:
    """Frames of a kernel in time."""
    return p["kernel"].shape[1] if "kernel" in p else p["w"].shape[0]


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


def _native(p: dict, x: jax.Array, time_stride: int = 1, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """The convolution as the device does it: valid in time, `padding` in space."""
    w = p["kernel"].astype(x.dtype)
    if w.shape[1:4] == (1, 1, 1):  # a product over channels
        return jnp.einsum("bthwc,oc->bthwo", x, w[:, 0, 0, 0]) + p["b"].astype(x.dtype)
    around = [(size // 2, size // 2) for size in w.shape[2:4]] if isinstance(padding, str) else padding
    strides = (time_stride, stride, stride)
    y = jax.lax.conv_general_dilated(x, w, strides, [(0, 0), *around], dimension_numbers=_NATIVE)
    return y + p["b"].astype(x.dtype)


def spatial(p: dict, x: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """A 2-D convolution of every frame. x: [B, T, H, W, C]; the kernel has one frame."""
    if "kernel" in p:
        return _native(p, x, 1, stride, padding)
    return _spatial(x, p["w"][0], stride, padding) + p["b"].astype(x.dtype)


def valid(p: dict, x: jax.Array, stride: int = 1) -> jax.Array:
    """Valid convolution along time, same-padded in space. x: [B, kt - 1 + T, H, W, C] -> [B, ceil(T / stride), ...]."""
    return _native(p, x, stride) if "kernel" in p else _taps(x, p["w"], stride) + p["b"].astype(x.dtype)


def _taps(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    """The same without bias, as one 2-D convolution over concatenated time taps. w: [kt, kh, kw, C, O]."""
    kernel_time, rows, columns, inputs, outputs = w.shape
    frames = x.shape[1] - kernel_time + 1
    stacked = jnp.concatenate([x[:, i : i + frames : stride] for i in range(kernel_time)], -1)
    folded = w.transpose(1, 2, 0, 3, 4).reshape(rows, columns, kernel_time * inputs, outputs)
    return _spatial(stacked, folded, 1, "SAME")


def causal(p: dict, x: jax.Array, history: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Causal convolution in time, same-padded in space.

    Args:
      p: weights.
      x: [B, T, H, W, C].
      history: the kt - 1 frames before `x`, [B, kt - 1, H, W, C]; None for zeros.

    Returns:
      [B, T, H, W, O] and the history for the next call.
    """
    past = frames_of(p) - 1
    zeros = jnp.zeros((x.shape[0], past, *x.shape[2:]), x.dtype)
    if history is None and x.shape[1] == 1:  # the other taps see only zeros
        newest = {"kernel": p["kernel"][:, -1:]} if "kernel" in p else {"w": p["w"][-1:]}
        return spatial(newest | {"b": p["b"]}, x), jnp.concatenate([zeros[:, 1:], x], 1)
    padded = jnp.concatenate([zeros if history is None else history, x], 1)
    # read behind the barrier, the new history may take the place of the old one: no copy when it is donated
    return valid(p, padded), jax.lax.optimization_barrier(padded)[:, padded.shape[1] - past :]
