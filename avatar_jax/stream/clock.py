"""The one clock: audio sample <-> video frame <-> latent frame <-> block, and the rotary positions of a block.

Everything is counted in integers from the start of the stream, so nothing drifts:
one video frame is audio_hz / fps samples, one latent frame is 4 video frames, one block is `block_latents` of them.
The VAE's first latent, which decodes to one frame instead of four, is the reference; generated blocks follow it, so
block b shows exactly video frames [b T, (b + 1) T).
"""

import jax
import numpy as np

from avatar_jax.core.config import Config, PictureConfig
from avatar_jax.models import condition
from avatar_jax.nn import rope
from avatar_jax.stream.state import Place

STILL = np.array([condition.REFERENCE_TIME])  # position of the reference among the condition tokens


def frames_of(samples: int, cfg: Config) -> int:
    """Video frames that show a recording of `samples` samples: the last one may be partly silence."""
    return -(-samples // cfg.samples_per_frame)


def blocks_of(video_frames: int, cfg: Config) -> int:
    """Blocks that show `video_frames` frames."""
    return -(-video_frames // cfg.block_frames)


def times(block: int, cfg: Config) -> np.ndarray:
    """Rotary time positions of a block's latent frames, int64 [block_latents]."""
    return np.arange(block * cfg.stream.block_latents, (block + 1) * cfg.stream.block_latents)


def reference_times(block: int, cfg: Config) -> np.ndarray:
    """Rotary time position of the reference in each network call of a block, int64 [calls].

    It rolls ahead of the stream (live_avatar.md section 6.4): with s the block's first latent and R drawn anew for
    every call, max(s + R, `reference_from`). R depends on the seed and the block alone.
    """
    low, high = cfg.stream.reference_ahead
    drawn = np.random.default_rng([cfg.stream.seed, block]).integers(low, high, cfg.stream.calls, endpoint=True)
    return np.maximum(block * cfg.stream.block_latents + drawn, cfg.stream.reference_from)


def time_phase(positions: jax.Array | np.ndarray, cfg: PictureConfig) -> rope.Phase:
    """Phases along time, all of them that changes from block to block: [F] or [B, F] to [..., F, K_time]."""
    return rope.axis_phase(positions, rope.pairs(cfg.dit.head_size)[0], cfg.dit.rope_theta)


def spread(time: rope.Phase, cfg: PictureConfig) -> rope.Phase:
    """Phases of every token of latent frames, [..., F, K_time] to [..., F f, K/2]."""
    _, row, column = rope.pairs(cfg.dit.head_size)
    sides = zip(cfg.grid, (row, column), strict=True)
    return rope.box(time, *(rope.axis_phase(np.arange(size), count, cfg.dit.rope_theta) for size, count in sides))


def grid_phase(positions: jax.Array | np.ndarray, cfg: PictureConfig) -> rope.Phase:
    """Phases of every token of the latent frames at `positions`, [F] or [B, F]."""
    return spread(time_phase(positions, cfg), cfg)


def condition_phase(time: rope.Phase, cfg: PictureConfig) -> rope.Phase:
    """Phases of the condition tokens [..., R, K/2], the reference at `time` [..., 1, K_time]; motion never moves."""
    reference = spread(time, cfg)
    if not cfg.dit.motion_latents:
        return reference
    return rope.join(reference, condition.motion_phase(cfg.grid, cfg.latent_size, cfg.dit))


def phases(block: int, cfg: Config) -> tuple[rope.Phase, rope.Phase]:
    """Phases along time of a block's latent frames, [F, K_time], and of the reference in its calls [calls, 1, K_time].

    Float64 angles on the host: exact at any block number.
    """
    return time_phase(times(block, cfg), cfg), time_phase(reference_times(block, cfg)[:, None], cfg)


def place(block: int, cfg: Config) -> Place:
    """Where a block of one stream stands: its phases, its ring slot, and how much the ring holds once it is written."""
    window, tokens = cfg.stream.window_blocks, cfg.stream.block_latents * cfg.tokens_per_frame
    time, ahead = (rope.Phase(*(side[None] for side in phase)) for phase in phases(block, cfg))
    filled = min(block + 1, window) * tokens
    return Place(time, ahead, np.array([[block % window]], np.int32), np.array([filled], np.int32))
