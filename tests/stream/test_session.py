"""A session is the same stream however its sound arrives, compiled once, and as long as its sound."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from avatar_jax.core import spec
from avatar_jax.core.check import validate
from avatar_jax.core.config import TrainingConfig
from avatar_jax.models import dit, vae
from avatar_jax.stream import clock, rollout
from avatar_jax.stream.session import Avatar, Session, make_avatar, make_scene
from avatar_jax.stream.state import Weights
from configs.tiny import get_config


def small(history: str) -> TrainingConfig:
    cfg = get_config()
    cfg.dit = dataclasses.replace(cfg.dit, width=48, heads=2, layers=2, ffn=64, audio_inject=(0,), freq=32)
    cfg.vae = dataclasses.replace(cfg.vae, width=8, mult=(1, 2, 2))
    cfg.video = dataclasses.replace(cfg.video, height=32, width=32)
    level = 0.3 if history == "noised" else 0.0
    cfg.stream = dataclasses.replace(cfg.stream, steps=2, history=history, history_level=level)
    return validate(cfg)


def weights_of(cfg: TrainingConfig) -> Weights:
    drawn = spec.init(dit.spec(cfg.dit), jax.random.key(0))
    # the head starts at zero: without this every avatar would draw its noise
    drawn = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), drawn)
    return Weights(dit.lay_out(drawn, cfg.dit), spec.init(vae.spec(cfg.vae), jax.random.key(2)))


def avatar_of(history: str) -> Avatar:
    cfg = small(history)
    portrait = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return make_avatar(cfg, weights_of(cfg), portrait)


@pytest.fixture(scope="module", params=["clean", "timestep", "noised"])
def avatar(request) -> Avatar:
    return avatar_of(request.param)


def sound(samples: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(samples).astype(np.float32) * 0.3


def play(avatar: Avatar, samples: np.ndarray, pieces: list[int]) -> np.ndarray:
    session, blocks, at = Session(avatar), [], 0
    for size in [*pieces, len(samples)]:
        blocks += session.push_audio(samples[at : at + size])
        at += size
    assert session.samples == len(samples)
    return np.concatenate(blocks + session.finish())


def test_however_sound_arrives_the_stream_is_the_same(avatar):
    samples = sound(4 * avatar.cfg.block_samples + 1000)
    whole = play(avatar, samples, [])
    np.testing.assert_array_equal(play(avatar, samples, [1, 639, 5000, 7, 7681]), whole)
    assert whole.std() > 1.0


@pytest.mark.parametrize("samples", [1, 640, 641, 7680, 7681, 20000])
def test_frames_cover_the_sound_exactly(avatar, samples):
    assert len(play(avatar, sound(samples), [])) == -(-samples // 640)


def test_silence_alone_makes_no_frames(avatar):
    session = Session(avatar)
    assert session.push_audio(sound(0)) == [] and session.finish() == []


def test_sound_changes_the_picture(avatar):
    loud, silent = sound(7680 * 2), np.zeros(7680 * 2, np.float32)
    assert np.abs(play(avatar, loud, []).astype(int) - play(avatar, silent, []).astype(int)).max() > 0


def test_one_trace_serves_every_block(avatar):
    session, block = Session(avatar), rollout.make_denoise(avatar.cfg)
    for _ in range(6):  # past the ring's wrap
        session.push_audio(sound(avatar.cfg.block_samples))
    assert block._cache_size() == 1  # type: ignore[attr-defined]


def test_the_session_equals_a_plain_rollout(avatar):
    """Pixels of the compiled session equal the uncompiled oracle, block by block."""
    cfg, samples = avatar.cfg, sound(2 * avatar.cfg.block_samples)
    shown = play(avatar, samples, [])
    session = Session(avatar)
    session._engine._denoise = functools.partial(rollout.denoise, cfg=cfg)  # type: ignore[attr-defined]
    session._engine._decode = functools.partial(rollout.decode, cfg=cfg)  # type: ignore[attr-defined]
    seen = np.concatenate(session.push_audio(samples))
    assert np.abs(seen.astype(int) - shown.astype(int)).max() <= 1  # rounding to uint8


def test_a_portrait_of_the_wrong_size_is_refused():
    cfg = small("clean")
    with pytest.raises(ValueError, match=r"portrait of shape \(8, 8, 3\)"):
        make_avatar(cfg, weights_of(cfg), np.zeros((8, 8, 3), np.uint8))


def test_clock_counts():
    cfg = get_config()
    assert [clock.frames_of(n, cfg) for n in (0, 1, 640, 641)] == [0, 1, 1, 2]
    assert [clock.blocks_of(n, cfg) for n in (0, 1, 12, 13)] == [0, 1, 1, 2]
    assert clock.times(2, cfg).tolist() == [6, 7, 8]
    block = cfg.stream.block_latents * cfg.tokens_per_frame
    places = [tuple(map(int, (*place.slots[0], *place.filled))) for place in (clock.place(b, cfg) for b in range(4))]
    assert places == [(0, block), (1, 2 * block), (2, 3 * block), (0, 3 * block)]


def test_another_portrait_in_mid_stream(avatar):
    """The blocks before are those of an unchanged stream, the ones after are not."""
    cfg, samples = avatar.cfg, sound(4 * avatar.cfg.block_samples)
    other = make_scene(cfg, weights_of(cfg), np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    session, at = Session(avatar), 2 * cfg.block_samples
    blocks = session.push_audio(samples[:at])
    session.show(other)
    changed, same = np.concatenate(blocks + session.push_audio(samples[at:])), play(avatar, samples, [])
    cut = 2 * cfg.block_frames
    np.testing.assert_array_equal(changed[:cut], same[:cut])
    assert np.abs(changed[cut:].astype(int) - same[cut:].astype(int)).max() > 5
