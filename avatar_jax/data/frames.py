"""Short silent clips of the drawn world for training the VAE: no speech is synthesised, mouths wander."""

import grain
import numpy as np

from avatar_jax.data.controls import sample_motion
from avatar_jax.data.identity import sample_identity
from avatar_jax.data.world import reference, render_clip


def _wander(rng: np.random.Generator, video_frames: int, every: int = 3) -> np.ndarray:
    """A random track in 0..1 that turns about every `every` frames. float32 [T]"""
    knots = rng.beta(0.7, 1.0, video_frames // every + 2)
    return np.interp(np.arange(video_frames), np.arange(len(knots)) * every, knots).astype(np.float32)


def wandering_clip(seed: int, index: int, *, video_frames: int, size: int) -> np.ndarray:
    """uint8 [T, size, size, 3]; half of the clips open with the still reference, as a stream does."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    who = sample_identity(rng)
    opening = _wander(rng, video_frames)
    width = 2.0 * _wander(rng, video_frames) - 1.0
    motion = sample_motion(rng, video_frames, opening, mouth_open=opening, mouth_width=width)
    frames = render_clip(who, motion, size)
    if video_frames > 1 and rng.random() < 0.5:
        frames[0] = reference(who, rng, size)
    return frames


def frame_dataset(seed: int, *, video_frames: int, size: int, batch: int) -> grain.MapDataset:
    """Endless batches uint8 [B, T, size, size, 3], a new identity each clip, the same for the same seed."""
    indices = grain.MapDataset.range(2**31 - 1)
    return indices.map(lambda i: wandering_clip(seed, int(i), video_frames=video_frames, size=size)).batch(batch)
