"""Driving signals beside the sound: a few numbers a video frame, as tokens that the injectors read with it.

A signal is a row of numbers for every video frame (head pose, gaze, expression). The four rows of a latent frame become
one token among the sound's local tokens, so each injector's attention sees both, aligned frame by frame
(knot_forcing.md section 1.2). A row that is not there, marked by NaN, is a learned one: any signal may be absent from
any frame, and the sound may be silence while signals are there.

Attention adds what a token says to the picture wherever it looks for it. A turn of the head is no such thing: it moves
what is there, in each place something else. So the tokens' sum also scales every channel of the picture's tokens, in
each injector (FiLM, arXiv 1709.07871).
"""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig, Signal
from avatar_jax.core.spec import Leaf
from avatar_jax.models.audio import Voice
from avatar_jax.nn import dense

FRAMES = 4  # video frames of a latent frame


def spec(cfg: DitConfig) -> dict:
    """Weights of every signal that `cfg` has, by name."""
    group = cfg.width // FRAMES
    return {
        signal.name: {
            "in": dense.spec(signal.width, group, (None, None)),
            "absent": Leaf((group,), (None,), "zeros"),
            "out": dense.spec(cfg.width, cfg.width, ("embed", None)),
        }
        for signal in cfg.signals
    }


def _token(p: dict, rows: jax.Array, signal: Signal) -> jax.Array:
    """Rows of one signal [B, 4F, width] to its tokens [B, F, D]. No norm: a larger deviation is a larger token."""
    there = jnp.isfinite(rows).all(-1, keepdims=True)
    scaled = jnp.where(there, rows, 0.0) / np.array(signal.spread, np.float32)
    hidden = jax.nn.silu(jnp.where(there, dense.apply(p["in"], scaled), p["absent"]))
    return dense.apply(p["out"], hidden.reshape(len(rows), -1, FRAMES * hidden.shape[-1]))


def join(p: dict, voice: Voice, rows: Mapping[str, jax.Array], *, cfg: DitConfig) -> Voice:
    """A voice with its signals' tokens after the sound's, in float32; the same voice where `cfg` has no signals.

    Args:
      p: weights of the transformer.
      voice: from `audio.encode`.
      rows: by name, [B, 4F, width]; a row with NaN is absent, and so is a signal that is left out.
      cfg: transformer configuration.
    """
    if not cfg.signals:
        return voice
    batch, frames = voice.local.shape[:2]
    tokens = []
    for signal in cfg.signals:
        shape = (batch, FRAMES * frames, signal.width)
        given = rows.get(signal.name, jnp.full(shape, jnp.nan))
        chex.assert_shape(given, shape)
        tokens.append(_token(p["signals"][signal.name], given.astype(jnp.float32), signal))
    given = jnp.stack(tokens, 2)
    return voice._replace(local=jnp.concatenate([voice.local, given], 2), moved=given.sum(2))
