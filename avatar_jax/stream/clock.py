"""The one clock: audio sample <-> video frame <-> latent frame <-> block, and the rotary positions of a block.

Everything is counted in integers from the start of the stream, so nothing drifts:
one video frame is audio_hz / fps samples, one latent frame is 4 video frames, one block is `block_latents` of them.
The VAE's first latent, which decodes to one frame instead of four, is the reference; generated blocks follow it, so
block b shows exactly video frames [b T, (b + 1) T).
"""

import jax
import numpy as np

from avatar_jax.core.config import Config
from avatar_jax.nn import rope

STILL = np.array([0])  # the reference among its own tokens: only differences of positions count


def frames_of(samples: int, cfg: Config) -> int:
    """Video frames that show a recording of `samples` samples: the last one may be partly silence."""
    return -(-samples // cfg.mel.samples_per_frame)


def blocks_of(video_frames: int, cfg: Config) -> int:
    """Blocks that show `video_frames` frames."""
    return -(-video_frames // cfg.block_frames)


def times(block: int, cfg: Config) -> np.ndarray:
    """Rotary time positions of a block's latent frames, int64 [block_latents]."""
    return np.arange(block * cfg.stream.block_latents, (block + 1) * cfg.stream.block_latents)


def reference_time(block: int, cfg: Config) -> np.ndarray:
    """Rotary time position of the reference, which rolls ahead of the stream (section 6.4), int64 [1]."""
    return np.array([block * cfg.stream.block_latents + cfg.stream.reference_offset])


def grid_phase(positions: jax.Array | np.ndarray, cfg: Config) -> rope.Phase:
    """Phases of every token of the latent frames at `positions`, [F] or [B, F]."""
    return rope.grid_phase(positions, cfg.grid, head_size=cfg.dit.head_size, theta=cfg.dit.rope_theta)


def phases(block: int, cfg: Config) -> tuple[rope.Phase, rope.Phase]:
    """Phases of a block's tokens and of the reference seen from it, exact at any block number."""
    return grid_phase(times(block, cfg), cfg), grid_phase(reference_time(block, cfg), cfg)


def place(block: int, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Ring slot of a block, int32 [1], and how many ring tokens hold something once it is written, int32 []."""
    window, tokens = cfg.stream.window_blocks, cfg.stream.block_latents * cfg.tokens_per_frame
    return np.array([block % window], np.int32), np.array(min(block + 1, window) * tokens, np.int32)
