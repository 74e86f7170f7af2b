"""The reader: small convolutional networks that measure a drawn face (mouth, identity, pose).

It is an instrument of this project's own drawn world, trained by `train/reader.py` on frames whose truth is
known; it says nothing about photographs. Three towers that share nothing: "mouth" (opening, width) sees the region
of the mouth at full resolution, "face" (the identity) the whole picture at half resolution, "pose" (head, gaze and
expression) the head at full resolution, since eyes are small. Weights are a plain flat dict, named `tower/layer/part`.
"""

import functools
import math
from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load

from avatar_jax.data.controls import SIGNALS

SIZE = 96  # pixels, both sides
HIDDEN = 128
MOUTH = SIGNALS["mouth"]
POSE = SIGNALS["head"] + SIGNALS["gaze"] + SIGNALS["expression"]  # deviations from rest: the scale less one

Weights = dict[str, jax.Array]
Layers = tuple[tuple[int, int, int], ...]  # kernel side, output channels, stride of each


class Tower(NamedTuple):
    """What a tower sees of the picture, how many times smaller, its convolutions, and the size of what it reads."""

    rows: slice
    columns: slice
    shrink: int
    layers: Layers
    units: tuple[float, ...] = (1.0,)


WHOLE = slice(0, SIZE)
TOWERS = {
    # Its region holds every drawn mouth, with a margin of 6 pixels.
    "mouth": Tower(
        slice(44, 92), slice(20, 76), 1, ((5, 24, 2), (3, 48, 1), (3, 64, 2), (3, 64, 1), (3, 96, 2), (1, 24, 1))
    ),
    "face": Tower(WHOLE, WHOLE, 2, ((5, 24, 2), (3, 48, 2), (3, 96, 2), (1, 24, 1))),
    # The head wherever it moves, without most of the background.
    "pose": Tower(
        slice(8, 88),
        slice(12, 84),
        1,
        ((5, 16, 2), (3, 32, 2), (3, 32, 1), (3, 48, 2), (3, 48, 1), (1, 20, 1)),
        (0.12, 0.07, 0.05, 0.02, 0.015, 0.02, 0.4, 0.25, 0.35, 0.5, 0.5),
    ),
}


def _init_tower(key: jax.Array, tower: Tower, outputs: int) -> Weights:
    """He-initialised tower."""
    weights: Weights = {}
    rows, columns = ((part.stop - part.start) // tower.shrink for part in (tower.rows, tower.columns))
    channels = 3
    for i, (kernel, features, stride) in enumerate(tower.layers):
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
    outputs = {"mouth": len(MOUTH), "face": identity_width, "pose": len(POSE)}
    weights = {
        f"{name}/{part}": leaf
        for i, (name, tower) in enumerate(TOWERS.items())
        for part, leaf in _init_tower(jax.random.fold_in(key, i), tower, outputs[name]).items()
    }
    weights["identity/error"] = jnp.ones(identity_width)  # its deviation on unseen faces, set after training
    return weights


def apply(weights: Weights, frames: jax.Array, *, tower: str) -> jax.Array:
    """What one tower reads from RGB frames [B, 96, 96, 3] in [0, 1], float32.

    "mouth" reads [B, 2] in the order of MOUTH, "face" the identity [B, V], "pose" [B, 11] in the order of POSE.
    """
    rows, columns, shrink, layers, units = TOWERS[tower]
    x = (4 * frames - 2)[:, rows, columns]
    height, width = (side // shrink for side in x.shape[1:3])
    x = x.reshape(len(x), height, shrink, width, shrink, 3).mean((2, 4))
    for i, (_, _, stride) in enumerate(layers):
        layer = f"{tower}/conv{i}"
        kernel, strides = weights[f"{layer}/kernel"], (stride, stride)
        x = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
        x = jax.nn.silu(x * weights[f"{layer}/scale"] + weights[f"{layer}/bias"])
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.silu(x @ weights[f"{tower}/dense0/kernel"] + weights[f"{tower}/dense0/bias"])
    return (x @ weights[f"{tower}/dense1/kernel"] + weights[f"{tower}/dense1/bias"]) * np.array(units, np.float32)


@functools.cache
def load_reader() -> Weights:
    """The embedded weights, read once."""
    data = resources.files("avatar_jax").joinpath("assets", "reader.safetensors").read_bytes()
    return {name: jnp.asarray(array) for name, array in load(data).items()}


@functools.cache
def make_apply(tower: str) -> Callable[[Weights, np.ndarray], jax.Array]:
    """The jitted `apply` of a tower, one for the process."""
    return jax.jit(functools.partial(apply, tower=tower))


def fit(frames: np.ndarray) -> np.ndarray:
    """uint8 RGB frames [T, H, W, 3] of any size as [T, 96, 96, 3], by area.

    Raises ValueError unless they are at least one uint8 RGB picture.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], T > 0; got {frames.dtype} {list(frames.shape)}")
    if frames.shape[1:3] == (SIZE, SIZE):
        return frames
    return np.stack([cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for frame in frames])


def read(frames: np.ndarray, tower: str, *, batch: int = 64) -> np.ndarray:
    """What a tower (see `apply`) reads from uint8 RGB frames [T, H, W, 3] of any size, float32 [T, N].

    Frames are fitted to 96 x 96 and read in batches of one compiled size. Raises ValueError as `fit`.
    """
    frames = fit(frames)
    weights, compiled = load_reader(), make_apply(tower)
    parts = []
    for start in range(0, len(frames), batch):
        part = frames[start : start + batch]
        padded = np.zeros((batch, *part.shape[1:]), np.float32)
        padded[: len(part)] = part
        parts.append(np.asarray(compiled(weights, padded / 255))[: len(part)])
    return np.concatenate(parts)
