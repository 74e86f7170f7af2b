"""From video-rate sound features to the transformer: causal encoder and AdaIN injectors (Wan2.2-S2V form).

The encoder's convolutions see the past alone: the tokens of a latent frame depend on its own four video frames and
the five before them (live_avatar.md section 1.7), so a stream needs only `audio_context` frames of left context.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig
from avatar_jax.core.spec import Leaf, stack
from avatar_jax.nn import attention, dense, norm


class Voice(NamedTuple):
    """The sound of one speaker, as the injectors read it."""

    local: jax.Array  # [B, F, audio_tokens + 1, D], and a token more for every driving signal
    whole: jax.Array  # [B, F, D], one global token a latent frame
    mask: jax.Array | None = None  # [B, F, f], the tokens it drives
    moved: jax.Array | None = None  # [B, F, D], its driving signals together, of a model that has them

    def at(self, times: np.ndarray) -> "Voice":
        """The same voice over these of its latent frames."""
        moved = None if self.moved is None else self.moved[:, times]
        return self._replace(local=self.local[:, times], whole=self.whole[:, times], moved=moved)


_EPS = 1e-6


def _conv_spec(inputs: int, outputs: int) -> dict[str, Leaf]:
    return {"w": Leaf((3, inputs, outputs), (None, None, None)), "b": Leaf((outputs,), (None,), "zeros")}


def encoder_spec(cfg: DitConfig) -> dict:
    """Weights of the causal audio encoder."""
    width, group = cfg.width, cfg.width // cfg.audio_tokens
    return {
        "layers": Leaf((cfg.audio_layers,), (None,), "ones", 0.01),
        "local": _conv_spec(cfg.audio_width, width),
        "global": _conv_spec(cfg.audio_width, group),
        "conv2": _conv_spec(group, width // 2),
        "conv3": _conv_spec(width // 2, width),
        "final": dense.spec(width, width, ("embed", None)),
        "padding": Leaf((width,), (None,), "zeros"),
    }


def injector_spec(cfg: DitConfig) -> dict:
    """Weights of all injectors, stacked along their own axis."""
    one = {
        "attention": attention.spec(cfg.width, "zeros"),
        "adain": dense.spec(cfg.width, 2 * cfg.width, ("embed", None)),
    }
    if cfg.signals:
        one["moved"] = dense.spec(cfg.width, 2 * cfg.width, ("embed", None), "zeros")
    return stack(one, len(cfg.audio_inject))


def _causal(p: dict, x: jax.Array, stride: int) -> jax.Array:
    """Kernel 3, two copies of the first step on its left. x: [B, A, C] -> [B, ceil(A / stride), O]."""
    padded = jnp.concatenate([x[:, :1], x[:, :1], x], 1)
    length = x.shape[1]
    stacked = jnp.concatenate([padded[:, i : i + length : stride] for i in range(3)], -1)
    return stacked @ p["w"].reshape(-1, p["w"].shape[-1]) + p["b"]


def _halve_twice(p: dict, x: jax.Array) -> jax.Array:
    """The convolutions both paths share: LN, SiLU, then twice (stride-2 conv, LN, SiLU). [B, A, C] -> [B, A', D]."""
    for name in ("conv2", "conv3"):
        x = _causal(p[name], jax.nn.silu(norm.layer_norm(x, _EPS)), 2)
    return jax.nn.silu(norm.layer_norm(x, _EPS))


def encode(p: dict, features: jax.Array, mask: jax.Array | None = None, *, context: int, cfg: DitConfig) -> Voice:
    """Sound features to tokens of latent frames, in float32.

    Args:
      p: weights of `encoder_spec`.
      features: [B, context + 4F, layers, audio_width], one row a video frame.
      mask: what of the picture this voice drives, [B, F, f] in 0..1; None for all of it.
      context: leading video frames that only serve as left context; 5 or more, 1 modulo 4.
      cfg: transformer configuration.
    """
    chex.assert_shape(features, (None, None, cfg.audio_layers, cfg.audio_width))
    mix = jax.nn.silu(p["layers"])
    sound = jnp.einsum("balw,l->baw", features.astype(jnp.float32), mix / mix.sum())
    batch, frames, _ = sound.shape
    local = _causal(p["local"], sound, 1).reshape(batch, frames, cfg.audio_tokens, -1)
    local = local.transpose(0, 2, 1, 3).reshape(batch * cfg.audio_tokens, frames, -1)
    local = _halve_twice(p, local)
    local = local.reshape(batch, cfg.audio_tokens, *local.shape[1:]).transpose(0, 2, 1, 3)
    padding = jnp.broadcast_to(p["padding"], (*local.shape[:2], 1, cfg.width))
    whole = dense.apply(p["final"], _halve_twice(p, _causal(p["global"], sound, 1)))
    first = (context + 3) // 4  # outputs whose newest frame is still context
    return Voice(jnp.concatenate([local, padding], 2)[:, first:], whole[:, first:], mask)


class Heard(NamedTuple):
    """What one injector makes of one voice; it changes with the sound, not with the picture or its noise level."""

    shift: jax.Array  # [B, F, 1, D]
    scale: jax.Array  # [B, F, 1, D]
    k: jax.Array  # [B F, local tokens, N, K]
    v: jax.Array  # [B F, local tokens, N, K]
    mask: jax.Array | None  # [B, F, f]
    moved: jax.Array | None = None  # [B, F, 1, 2 D], what the signals add to a token, and how they scale it


def hear(p: dict, voice: Voice, *, cfg: DitConfig) -> Heard:
    """One injector's side of the sound, in the dtype of the transformer. p: one injector's weights."""
    whole, local = voice.whole.astype(cfg.compute_dtype), voice.local.astype(cfg.compute_dtype)
    shift, scale = jnp.split(dense.apply(p["adain"], jax.nn.silu(whole))[:, :, None], 2, -1)
    k, v = attention.keys_values(p["attention"], local.reshape(-1, *local.shape[2:]), heads=cfg.heads, eps=cfg.eps)
    moved = None
    if voice.moved is not None:
        moved = dense.apply(p["moved"], jax.nn.silu(voice.moved.astype(cfg.compute_dtype)))[:, :, None]
    return Heard(shift, scale, k, v, voice.mask, moved)


def _residual(p: dict, x: jax.Array, heard: Heard, cfg: DitConfig) -> jax.Array:
    """One voice's attention output for the tokens of each latent frame, and its signals' effect. x: [B, F, f, D]."""
    plain = norm.layer_norm(x, norm.TORCH_EPS)
    h = (plain * (1.0 + heard.scale) + heard.shift).astype(x.dtype).reshape(-1, *x.shape[2:])
    memory = [(heard.k, heard.v)]
    out = attention.cross(p["attention"], h, memory, heads=cfg.heads, eps=cfg.eps, kernel=cfg.attention)
    out = out.reshape(x.shape)
    if heard.moved is not None:
        shift, scale = jnp.split(heard.moved, 2, -1)
        out += (plain * scale + shift).astype(x.dtype)
    return out if heard.mask is None else out * heard.mask[..., None].astype(x.dtype)


def inject(p: dict, x: jax.Array, heard: tuple[Heard, ...], *, cfg: DitConfig) -> jax.Array:
    """Adds one injector's attention over the sound of each latent frame to that frame's tokens.

    Args:
      p: one injector's weights.
      x: [B, F, f, D].
      heard: each speaker's tokens, from `hear`; every one drives the part of the picture in its mask.
      cfg: transformer configuration.
    """
    return x + sum(_residual(p, x, voice, cfg) for voice in heard)
