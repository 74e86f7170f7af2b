"""A live session as values: everything that changes from block to block, and everything that does not."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax

from avatar_jax.models.audio import Voice
from avatar_jax.models.vae import Tail
from avatar_jax.nn.rope import Phase


@flax.struct.dataclass
class Scene:
    """What a stream shows, until someone changes it."""

    reference: jax.Array  # latent of the portrait [B, 1, h, w, C]
    still: jax.Array  # latents of the portrait standing still, [B, n, h, w, C]: motion, and what the decoder saw
    cross: Any = None  # the prompt, from `dit.remember`, or None


@flax.struct.dataclass
class StreamState:
    """What a block reads and replaces.

    `caches` holds one memory a denoising step ("timestep" history) or a single one ("clean"); each memory is one
    `KVCache` a layer.
    """

    caches: tuple[Any, ...]
    tail: Tail  # the VAE decoder's


@flax.struct.dataclass
class Place:
    """Where a block stands in its stream and in the ring."""

    time: Phase  # of its latent frames, [F, K_time]
    reference_time: Phase  # of the reference in each network call, [calls, 1, K_time]
    slots: jax.Array  # int32 [1], ring slot of this block
    filled: jax.Array  # int32 [], ring tokens that hold something, this block included


@flax.struct.dataclass
class Speaker:
    """What drives one speaker of a block."""

    features: jax.Array  # sound, [B, context + frames, layers, audio_width]
    signals: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)  # [B, frames, width]; NaN: absent
    mask: jax.Array | None = None  # what of the picture it drives, [B, F, f] in 0..1; None for all of it


@flax.struct.dataclass
class BlockInput:
    """What the host knows of one block before it is drawn."""

    speakers: tuple[Speaker, ...]
    noise: jax.Array  # [B, F, h, w, C]
    place: Place
    pose: jax.Array | None = None  # latents of a pose video, [B, F, h, w, C]; None for no pose


@flax.struct.dataclass
class Flight:
    """A block being drawn: all that a step needs of it, and hands on."""

    latent: jax.Array  # [B, F, h, w, C], in the transformer's dtype
    voices: tuple[Voice, ...]  # with the tokens of their signals
    place: Place
    pose: jax.Array | None = None


@flax.struct.dataclass
class Weights:
    """The two networks a stream needs."""

    dit: dict
    vae: dict
