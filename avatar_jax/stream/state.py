"""A live session as values: everything that changes from block to block, and everything that does not."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np

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
class Tied:
    """What a block of the knot engine reads and replaces."""

    caches: tuple[Any, ...]  # one memory, of finished latents alone
    knot: jax.Array  # [B, k, h, w, C], the next block's first latents as the last block saw them


@flax.struct.dataclass
class StreamState:
    """What a block reads and replaces.

    `caches` holds one memory a denoising step ("timestep" history) or a single one ("clean"); each memory is one
    `KVCache` a layer. The knot engine holds `Tied`.
    """

    caches: Any
    tail: Tail  # the VAE decoder's


@flax.struct.dataclass
class Place:
    """Where a block stands in its stream and in the ring; every stream of a batch in its own place."""

    time: Phase  # of its latent frames, [B, F, K_time], a knot's included
    reference_time: Phase  # of the reference in each network call, [B, calls, 1, K_time]
    slots: jax.Array | np.ndarray  # int32 [B, 1], ring slot of this block; with a knot [B, F], of each latent
    filled: jax.Array | np.ndarray  # int32 [B], ring tokens that hold something with this block; 0: there is no block
    tied: jax.Array | np.ndarray | None = None  # bool [B], whether the block before has left a knot; None: nobody does


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
    noise: jax.Array  # [B, F, h, w, C]; with a knot every step's, one after the other, [B, steps F, h, w, C]
    place: Place
    pose: jax.Array | None = None  # latents of a pose video, [B, F, h, w, C]; None for no pose


@flax.struct.dataclass
class Flight:
    """A block being drawn: all that a step needs of it, and hands on."""

    latent: jax.Array  # [B, F, h, w, C], in the transformer's dtype
    voices: tuple[Voice, ...]  # with the tokens of their signals
    place: Place
    pose: jax.Array | None = None
    known: jax.Array | None = None  # mask and known latents beside it, [B, F, h, w, condition_channels]


@flax.struct.dataclass
class Weights:
    """The two networks a stream needs."""

    dit: dict
    vae: dict
