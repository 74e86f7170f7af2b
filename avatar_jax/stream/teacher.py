"""The teacher at work: a clip drawn whole in many guided steps (live_avatar.md section 16).

(1)  v = v_u + g (v_c - v_u)      v_c hears the speakers, v_u nothing
"""

import functools

import jax
import numpy as np

from avatar_jax.core.config import Config
from avatar_jax.diffusion import flow, schedule
from avatar_jax.stream import rollout, window
from avatar_jax.stream.state import Speaker

Speakers = tuple[Speaker, ...]


def velocity(
    p: dict,
    x: jax.Array,
    level: jax.Array,
    reference: jax.Array,
    speakers: Speakers,
    unheard: Speakers,
    *,
    guidance: float,
    cfg: Config,
) -> jax.Array:
    """Equation (1) at one level [B] of a clip x [B, F, h, w, C]; unheard: the speakers with nothing to say."""
    heard, nothing = (
        window.teacher(p, x, level, reference, tuple(rollout.voice_of(p, speaker, cfg=cfg) for speaker in who), cfg=cfg)
        for who in (speakers, unheard)
    )
    return flow.guided(heard, nothing, guidance)


@functools.lru_cache(maxsize=4)
def make_draw(steps: int, guidance: float, cfg: Config):
    """A clip in Euler steps, compiled: (weights, noise [B, F, h, w, C], reference, speakers, unheard) -> latents."""
    levels = schedule.sigmas(steps, cfg.stream.shift)

    def draw(p: dict, noise: jax.Array, reference: jax.Array, speakers: Speakers, unheard: Speakers) -> jax.Array:
        def step(k: jax.Array, x: jax.Array) -> jax.Array:
            level, below = (jax.numpy.asarray(side)[k] for side in (levels[:-1], levels[1:]))
            at = jax.numpy.full(len(x), level)
            v = velocity(p, x, at, reference, speakers, unheard, guidance=guidance, cfg=cfg)
            return flow.euler(x, v, level, below)

        return jax.lax.fori_loop(0, steps, step, noise.astype(np.float32))

    return jax.jit(draw)
