"""A window seen at once equals the stream that draws it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.models import audio, dit, inpaint
from avatar_jax.stream import clock, engine, knot, rollout, window
from tests.stream.algorithm_1 import scene_of, small, weights
from tests.stream.test_knot import SHAPES, block_of

BLOCKS = 4
CALL, REMEMBER, TIED = (
    jax.jit(each, static_argnames="cfg") for each in (rollout.call, knot.remember, window.tied_velocity)
)


@pytest.mark.parametrize(("c", "length", "k"), SHAPES[:3])
def test_a_tied_window_is_what_the_knot_engine_sees(c: int, length: int, k: int):
    """Any finished latents, knots and levels: each block over its memory, as in the stream that remembers those."""
    cfg, p = small(c, length, k), weights().dit
    sides, channels = cfg.latent_size, cfg.dit.latent_channels
    past, x, knots = (
        jax.random.normal(jax.random.key(seed), (1, BLOCKS, frames, *sides, channels))
        for seed, frames in enumerate((c, c + k, k))
    )
    sigma, tied = jnp.linspace(0.9, 0.2, BLOCKS)[None], jnp.array([[0.0, 1.0, 1.0, 0.0]])
    memory, drawn, voices = engine.start(weights(), scene_of(cfg), cfg).caches.caches[0], [], []
    for number in range(BLOCKS):
        block = block_of(number, cfg)
        flight = dataclasses.replace(rollout.enter(p, block, cfg=cfg), latent=x[:, number])
        shown = jnp.concatenate([knots[:, number] * tied[0, number], jnp.zeros((1, c, *sides, channels))], 1)
        flags = jnp.repeat(tied[:, number], c + k)[None] * (np.arange(c + k) < k)
        flight = dataclasses.replace(flight, known=inpaint.known_latents(flags, shown))
        heard, at = dit.hear(p, flight.voices, cfg=cfg.dit), dit.level(p, sigma[0, number], cfg=cfg.dit)
        memory, v = CALL(p, memory, flight, at, 0, heard, None, cfg=cfg)
        drawn.append(v)
        memory = REMEMBER(p, memory, knot.shown(flight, past[:, number], cfg=cfg), None, cfg=cfg)
        voices.append(flight.voices[0])
    whole = TIED(
        p,
        past.reshape(1, BLOCKS * c, *sides, channels),
        x,
        sigma,
        knots,
        tied,
        scene_of(cfg).reference,
        (joined(voices, c),),
        ahead=np.array([clock.running_ahead(number, cfg.stream) for number in range(BLOCKS)]),
        cfg=cfg,
    )
    np.testing.assert_allclose(whole[0], np.concatenate(drawn), atol=2e-5)
    assert np.abs(whole).mean() > 0.1


def joined(voices: list[audio.Voice], c: int) -> audio.Voice:
    """The voices of blocks that overlap, as one of all their latents: the sound repeats itself where they do."""
    own = [jax.tree.map(lambda side: side[:, :c], voice) for voice in voices[:-1]]
    return jax.tree.map(lambda *sides: jnp.concatenate(sides, 1), *own, voices[-1])
