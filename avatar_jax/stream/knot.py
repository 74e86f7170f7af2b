"""Knot Forcing: blocks tied by latents that two of them predict (knot_forcing.md sections 1.3 to 1.5).

A block draws c latents of its own and k more, the knot, over [reference | history | block | knot]. With G the network's
prediction of x0 at level s, e fresh noise and s' the next level

(1)  x    <- (1 - s') G(x, s) + s' e        after every step but the last
(2)  y_j   = (knot_j + x0_j) / 2            after the last, for the first k latents: the knot of the block before is
                                            their other prediction, and what the network sees of them in every step

The first c latents of the result are shown and, in a pass of their own at level 0, remembered; the k after them are
the next knot, which no memory ever holds. A known latent is one the network is shown through its condition channels,
mask 1: the reference, a knot, and what is remembered. All else has mask 0 and zeros.

In the memory a latent t lies at place t mod L; the knot's keys are scratch, right behind what is filled, so every call
reads a prefix. c, k, L: `config.stream.block_latents`, `.knot.latents`, `.knot.window`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import Config
from avatar_jax.diffusion import flow
from avatar_jax.models import dit, inpaint
from avatar_jax.nn import bands, kv
from avatar_jax.stream import rollout
from avatar_jax.stream.state import BlockInput, Flight, Place, Tied


def begin(p: dict, held: Any, *, cfg: Config) -> Tied:
    """A stream's memory with nothing but a scene in it, and room for a knot; held: from `rollout.prefill`."""
    caches, knot = rollout.begin(p, held, cfg=cfg), cfg.stream.knot
    batch = kv.layer(caches[0], 0).k.shape[0]
    shape = (batch, knot.latents if knot else 0, *cfg.latent_size, cfg.dit.latent_channels)
    return Tied(caches, jnp.zeros(shape, cfg.dit.compute_dtype))


def refill(p: dict, tied: Tied, held: Any, stream: int | jax.Array = 0) -> Tied:
    """`rollout.refill`: another scene, the history and the knot as they are."""
    return dataclasses.replace(tied, caches=rollout.refill(p, tied.caches, held, stream))


def enter(p: dict, tied: Tied, block: BlockInput, *, cfg: Config) -> tuple[Flight, list[jax.Array]]:
    """A block before its first step, the knot in its condition channels, and the noise of every step."""
    flight = rollout.enter(p, block, cfg=cfg)
    noises = jnp.split(flight.latent, cfg.stream.steps, 1)
    unknown = cfg.stream.drawn_latents - tied.knot.shape[1]
    mask = jnp.broadcast_to(jnp.asarray(block.place.tied)[:, None], tied.knot.shape[:2]).astype(tied.knot.dtype)
    seen = jnp.pad(tied.knot * _wide(mask), ((0, 0), (0, unknown), (0, 0), (0, 0), (0, 0)))
    known = inpaint.known_latents(jnp.pad(mask, ((0, 0), (0, unknown))), seen)
    return dataclasses.replace(flight, latent=noises[0], known=known), noises


def _wide(flags: jax.Array) -> jax.Array:
    """Flags of latents [B, F] beside latents [B, F, h, w, C]."""
    return flags[..., None, None, None]


def fuse(tied: Tied, x0: jax.Array, place: Place) -> jax.Array:
    """Equation (2) over all latents of a block [B, F, h, w, C]; block 0 has nothing to fuse with."""
    k = tied.knot.shape[1]
    mean = (tied.knot.astype(x0.dtype) + x0[:, :k]) / 2
    both = _wide(jnp.asarray(place.tied)[:, None])
    return jnp.concatenate([jnp.where(both, mean, x0[:, :k]), x0[:, k:]], 1)


def shown(flight: Flight, latents: jax.Array, *, cfg: Config) -> Flight:
    """A finished block as it is remembered: its own latents [B, c, h, w, C], known, without the knot's share."""
    own, place = latents.shape[1], flight.place
    knot_tokens = (cfg.stream.drawn_latents - own) * cfg.tokens_per_frame

    def cut(side: jax.Array) -> jax.Array:  # [B, F, ...]
        return side[:, :own]

    return Flight(
        latent=latents,
        voices=jax.tree.map(cut, flight.voices),
        place=dataclasses.replace(
            place,
            time=jax.tree.map(lambda side: side[..., :own, :], place.time),
            slots=place.slots[..., :own],
            filled=jnp.maximum(place.filled - knot_tokens, 0),
        ),
        pose=jax.tree.map(cut, flight.pose),
        known=inpaint.known_latents(jnp.ones(latents.shape[:2]), latents),
    )


def remember(p: dict, memory: Any, flight: Flight, cross: Any, *, band: bands.Axes = None, cfg: Config) -> Any:
    """The memory with a finished block's clean keys in it; flight: from `shown`."""
    clean, heard = dit.level(p, np.float32(0.0), cfg=cfg.dit), dit.hear(p, flight.voices, cfg=cfg.dit)
    return rollout.call(p, memory, flight, clean, cfg.stream.steps, heard, cross, band=band, cfg=cfg)[0]


def finish(
    p: dict, tied: Tied, flight: Flight, x0: jax.Array, cross: Any, *, band: bands.Axes = None, cfg: Config
) -> tuple[Tied, jax.Array]:
    """What the next block needs, and a block's latents [B, c, h, w, C], from its last prediction [B, c + k, ...]."""
    (memory,), own = tied.caches, cfg.stream.block_latents
    drawn = fuse(tied, x0, flight.place).astype(cfg.dit.compute_dtype)
    finished = shown(flight, drawn[:, :own], cfg=cfg)
    memory = remember(p, memory, finished, cross, band=band, cfg=cfg)
    knot = jnp.where(_wide(jnp.asarray(flight.place.filled)[:, None] > 0), drawn[:, own:], tied.knot)
    return Tied((memory,), knot), finished.latent


def denoise(
    p: dict, tied: Tied, block: BlockInput, cross: Any = None, *, band: bands.Axes = None, cfg: Config
) -> tuple[Tied, jax.Array]:
    """Draws one block (Algorithm 1).

    Args:
      p: weights of the transformer.
      tied: what the block before left, or `start`.
      block: its noise and sound, those of the knot with them.
      cross: the prompt, from `dit.remember`, or None.
      band: mesh axes that share the rows, see `nn.bands`.
      cfg: the run.

    Returns:
      what the next block needs, and the block's latents [B, c, h, w, C].
    """
    (memory,), last = tied.caches, cfg.stream.steps - 1
    flight, noises = enter(p, tied, block, cfg=cfg)
    heard, dtype, levels = dit.hear(p, flight.voices, cfg=cfg.dit), cfg.dit.compute_dtype, rollout.levels(cfg.stream)
    for number in range(last):
        memory, x0 = rollout.predict(p, memory, flight, number, heard, cross, band=band, cfg=cfg)
        x = flow.add_noise(x0, noises[number + 1], levels[number + 1])
        flight = dataclasses.replace(flight, latent=x.astype(dtype))
    memory, x0 = rollout.predict(p, memory, flight, last, heard, cross, band=band, cfg=cfg)
    return finish(p, dataclasses.replace(tied, caches=(memory,)), flight, x0, cross, band=band, cfg=cfg)


@functools.lru_cache(maxsize=8)
def make_begin(cfg: Config):
    """`begin` compiled for `cfg`: (weights of the transformer, keys and values of a scene) -> memories."""
    return jax.jit(functools.partial(begin, cfg=cfg))


@functools.lru_cache(maxsize=1)
def make_refill():
    """`refill` compiled, memories donated: (weights of the transformer, tied, keys and values) -> tied."""
    return jax.jit(refill, donate_argnums=1)


@functools.lru_cache(maxsize=8)
def make_denoise(cfg: Config):
    """`denoise` compiled for `cfg`, tied donated: (weights of the transformer, tied, block, cross) -> both."""
    return rollout.make_program(functools.partial(denoise, cfg=cfg), "block", donate_argnums=1)
