"""wav2vec 2.0 in its "stable layer norm" form, and the way of its features to video rate (live_avatar.md section 2)."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import Wav2Vec2Config
from avatar_jax.core.spec import Leaf, stack
from avatar_jax.nn import dense, kv, norm
from avatar_jax.nn.attention import attend, split_heads

Array = Any  # of numpy or JAX
NORMAL_EPS = 1e-7  # of the published feature extractor's normalisation
STEPS_HZ = 50.0  # features a second
BETWEEN_HZ = 30  # features pass through this rate on their way to the video's, as published


def _conv_spec(kernel: int, inputs: int, outputs: int) -> dict:
    weights = {"w": Leaf((kernel, inputs, outputs), (None, None, None)), "b": Leaf((outputs,), (None,), "zeros")}
    return weights | {"norm": norm.affine_spec(outputs)}


def _block_spec(cfg: Wav2Vec2Config) -> dict:
    width = cfg.width
    projections = {name: dense.spec(width, width, ("embed", "heads")) for name in "qkvo"}
    return projections | {
        "norm1": norm.affine_spec(width),
        "norm2": norm.affine_spec(width),
        "in": dense.spec(width, cfg.ffn, ("embed", "mlp")),
        "out": dense.spec(cfg.ffn, width, ("mlp", "embed")),
    }


def spec(cfg: Wav2Vec2Config) -> dict:
    """Every weight of the encoder; the published CTC head is not used."""
    channels = [1, *(c for c, _, _ in cfg.convolutions)]
    kernels = [kernel for _, kernel, _ in cfg.convolutions]
    tap = (cfg.position_kernel, cfg.width // cfg.position_groups, cfg.width)
    return {
        "convolutions": {str(i): _conv_spec(kernel, channels[i], channels[i + 1]) for i, kernel in enumerate(kernels)},
        "projection": {"norm": norm.affine_spec(channels[-1]), **dense.spec(channels[-1], cfg.width, (None, "embed"))},
        "position": {
            "gain": Leaf((cfg.position_kernel,), (None,), "ones"),  # weight norm over each tap
            "direction": Leaf(tap, (None, None, None)),
            "b": Leaf((cfg.width,), (None,), "zeros"),
        },
        "blocks": stack(_block_spec(cfg), cfg.layers),
        "norm": norm.affine_spec(cfg.width),
    }


def steps_of(samples: int, cfg: Wav2Vec2Config) -> int:
    """Feature steps that so many samples give."""
    for _, kernel, stride in cfg.convolutions:
        samples = (samples - kernel) // stride + 1
    return samples


def normalise(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over a whole recording [n]."""
    return ((waveform - waveform.mean()) / np.sqrt(waveform.var() + NORMAL_EPS)).astype(np.float32)


def _convolve(x: jax.Array, w: jax.Array, stride: int, padding: list[tuple[int, int]], groups: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, w, (stride,), padding, dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
    )


def _layer_norm(p: dict, x: jax.Array, eps: float) -> jax.Array:
    return norm.affine(p, norm.layer_norm(x, eps))


def convolve(p: dict, waveform: jax.Array, *, cfg: Wav2Vec2Config) -> jax.Array:
    """Normalised sound [B, n] to features [B, steps, channels]."""
    x = waveform[..., None]
    for i, (_, _, stride) in enumerate(cfg.convolutions):
        q = p["convolutions"][str(i)]
        x = _layer_norm(q["norm"], _convolve(x, q["w"], stride, [(0, 0)]) + q["b"], cfg.eps)
        x = jax.nn.gelu(x, approximate=False)
    return x


def _place(p: dict, x: jax.Array, cfg: Wav2Vec2Config) -> jax.Array:
    """The convolution that stands for positions."""
    half, direction = cfg.position_kernel // 2, p["direction"]
    w = p["gain"][:, None, None] * direction / jnp.sqrt(jnp.square(direction).sum((1, 2), keepdims=True))
    y = _convolve(x, w, 1, [(half, half - (cfg.position_kernel + 1) % 2)], cfg.position_groups) + p["b"]
    return jax.nn.gelu(y, approximate=False)


def apply(p: dict, waveform: jax.Array, steps: jax.Array | None = None, *, cfg: Wav2Vec2Config) -> jax.Array:
    """All hidden states of normalised sound.

    Args:
      p: weights.
      waveform: from `normalise`, [B, n].
      steps: int32 [], feature steps that count, where the sound is followed by filling: the first `steps` states are
        those of the sound alone. None for all.
      cfg: the encoder.

    Returns:
      [layers + 1, B, steps, D]: the input of the first layer, every layer's output, the last one after the final norm.
    """
    chex.assert_rank(waveform, 2)
    h = convolve(p, waveform, cfg=cfg)
    x = dense.apply(p["projection"], _layer_norm(p["projection"]["norm"], h, cfg.eps))
    x = x if steps is None else jnp.where((jnp.arange(x.shape[1]) < steps)[:, None], x, 0.0)
    first = x + _place(p["position"], x, cfg)

    def body(x, weights, _):
        h = _layer_norm(weights["norm1"], x, cfg.eps)
        q, k, v = (split_heads(dense.apply(weights[name], h), cfg.heads) for name in "qkv")
        x = x + dense.apply(weights["o"], attend(q, k, v, count=steps, kernel="reference").reshape(x.shape))
        h = dense.apply(weights["in"], _layer_norm(weights["norm2"], x, cfg.eps))
        x = x + dense.apply(weights["out"], jax.nn.gelu(h, approximate=False))
        return x, x

    _, states = kv.loop(body, first, p["blocks"], kv.nothing(p["blocks"]), start=0, stop=cfg.layers)
    last = _layer_norm(p["norm"], states[-1], cfg.eps)
    return jnp.concatenate([first[None], states[:-1], last[None]])


class Places(NamedTuple):
    """Where features are read between steps: (1 - share) of step `low` and `share` of step `high`, or silence."""

    low: np.ndarray  # int32 [n]
    high: np.ndarray  # int32 [n]
    share: np.ndarray  # float32 [n]
    heard: np.ndarray  # bool [n]


def between(steps: int) -> int:
    """Number of 30 Hz features that so many 50 Hz ones become."""
    return int(steps / STEPS_HZ * BETWEEN_HZ)


def places(indices: np.ndarray, steps: int) -> Places:
    """Where the 30 Hz features `indices` lie among `steps` 50 Hz ones, ends on ends; silence past the last."""
    last = between(steps) - 1
    at = np.minimum(indices, last).astype(np.float64) * (steps - 1) / max(last, 1)
    low = np.minimum(at.astype(np.int32), steps - 1)
    high = np.minimum(low + 1, steps - 1).astype(np.int32)
    return Places(low, high, (at - low).astype(np.float32), indices <= last)


def read(states: Array, at: Places) -> Array:
    """Features [layers, steps, D] at places, [layers, n, D]."""
    share = at.share[None, :, None]
    return (states[:, at.low] * (1.0 - share) + states[:, at.high] * share) * at.heard[None, :, None]


def resample(states: np.ndarray) -> np.ndarray:
    """Features [layers, steps, D] from 50 to 30 a second, linearly between the first and the last."""
    steps = states.shape[1]
    return read(states, places(np.arange(between(steps)), steps))


def frame_indices(first: int, count: int, *, fps: int) -> np.ndarray:
    """Which 30 Hz feature each of `count` video frames hears (section 11.6), int64 [count]."""
    return np.round(np.arange(first, first + count) / fps * BETWEEN_HZ).astype(np.int64)


def clip_frames(steps: int, *, fps: int, clip: int) -> int:
    """Video frames of a recording filled up to whole clips of `clip` frames, as published: at least one too many."""
    return (int(between(steps) / (clip * (BETWEEN_HZ / fps))) + 1) * clip
