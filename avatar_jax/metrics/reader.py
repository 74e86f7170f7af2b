"""The reader: a small convolutional network that measures a drawn face (mouth opening, width, identity).

It is an instrument of this project's own drawn world, trained by `train/reader.py` on frames whose truth is
known; it says nothing about photographs. Two towers: one sees the region of the mouth at full resolution, the
other the whole face at half resolution. Weights are a plain flat dict, named `tower/layer/part`.
"""

import functools
import math
from collections.abc import Callable
from importlib import resources

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load

SIZE = 96  # pixels, both sides
MOUTH_ROWS, MOUTH_COLUMNS = slice(44, 92), slice(20, 76)  # holds every drawn mouth, with a margin of 6 pixels
# Kernel side, output channels, stride of each layer.
MOUTH_LAYERS = ((5, 24, 2), (3, 48, 1), (3, 64, 2), (3, 64, 1), (3, 96, 2), (1, 24, 1))
FACE_LAYERS = ((5, 24, 2), (3, 48, 2), (3, 96, 2), (1, 24, 1))
HIDDEN = 128

Weights = dict[str, jax.Array]
Layers = tuple[tuple[int, int, int], ...]


def _init_tower(key: jax.Array, layers: Layers, rows: int, columns: int, outputs: int) -> Weights:
    """He-initialised tower for pictures of `rows` x `columns`."""
    weights: Weights = {}
    channels = 3
    for i, (kernel, features, stride) in enumerate(layers):
        draw = jax.random.normal(jax.random.fold_in(key, i), (kernel, kernel, channels, features))
        weights[f"conv{i}/kernel"] = draw * math.sqrt(2 / (kernel * kernel * channels))
        weights[f"conv{i}/scale"], weights[f"conv{i}/bias"] = jnp.ones(features), jnp.zeros(features)
        channels, rows, columns = features, rows // stride, columns // stride
    for i, (width, features) in enumerate([(rows * columns * channels, HIDDEN), (HIDDEN, outputs)]):
        draw = jax.random.normal(jax.random.fold_in(key, 100 + i), (width, features))
        weights[f"dense{i}/kernel"] = draw * math.sqrt((2, 0.1)[i] / width)
        weights[f"dense{i}/bias"] = jnp.zeros(features)
    return weights


def init(key: jax.Array, identity_width: int) -> Weights:
    """Fresh weights for an identity vector of `identity_width` numbers."""
    rows, columns = (part.stop - part.start for part in (MOUTH_ROWS, MOUTH_COLUMNS))
    towers = {
        "mouth": _init_tower(jax.random.fold_in(key, 0), MOUTH_LAYERS, rows, columns, 2),
        "face": _init_tower(jax.random.fold_in(key, 1), FACE_LAYERS, SIZE // 2, SIZE // 2, identity_width),
    }
    weights = {f"{tower}/{name}": leaf for tower, leaves in towers.items() for name, leaf in leaves.items()}
    weights["identity/error"] = jnp.ones(identity_width)  # its deviation on unseen faces, set after training
    return weights


def _apply_tower(weights: Weights, tower: str, layers: Layers, x: jax.Array) -> jax.Array:
    for i, (_, _, stride) in enumerate(layers):
        layer = f"{tower}/conv{i}"
        kernel, strides = weights[f"{layer}/kernel"], (stride, stride)
        x = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
        x = jax.nn.silu(x * weights[f"{layer}/scale"] + weights[f"{layer}/bias"])
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.silu(x @ weights[f"{tower}/dense0/kernel"] + weights[f"{tower}/dense0/bias"])
    return x @ weights[f"{tower}/dense1/kernel"] + weights[f"{tower}/dense1/bias"]


def apply(weights: Weights, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mouth [B, 2] (opening, width) and identity [B, V] read from RGB frames [B, 96, 96, 3] in [0, 1]."""
    x = 4 * frames - 2
    mouth = _apply_tower(weights, "mouth", MOUTH_LAYERS, x[:, MOUTH_ROWS, MOUTH_COLUMNS])
    half = x.reshape(x.shape[0], SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4))
    return mouth, _apply_tower(weights, "face", FACE_LAYERS, half)


@functools.cache
def load_reader() -> Weights:
    """The embedded weights, read once."""
    data = resources.files("avatar_jax").joinpath("assets", "reader.safetensors").read_bytes()
    return {name: jnp.asarray(array) for name, array in load(data).items()}


@functools.cache
def make_apply() -> Callable[[Weights, np.ndarray], tuple[jax.Array, jax.Array]]:
    """The jitted `apply`, one for the process."""
    return jax.jit(apply)


def fit(frames: np.ndarray) -> np.ndarray:
    """uint8 RGB frames [T, H, W, 3] of any size as [T, 96, 96, 3], by area.

    Raises ValueError unless they are at least one uint8 RGB picture.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], T > 0; got {frames.dtype} {list(frames.shape)}")
    if frames.shape[1:3] == (SIZE, SIZE):
        return frames
    return np.stack([cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for frame in frames])


def read(frames: np.ndarray, *, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Mouth float32 [T, 2] and identity float32 [T, V] of uint8 RGB frames [T, H, W, 3] of any size.

    Frames are fitted to 96 x 96 and read in batches of one compiled size. Raises ValueError as `fit`.
    """
    frames = fit(frames)
    weights, compiled = load_reader(), make_apply()
    parts = []
    for start in range(0, len(frames), batch):
        part = frames[start : start + batch]
        padded = np.zeros((batch, *part.shape[1:]), np.float32)
        padded[: len(part)] = part
        mouth, identity = compiled(weights, padded / 255)
        parts.append((np.asarray(mouth)[: len(part)], np.asarray(identity)[: len(part)]))
    mouths, identities = zip(*parts, strict=True)
    return np.concatenate(mouths), np.concatenate(identities)
