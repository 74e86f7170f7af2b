"""The oracle identity of the transformer: streaming over a ring equals the whole sequence under the mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import axes, spec
from avatar_jax.core.check import validate
from avatar_jax.core.config import Config
from avatar_jax.models import audio, condition, dit, mask
from avatar_jax.nn import kv, rope
from avatar_jax.stream import clock
from configs.tiny import get_config

BLOCKS = 5  # window 3: the ring wraps twice
APPLY, BLOCK = (jax.jit(each, static_argnames="cfg") for each in (dit.apply, dit.apply_block))
PREFILL, HEAR = (jax.jit(each, static_argnames="cfg") for each in (dit.prefill, dit.hear))


def small(layer_loop: str) -> Config:
    cfg = get_config()
    cfg.dit = dataclasses.replace(cfg.dit, width=48, heads=2, layers=3, ffn=64, audio_inject=(0, 1), freq=32)
    cfg.dit.layer_loop = layer_loop
    cfg.video = dataclasses.replace(cfg.video, height=32, width=48)
    return validate(cfg)


def weights_of(cfg: Config) -> dict:
    """Random weights with nothing at zero, so that every path carries signal."""
    drawn = spec.init(dit.spec(cfg.dit), jax.random.key(0))
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return dit.lay_out(jax.tree.unflatten(tree, noisy), cfg.dit)


def inputs_of(cfg: Config) -> dict:
    frames = BLOCKS * cfg.stream.block_latents
    keys = jax.random.split(jax.random.key(2), 4)
    features = (1, cfg.stream.audio_context + 4 * frames, 1, cfg.dit.audio_width)
    return {
        "latent": jax.random.normal(keys[0], (1, frames, *cfg.latent_size, 16)),
        "sigma": jnp.repeat(jax.random.uniform(keys[1], (1, BLOCKS)), cfg.stream.block_latents, 1),
        "features": jax.random.normal(keys[2], features),
        "reference": jax.random.normal(keys[3], (1, 1, *cfg.latent_size, 16)),
    }


def _held(p: dict, given: dict, cfg: Config):
    tokens = condition.embed_reference(p, given["reference"], cfg.dit)
    return PREFILL(p, tokens, clock.grid_phase(clock.STILL, cfg), cfg=cfg.dit)


def _voice(p: dict, features: jax.Array, cfg: Config) -> audio.Voice:
    return audio.encode(p["audio"]["encoder"], features, context=cfg.stream.audio_context, cfg=cfg.dit)


def _phases(block: int, cfg: Config) -> tuple[rope.Phase, rope.Phase]:
    """Of a block's tokens, and of the reference in its first call."""
    time, ahead = clock.phases(block, cfg)
    return clock.spread(time, cfg), clock.condition_phase(rope.Phase(*(side[0] for side in ahead)), cfg)


def whole(p: dict, given: dict, cfg: Config) -> jax.Array:
    parts = [_phases(block, cfg) for block in range(BLOCKS)]
    phase, ahead = (rope.Phase(*map(np.concatenate, zip(*side, strict=True))) for side in zip(*parts, strict=True))
    tokens = cfg.tokens_per_frame
    seen = mask.with_reference(BLOCKS, cfg.stream.window_blocks, cfg.stream.block_latents * tokens, tokens)
    return APPLY(
        p, given["latent"], given["sigma"], _held(p, given, cfg),
        phase=phase, reference_phases=ahead, mask=seen, voices=(_voice(p, given["features"], cfg),), cfg=cfg.dit,
    )  # fmt: skip


def streamed(p: dict, given: dict, cfg: Config, first: int = 0, *, full: bool = False) -> jax.Array:
    held, length = _held(p, given, cfg), cfg.stream.block_latents
    room = cfg.stream.window_blocks * length * cfg.tokens_per_frame
    cache = kv.each(p["blocks"], lambda keys_values: kv.empty(*keys_values, slots=room), held)
    out = []
    for block in range(BLOCKS):
        frames = slice(block * length, (block + 1) * length)
        heard = given["features"][:, 4 * frames.start : cfg.stream.audio_context + 4 * frames.stop]
        phase, ahead = _phases(first + block, cfg)
        place = clock.place(block, cfg)
        count = None if full and block + 1 >= cfg.stream.window_blocks else jnp.asarray(place.filled)
        cache, v = BLOCK(
            p, cache, given["latent"][:, frames], dit.level(p, given["sigma"][0, frames.start], cfg=cfg.dit),
            heard=HEAR(p, (_voice(p, heard, cfg),), cfg=cfg.dit),
            phase=phase, reference_phase=ahead, slots=jnp.asarray(place.slots), filled=count, cfg=cfg.dit,
        )  # fmt: skip
        out.append(v)
    return jnp.concatenate(out, 1)


def test_layers_in_one_loop():
    """It asks for its injectors, and does what the loops between them do; so does its gradient."""
    results = []
    for layer_loop in ("scan", "fold"):
        cfg = small(layer_loop)
        p, given = weights_of(cfg), inputs_of(cfg)
        loss = jax.jit(jax.value_and_grad(lambda p, cfg=cfg, given=given: jnp.square(whole(p, given, cfg)).sum()))
        results.append((loss(p), jax.jit(lambda p, cfg=cfg, given=given: streamed(p, given, cfg))(p)))
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-4), *results)


@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
def test_streamed_equals_whole(layer_loop: str):
    cfg = small(layer_loop)
    p, given = weights_of(cfg), inputs_of(cfg)
    expected = whole(p, given, cfg)
    assert float(jnp.abs(expected).mean()) > 0.1  # the comparison carries signal
    np.testing.assert_allclose(streamed(p, given, cfg), expected, atol=1e-5)


def test_scan_equals_unroll():
    given = inputs_of(small("scan"))
    one, other = (whole(weights_of(small(form)), given, small(form)) for form in ("scan", "unroll"))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_late_block_is_as_exact_as_an_early_one():
    cfg = small("unroll")
    p, given = weights_of(cfg), inputs_of(cfg)
    np.testing.assert_allclose(streamed(p, given, cfg, first=10_000_000), streamed(p, given, cfg), atol=1e-5)


def test_the_future_is_invisible():
    cfg = small("scan")
    p, given = weights_of(cfg), inputs_of(cfg)
    changed = given | {"latent": given["latent"].at[:, -1].add(1.0)}
    ahead = cfg.stream.block_latents * (BLOCKS - 1)
    before, after = whole(p, given, cfg), whole(p, changed, cfg)
    np.testing.assert_array_equal(before[:, :ahead], after[:, :ahead])
    assert float(jnp.abs(before[:, ahead:] - after[:, ahead:]).max()) > 1e-3


@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
def test_a_full_ring_needs_no_mask(layer_loop: str):
    cfg = small(layer_loop)
    p, given = weights_of(cfg), inputs_of(cfg)
    np.testing.assert_allclose(streamed(p, given, cfg, full=True), streamed(p, given, cfg), atol=1e-6)


@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
def test_split_over_two_devices_equals_one(layer_loop: str):
    cfg = small(layer_loop)
    p, given = weights_of(cfg), inputs_of(cfg)
    expected = streamed(p, given, cfg)
    mesh = axes.make_mesh(jax.devices()[:2], {axes.TENSOR: 2})
    laid = jax.device_put(dit.gather(p), axes.shardings(dit.spec(cfg.dit), axes.TENSOR_PARALLEL, mesh))
    split = dit.lay_out(laid, cfg.dit)
    last = split["blocks"][-1] if layer_loop == "unroll" else split["blocks"]
    assert not last["ffn"]["in"]["w"].is_fully_replicated
    np.testing.assert_allclose(streamed(split, given, cfg), expected, atol=1e-5)
