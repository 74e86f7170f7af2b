"""The one clock: audio sample <-> video frame <-> latent frame <-> block, and the rotary positions of a block.

Everything is counted in integers from the start of the stream, so nothing drifts:
one video frame is audio_hz / fps samples, one latent frame is 4 video frames, one block is `block_latents` of them.
The VAE's first latent, which decodes to one frame instead of four, is the reference; generated blocks follow it, so
block b shows exactly video frames [b T, (b + 1) T).
"""

import jax
import numpy as np

from avatar_jax.core.config import Config, PictureConfig, StreamConfig
from avatar_jax.models import condition
from avatar_jax.nn import kv, rope
from avatar_jax.stream.state import Place

STILL = np.array([condition.REFERENCE_TIME])  # position of the reference among the condition tokens


def frames_of(samples: int, cfg: Config) -> int:
    """Video frames that show a recording of `samples` samples: the last one may be partly silence."""
    return -(-samples // cfg.samples_per_frame)


def blocks_of(video_frames: int, cfg: Config) -> int:
    """Blocks that show `video_frames` frames."""
    return -(-video_frames // cfg.block_frames)


def waits(cfg: Config) -> int:
    """Video frames of sound after a block's own that it waits for: those of the knot, and what the ear hears ahead."""
    return cfg.heard_frames - cfg.block_frames + cfg.stream.audio_ahead


def look_ahead(cfg: Config) -> np.ndarray:
    """Seconds from a video frame's own sound to the sound that completes its block, for each frame of a block, [T].

    Before that nothing of the block is drawn: the rest of its sound has to come, and what `waits` counts after it.
    """
    return (np.arange(cfg.block_frames)[::-1] + waits(cfg)) / cfg.video.fps


def times(block: int, cfg: Config) -> np.ndarray:
    """Rotary time positions of the latent frames that a block draws, a knot's after its own, int64 [drawn_latents]."""
    first = block * cfg.stream.block_latents
    return np.arange(first, first + cfg.stream.drawn_latents)


def reference_times(block: int, cfg: Config) -> np.ndarray:
    """Rotary time position of the reference in each network call of a block, int64 [calls].

    It rolls ahead of the stream (live_avatar.md section 6.4): with s the block's first latent and R drawn anew for
    every call, max(s + R, `reference_from`). R depends on the seed and the block alone. With a knot it runs ahead.
    """
    if cfg.stream.knot:
        return np.full(cfg.stream.calls, running_ahead(block, cfg.stream))
    low, high = cfg.stream.reference_ahead
    drawn = np.random.default_rng([cfg.stream.seed, block]).integers(low, high, cfg.stream.calls, endpoint=True)
    return np.maximum(block * cfg.stream.block_latents + drawn, cfg.stream.reference_from)


def running_ahead(block: int, cfg: StreamConfig) -> int:
    """Rotary time position of the reference of a stream with a knot (knot_forcing.md section 1.5).

    It stands at n0 and jumps on by s whenever a block would draw the position it stands at: the first of n0, n0 + s,
    n0 + 2 s ... beyond the last latent that the block draws.
    """
    assert cfg.knot is not None
    start, jump = cfg.knot.reference_start, cfg.knot.reference_jump
    behind = block * cfg.block_latents + cfg.drawn_latents - start
    return start + max(0, -(-behind // jump)) * jump


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


def condition_phase(time: rope.Phase, cfg: Config) -> rope.Phase:
    """Phases of the condition tokens [..., R, K/2], the reference at `time` [..., 1, K_time]; motion never moves."""
    reference = spread(time, cfg)
    if not cfg.motion_latents:
        return reference
    return rope.join(reference, condition.motion_phase(cfg.grid, cfg.latent_size, cfg.dit))


def phases(block: int, cfg: Config) -> tuple[rope.Phase, rope.Phase]:
    """Phases along time of a block's latent frames, [F, K_time], and of the reference in its calls [calls, 1, K_time].

    Float64 angles on the host: exact at any block number.
    """
    return time_phase(times(block, cfg), cfg), time_phase(reference_times(block, cfg)[:, None], cfg)


def place(block: int, cfg: Config) -> Place:
    """Where a block of one stream stands: its phases, its ring slot, and how much the ring holds once it is written.

    With a knot every latent has a slot of its own.
    """
    time, ahead = (rope.Phase(*(side[None] for side in phase)) for phase in phases(block, cfg))
    slots, latents = _slots(block, cfg)
    filled, tied = np.array([latents * cfg.tokens_per_frame], np.int32), np.array([block > 0])
    return Place(time, ahead, slots[None].astype(np.int32), filled, tied if cfg.stream.knot else None)


def _slots(block: int, cfg: Config) -> tuple[np.ndarray, int]:
    """Ring slots of a block, and latents in the ring once it is written.

    With a knot: those of its latents in the ring of `window`, and its knot's right behind what is filled there.
    """
    if not cfg.stream.knot:
        window = cfg.stream.window_blocks
        return np.array([block % window]), min(block + 1, window) * cfg.stream.block_latents
    own, knot = np.split(times(block, cfg), [cfg.stream.block_latents])
    filled = min(int(knot[0]), cfg.stream.knot.window)
    slots = np.concatenate([kv.places(own, cfg.stream.knot.window, 0), filled + np.arange(len(knot))])
    return slots, filled + len(knot)
