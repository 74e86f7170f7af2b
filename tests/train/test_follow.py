"""Between the stages: a window in one call is the stream block by block, and what it learns from."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import spec
from avatar_jax.core.check import validate
from avatar_jax.core.config import Signal
from avatar_jax.io import weights as weight_files
from avatar_jax.models import dit
from tests.train import mini, test_distill, test_stages
from train import distill, follow, watch, windows


def test_a_window_in_one_call_a_step_is_the_stream_block_by_block():
    """Every step over a memory of its own level; nothing is left out of a window that the stream remembers."""
    cfg = test_distill.run()
    p, batch, blocks = test_distill.weights_of(cfg), test_stages.window(cfg), cfg.train.dit_blocks
    speakers = windows.speakers_of(batch, cfg)
    key, shape = jax.random.key(3), (blocks, len(batch["latent"]), cfg.stream.block_latents, *batch["latent"].shape[2:])
    noise = jnp.concatenate(list(jax.random.normal(key, shape)), 1)

    def at_once(p: dict) -> jax.Array:
        return follow.states(dit.lay_out(p, cfg.dit), noise, cfg.stream.steps, batch, speakers, cfg)

    def block_by_block(p: dict) -> jax.Array:
        return watch.stream(dit.lay_out(p, cfg.dit), batch, key, cfg=cfg)

    one, other = jax.jit(at_once)(p), jax.jit(block_by_block)(p)
    assert blocks > 1 and float(jnp.abs(one - noise).max()) > 0.1
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_where_the_teacher_sees_no_more_there_is_nothing_to_learn():
    """One block is a window; unguided, its teacher says what the student says."""
    cfg = test_distill.run(guidance=1.0)
    settings = dataclasses.replace(cfg.train.distill, blocks=1)  # type: ignore[type-var]
    alone = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, dit_blocks=1, distill=settings))
    for each, there_is in ((alone, False), (cfg, True)):
        base, batch = test_distill.weights_of(each), test_stages.window(each)
        loss = jax.jit(functools.partial(follow.loss_fn, cfg=each))(base, batch, jax.random.key(0), base)[0]
        assert (float(loss) > 1e-6) is there_is, float(loss)


def test_twins_are_led_apart():
    """A twin that is the same window adds nothing; of another, how the two are told apart counts besides."""
    cfg = test_distill.run()
    cfg = dataclasses.replace(
        cfg,
        dit=dataclasses.replace(cfg.dit, signals=(Signal("head", (1.0, 1.0)),)),
        train=dataclasses.replace(cfg.train, dit_twin=1.0),
    )
    base, batch = test_distill.weights_of(cfg), test_stages.window(cfg)
    judge = jax.jit(functools.partial(follow.loss_fn, cfg=cfg))
    same = {"latent": batch["latent"], "signals": batch["signals"]}
    alone, _ = judge(base, batch, jax.random.key(0), base)
    total, scalars = judge(base, batch | {"twin": same}, jax.random.key(0), base)
    assert float(scalars["loss_twin"]) == 0.0 and float(total) == pytest.approx(float(alone), rel=1e-5)
    turned = same | {"signals": {"head": batch["signals"]["head"] + 1.0}}
    total, scalars = judge(base, batch | {"twin": turned}, jax.random.key(0), base)
    assert float(scalars["loss_twin"]) > 0.0
    assert float(total) == pytest.approx(float(scalars["loss"] + scalars["loss_twin"]))


def test_a_past_at_no_step_of_its_own_is_not_led():
    cfg = mini.get_config()
    cfg.stream.history = "clean"
    with pytest.raises(ValueError, match=r"config\.train\.distill\.follow='OptimConfig': None: only a past at"):
        validate(cfg)
    with pytest.raises(ValueError, match=r"follow=None: this configuration has no such stage"):
        follow.rates(test_distill.run())


@pytest.mark.slow
def test_it_leads_to_a_student_that_distribution_matching_goes_on_with(tmp_path: pathlib.Path):
    """Adapters, from their file into the second stage; and merged, a student that is closer to its teacher."""
    cfg = validate(mini.get_config())
    mini.write_latents(tmp_path, cfg)
    teacher, led, run = tmp_path / "teacher.safetensors", tmp_path / "led", tmp_path / "run"
    base = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape),
        spec.init(dit.spec(cfg.dit), jax.random.key(0)),
    )
    weight_files.save(teacher, base)
    follow.train(cfg, str(tmp_path), teacher, led)
    moved = weight_files.load(led / follow.STUDENT, distill.moving(cfg))
    judge, batch = jax.jit(functools.partial(follow.loss_fn, cfg=cfg)), mini.batch(tmp_path, cfg)
    before, after = (
        np.mean([judge(each, batch, jax.random.key(number), base)[0] for number in range(8)])
        for each in (distill.unmoved(base, cfg), moved)
    )
    assert after < 0.98 * before
    assert weight_files.load(led / "dit.safetensors", dit.spec(cfg.dit))
    few = dataclasses.replace(cfg.train.distill.fake, steps=1, warmup=0)  # type: ignore[union-attr]
    cfg.train.distill.fake = few  # type: ignore[union-attr]
    distill.train(cfg, str(tmp_path), teacher, run, student=led / follow.STUDENT)
    assert (run / "dit.safetensors").exists()
