"""A live session as values: everything that changes from block to block, and everything that does not."""

from typing import Any

import flax.struct
import jax

from avatar_jax.models.vae import Tail
from avatar_jax.nn.rope import Phase


@flax.struct.dataclass
class StreamState:
    """What a block reads and replaces.

    `caches` holds one memory a denoising step ("timestep" history) or a single one ("clean"); each memory is one
    `KVCache` a layer.
    """

    caches: tuple[Any, ...]
    tail: Tail  # the VAE decoder's


@flax.struct.dataclass
class BlockInput:
    """What the host knows of one block before it is drawn."""

    features: jax.Array  # sound, [B, context + frames, layers, audio_width]
    noise: jax.Array  # [B, F, h, w, C]
    phase: Phase  # of the block's tokens
    reference_phase: Phase
    slots: jax.Array  # int32 [1], ring slot of this block
    filled: jax.Array  # int32 [], ring tokens that hold something, this block included


@flax.struct.dataclass
class Weights:
    """The two networks a stream needs."""

    dit: dict
    vae: dict
