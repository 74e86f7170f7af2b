"""A window of a stream seen at once: block-causal, as diffusion forcing trains it, or whole, as a teacher sees it.

The blocks of a window stand one after the other from position 0 on; the reference stands ahead of them, where a stream
has it (`clock.reference_times`).

Blocks tied by knots overlap, and what they remember is known and clean; so their window is two sequences in one,
[finished latents | blocks being drawn, each with its knot], in which a block sees itself, and of the finished latents
those that its memory would hold (`tied_velocity`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import Config
from avatar_jax.models import audio, condition, dit, inpaint, mask
from avatar_jax.stream import clock


def causal(blocks: int, cfg: Config) -> np.ndarray:
    """What a stream of `blocks` blocks sees: each block a copy of the reference, its window, and nothing later."""
    per_frame = cfg.tokens_per_frame
    return mask.with_reference(blocks, cfg.stream.window_blocks, cfg.stream.block_latents * per_frame, per_frame)


def whole(blocks: int, cfg: Config) -> np.ndarray:
    """Every token sees every other and the first copy of the reference, over the tokens of `causal`."""
    seen = np.ones_like(causal(blocks, cfg))
    seen[:, cfg.tokens_per_frame : blocks * cfg.tokens_per_frame] = False
    return seen


def starts(blocks: int, cfg: Config) -> np.ndarray:
    """Position of each block's first latent, [blocks]."""
    return np.arange(blocks) * cfg.stream.block_latents


def velocity(
    p: dict,
    x: jax.Array,
    sigma: jax.Array,
    reference: jax.Array,
    voices: tuple[audio.Voice, ...],
    *,
    ahead: jax.Array | np.ndarray,
    seen: np.ndarray | jax.Array | None,
    cross: Any = None,
    cfg: Config,
) -> jax.Array:
    """Velocity of a window.

    Args:
      p: weights of the transformer.
      x: noisy latents [B, F, h, w, C].
      sigma: level of each latent frame, [B, F].
      reference: latent of the portrait, [B, 1, h, w, C].
      voices: what drives it, from `rollout.voice_of`.
      ahead: rotary time position of each copy of the reference, a block's or the only one, [copies] or [B, copies].
      seen: `causal` or `whole` where every block has a copy; None where everything sees everything.
      cross: the prompt, from `dit.remember`, or None.
      cfg: the run, of the picture's own size.

    Returns:
      v = noise - x0, [B, F, h, w, C], float32.
    """
    tokens = condition.embed_reference(p, reference, cfg.dit)
    held = dit.prefill(p, tokens, clock.grid_phase(clock.STILL, cfg), cross, cfg=cfg.dit)
    phase, copies = clock.grid_phase(np.arange(x.shape[1]), cfg), clock.grid_phase(ahead, cfg)
    sides = {"phase": phase, "reference_phases": copies, "mask": seen, "given": nothing_known(x, cfg)}
    return dit.apply(p, x, sigma, held, voices=voices, cross=cross, **sides, cfg=cfg.dit)


def nothing_known(x: jax.Array, cfg: Config) -> condition.Given:
    """What a model that reads known latents is shown beside others: mask 0."""
    channels = cfg.dit.condition_channels
    return condition.Given(known=jnp.zeros((*x.shape[:-1], channels), x.dtype) if channels else None)


def teacher(
    p: dict,
    x: jax.Array,
    sigma: jax.Array,
    reference: jax.Array,
    voices: tuple[audio.Voice, ...],
    *,
    cross: Any = None,
    cfg: Config,
) -> jax.Array:
    """`velocity` where everything sees everything, one level for a clip: sigma [B].

    What `whole` lets through, without the copies of the reference that it hides: so it needs no mask.
    """
    level = jnp.broadcast_to(sigma[:, None], x.shape[:2])
    if cfg.stream.knot:  # behind the clip's end (knot_forcing.md section 1.5)
        ahead = np.array([clock.running_ahead(x.shape[1] // cfg.stream.block_latents - 1, cfg.stream)])
    else:
        ahead = starts(1, cfg) + cfg.stream.reference_ahead[0]
    return velocity(p, x, level, reference, voices, ahead=ahead, seen=None, cross=cross, cfg=cfg)


def tied_times(blocks: int, cfg: Config) -> np.ndarray:
    """Positions of the latent frames of a tied window: the finished ones, then every block's and its knot's."""
    return np.concatenate([np.arange(blocks * cfg.stream.block_latents), *(clock.times(b, cfg) for b in range(blocks))])


def tied_mask(blocks: int, cfg: Config) -> np.ndarray:
    """Who sees whom in a tied window, over a copy of the reference a block, bool [S, blocks f + S]."""
    assert cfg.stream.knot is not None
    length, drawn, time = cfg.stream.block_latents, cfg.stream.drawn_latents, tied_times(blocks, cfg)
    block = np.repeat(np.tile(np.arange(blocks), 2), np.repeat([length, drawn], blocks))
    finished = np.arange(len(time)) < blocks * length
    first = block[:, None] * length  # of the latents that a query's block draws
    window = cfg.stream.knot.window
    past = finished[None] & (time[None] < first) & (time[None] >= first + length - window)
    own = (block[:, None] == block[None]) & (finished[:, None] == finished[None])
    seen = np.concatenate([block[:, None] == np.arange(blocks)[None], past | own], 1)
    return np.repeat(np.repeat(seen, cfg.tokens_per_frame, 0), cfg.tokens_per_frame, 1)


def tied_velocity(
    p: dict,
    past: jax.Array,
    x: jax.Array,
    sigma: jax.Array,
    knots: jax.Array,
    tied: jax.Array,
    reference: jax.Array,
    voices: tuple[audio.Voice, ...],
    *,
    ahead: jax.Array | np.ndarray,
    cross: Any = None,
    cfg: Config,
) -> jax.Array:
    """Velocity of blocks tied by knots, each over the memory that the stream would have of those before it.

    Args:
      p: weights of the transformer.
      past: finished latents of all blocks, [B, N c, h, w, C].
      x: noisy latents of the blocks and their knots, [B, N, c + k, h, w, C].
      sigma: level of each block, [B, N].
      knots: what each block is shown of its first latents, [B, N, k, h, w, C].
      tied: whether it is shown them, [B, N] in 0 or 1.
      reference: latent of the portrait, [B, 1, h, w, C].
      voices: of all N c + k latents, from `rollout.voice_of`.
      ahead: rotary time position of the reference for each block, [N] or [B, N].
      cross: the prompt, from `dit.remember`, or None.
      cfg: the run, of the picture's own size.

    Returns:
      v = noise - x0, [B, N, c + k, h, w, C], float32.
    """
    batch, blocks, drawn = x.shape[:3]
    tokens = condition.embed_reference(p, reference, cfg.dit)
    held = dit.prefill(p, tokens, clock.grid_phase(clock.STILL, cfg), cross, cfg=cfg.dit)
    times = tied_times(blocks, cfg)
    shown = jnp.pad(
        knots * tied[..., None, None, None, None], ((0, 0), (0, 0), (0, drawn - knots.shape[2])) + 3 * ((0, 0),)
    )
    flags = jnp.pad(jnp.repeat(tied[..., None], knots.shape[2], 2), ((0, 0), (0, 0), (0, drawn - knots.shape[2])))
    known = inpaint.known_latents(
        jnp.concatenate([jnp.ones(past.shape[:2]), flags.reshape(batch, -1)], 1),
        jnp.concatenate([past, shown.reshape(batch, -1, *x.shape[3:])], 1),
    )
    v = dit.apply(
        p,
        jnp.concatenate([past, x.reshape(batch, -1, *x.shape[3:])], 1),
        jnp.concatenate([jnp.zeros(past.shape[:2]), jnp.repeat(sigma, drawn, 1)], 1),
        held,
        phase=clock.grid_phase(times, cfg),
        reference_phases=clock.grid_phase(ahead, cfg),
        mask=tied_mask(blocks, cfg),
        voices=tuple(voice.at(times) for voice in voices),
        cross=cross,
        given=condition.Given(known=known),
        cfg=cfg.dit,
    )
    return v[:, past.shape[1] :].reshape(x.shape)
