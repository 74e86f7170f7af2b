"""The engine as Live Avatar is released: the golden rollout through the product's state, clock and sink."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import spec
from avatar_jax.core.config import Config
from avatar_jax.models import dit, vae
from avatar_jax.stream import clock, engine, rollout
from avatar_jax.stream.state import BlockInput, Scene, Speaker, Weights
from configs.live_avatar_14b import get_config
from tests.published.case import Case, frames_first, frames_last
from tests.published.wan import network

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "liveavatar_causal_block"
RUN = "single_online"


def golden_size(layer_loop: str) -> tuple[dict, Config]:
    """The released configuration with the case's networks."""
    p, network_cfg = network(Case(FOLDER), layer_loop=layer_loop)
    cfg = get_config()
    small = dataclasses.replace(cfg.vae, width=4)
    video = dataclasses.replace(cfg.video, height=64, width=64)
    return p, dataclasses.replace(cfg, dit=network_cfg, vae=small, video=video)


def block_input(io: dict[str, np.ndarray], block: int, cfg: Config) -> BlockInput:
    """A block of the case: its noise, sound and pose, and the reference where the case drew it."""
    clip, inside = divmod(block, cfg.stream.adapt_blocks)
    length, context = cfg.stream.block_latents, cfg.stream.audio_context
    latents = slice(inside * length, (inside + 1) * length)
    sound = np.moveaxis(io["audio"][0, ..., 4 * length * block : 4 * length * (block + 1)], -1, 0)
    drawn = np.maximum(block * length + io["relative_dist"][block], cfg.stream.reference_from)
    place, ahead = clock.place(block, cfg), clock.time_phase(drawn[None, :, None], cfg)
    return BlockInput(
        speakers=(Speaker(jnp.asarray(np.concatenate([np.repeat(sound[:1], context, 0), sound]))[None]),),
        noise=jnp.asarray(frames_last(io["noise"][clip][:, latents])),
        place=dataclasses.replace(place, reference_time=ahead),
        pose=jnp.asarray(frames_last(io["cond_states"][clip][:, latents])),
    )


def errors(layer_loop: str, folder: pathlib.Path = FOLDER) -> dict[str, float]:
    """How far the case's rollout is off, in its tolerance: through the ring's wraps and an adapted reference."""
    (p, cfg), case = golden_size(layer_loop), Case(folder)
    io, exact = case.tensors(RUN), case.tensors(f"{RUN}_exactrope")
    weights = Weights(p, spec.init(vae.spec(cfg.vae), jax.random.key(0)))
    reference, motion = (jnp.asarray(frames_last(io[f"prefill0.{name}_latents"])) for name in ("ref", "motion"))
    scene = Scene(reference, motion, dit.remember(p, jnp.asarray(io["context"])[None], cfg=cfg.dit))
    caches = engine.start(weights, scene, cfg).caches
    draw = jax.jit(functools.partial(rollout.denoise, cfg=cfg))
    drawn = []
    for block in range(len(exact["clean"])):
        if block == cfg.stream.adapt_blocks:
            later = jnp.asarray(frames_last(io["prefill1.motion_latents"]))
            caches = rollout.refill(p, caches, rollout.prefill(p, Scene(drawn[0][:, :1], later, scene.cross), cfg=cfg))
        caches, latent = draw(p, caches, block_input(io, block, cfg), scene.cross)
        drawn.append(latent)
    clean = np.stack([frames_first(latent)[0] for latent in drawn])
    return case.worst({"clean": clean}, f"{RUN}_exactrope")


@pytest.mark.parametrize("layer_loop", ["unroll", "scan"])
def test_the_released_rollout(layer_loop: str):
    """Twelve blocks: the ring wraps twice, and the reference becomes the stream's own first latent after four."""
    assert max(errors(layer_loop).values()) <= 1.0


def test_the_released_levels_and_reference():
    cfg = get_config()
    np.testing.assert_allclose(
        rollout.levels(cfg.stream), [1.0, 0.8576923, 0.6021506, 0.00892857, 0.0], rtol=1e-6, atol=0
    )
    early, late = clock.reference_times(0, cfg), clock.reference_times(1000, cfg)
    assert early.tolist() == [30] * 4  # never before position 30
    assert ((late >= 3004) & (late <= 3030)).all() and len(set(late)) > 1  # drawn anew for every call
    assert clock.reference_times(1000, cfg).tolist() == late.tolist()
    assert clock.reference_times(1001, cfg).tolist() != late.tolist()
