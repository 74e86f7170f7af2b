"""Clips from prompts: guidance, solvers and decoding, as identities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import check, spec
from avatar_jax.core.config import ClipConfig
from avatar_jax.models import dit, vae
from avatar_jax.stream import clip, prompt
from tests.published import mini_t2v


def run(**sample: object) -> ClipConfig:
    cfg = mini_t2v.get_config()
    return check.validate(dataclasses.replace(cfg, sample=dataclasses.replace(cfg.sample, **sample)))


@pytest.fixture(scope="module")
def given() -> tuple[dict, jax.Array, list[jax.Array]]:
    """Weights, noise and the rows of two prompts."""
    cfg, keys = mini_t2v.get_config(), jax.random.split(jax.random.key(0), 4)
    drawn = spec.init(dit.spec(cfg.dit), keys[0])
    p = dit.lay_out(jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(keys[1], leaf.shape), drawn), cfg.dit)
    noise = jax.random.normal(keys[2], (1, cfg.sample.latents, *cfg.latent_size, 16))
    rows = [jax.random.normal(jax.random.fold_in(keys[3], n), (1, n, 32)) for n in (5, 9)]
    return p, noise, rows


def last(p: dict, noise: jax.Array, rows: list[jax.Array], cfg: ClipConfig) -> jax.Array:
    crosses = tuple(prompt.remember(p, row, cfg=cfg.dit) for row in rows)
    *_, x = clip.sample(p, crosses, noise, cfg=cfg)
    return x


@pytest.mark.parametrize("solver", check.SOLVERS)
def test_guidance_towards_the_same_prompt_is_no_guidance(given, solver: str):
    p, noise, (row, other) = given
    plain = last(p, noise, [row], run(solver=solver, guidance=1.0))
    np.testing.assert_allclose(last(p, noise, [row, row], run(solver=solver, guidance=6.0)), plain, atol=1e-4)
    assert float(jnp.abs(last(p, noise, [row, other], run(solver=solver, guidance=6.0)) - plain).max()) > 0.01


def test_the_solvers_meet_where_steps_are_many(given):
    p, noise, (row, _) = given
    found = {name: last(p, noise, [row], run(solver=name, steps=60, guidance=1.0)) for name in check.SOLVERS}
    scale = float(jnp.abs(found["euler"] - noise).mean())
    for name in ("unipc", "dpm"):
        assert float(jnp.abs(found[name] - found["euler"]).mean()) < 0.1 * scale, name


def test_the_network_is_told_integer_timesteps():
    cfg = run(solver="unipc", steps=50, shift=8.0).sample
    levels = clip.SOLVERS["unipc"][0](cfg.steps, cfg.shift)
    told = clip.seen_levels(levels, cfg) * 1000
    np.testing.assert_array_equal(told, np.floor(levels[:-1] * 1000))
    assert told[0] == 999  # the published table starts one step below pure noise


def test_a_prompt_is_the_same_however_it_is_filled_up(given):
    p, _, (row, _) = given
    cfg = mini_t2v.get_config().dit
    for one, two in zip(
        jax.tree.leaves(prompt.remember(p, row, cfg=cfg)), jax.tree.leaves(dit.remember(p, row, cfg=cfg)), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_decoded_latent_by_latent():
    cfg = run(latents=4)
    p = spec.init(vae.spec(cfg.vae), jax.random.key(3))
    latents = jax.random.normal(jax.random.key(4), (1, 4, *cfg.latent_size, 16))
    frames = np.concatenate(list(clip.decode(p, latents, cfg=cfg)))
    whole = np.asarray(vae.to_uint8(jax.jit(vae.decode, static_argnames="cfg")(p, latents, cfg=cfg.vae)))[0]
    assert frames.shape == (13, 64, 96, 3) and frames.std() > 1.0
    assert np.abs(frames.astype(int) - whole).max() <= 1  # rounding to uint8
