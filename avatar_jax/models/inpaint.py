"""Known frames as input channels (Wan image to video): four mask channels, then the known latents."""

import jax
import jax.numpy as jnp

STRIDE = 4  # video frames of a latent: one mask channel each


def known_frames(mask: jax.Array, latents: jax.Array) -> jax.Array:
    """Mask and latents as one input.

    Args:
      mask: 1 where a video frame is given, [B, 1 + 4k] or with rows and columns [B, 1 + 4k, h, w].
      latents: encoded known frames (the rest encoded as grey), [B, 1 + k, h, w, C].

    Returns:
      [B, 1 + k, h, w, 4 + C]; the first latent has one video frame, which fills its four channels.
    """
    batch, frames, rows, columns, _ = latents.shape
    mask = mask if mask.ndim == 4 else jnp.broadcast_to(mask[..., None, None], (*mask.shape, rows, columns))
    opened = jnp.concatenate([jnp.repeat(mask[:, :1], STRIDE, 1), mask[:, 1:]], 1)
    channels = opened.reshape(batch, frames, STRIDE, rows, columns).transpose(0, 1, 3, 4, 2)
    return jnp.concatenate([channels.astype(latents.dtype), latents], -1)


def first_frame(latents: jax.Array) -> jax.Array:
    """`known_frames` where only the first video frame is given."""
    frames = 1 + STRIDE * (latents.shape[1] - 1)
    return known_frames(jnp.zeros((len(latents), frames)).at[:, 0].set(1.0), latents)


def known_latents(mask: jax.Array, latents: jax.Array) -> jax.Array:
    """`known_frames` where latents are known as a whole, all [B, F] of them anywhere in a stream.

    Args:
      mask: 1 where a latent is given, [B, F].
      latents: [B, F, h, w, C], zeros where none is given.
    """
    return known_frames(jnp.repeat(mask, STRIDE, 1)[:, STRIDE - 1 :], latents)
