"""Stage two: who moves when, and where to."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import lora, spec, tree
from avatar_jax.core.check import validate
from avatar_jax.core.config import DistillConfig, TrainingConfig
from avatar_jax.data import latents
from avatar_jax.models import dit
from avatar_jax.stream import rollout, window
from configs import tiny_knot
from tests.train import test_stages
from train import distill, pretrain, windows

BLOCKS = 2
READS = test_stages.READS
KEY = 2  # of a rollout whose exit step is its second
STREAM = jax.jit(distill.stream, static_argnums=3)
TASK = jax.jit(distill.task_of, static_argnums=3)
PULL = jax.jit(distill.pull, static_argnums=4)
SCORE = jax.jit(distill.score, static_argnums=5)
LOSS = jax.jit(pretrain.loss_fn, static_argnames="cfg")


def run(rank: int = 0, guidance: float = 3.0, *, knot: bool = False) -> TrainingConfig:
    cfg = test_stages.small()
    quick = dataclasses.replace(cfg.train.dit, rate=0.01, vector_rate=1e-2, warmup=0, ema=0.5)
    settings = DistillConfig(quick, quick, rank, float(rank), 2, BLOCKS, guidance, 3.0, 0.5)
    stream = dataclasses.replace(cfg.stream, steps=2, history="timestep")
    if knot:
        stream = dataclasses.replace(tiny_knot.get_config().stream, steps=2)
        cfg = dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, condition_channels=20))
    return validate(dataclasses.replace(cfg, stream=stream, train=dataclasses.replace(cfg.train, distill=settings)))


def weights_of(cfg: TrainingConfig) -> dict:
    """A teacher, stacked, whose output is not zero."""
    drawn = spec.init(dit.spec(cfg.dit), jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), drawn)


def moved(one: Any, two: Any) -> float:
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


SLOW = [pytest.param(rank, knot, marks=pytest.mark.slow) for rank, knot in ((4, False), (0, True))]


@pytest.mark.parametrize(("rank", "knot"), [(0, False), *SLOW])
def test_the_student_moves_in_one_step_of_several_and_the_fake_score_in_each(rank: int, knot: bool):
    cfg = run(rank, knot=knot)
    base, batch = weights_of(cfg), test_stages.window(cfg)
    state = distill.begin(base, cfg=cfg)
    seen = [jax.tree.map(jnp.copy, state)]
    for number in range(3):
        state, scalars = distill.step(state, batch, jax.random.key(number), base, cfg=cfg)
        seen.append(jax.tree.map(jnp.copy, state))
        assert np.isfinite(scalars["loss_fake"]) and float(scalars["motion"]) > 0.0
    assert [moved(a.student.weights, b.student.weights) > 0 for a, b in itertools.pairwise(seen)] == [1, 0, 1]
    assert all(moved(a.fake.weights, b.fake.weights) > 0 for a, b in itertools.pairwise(seen))
    assert int(state.step) == int(state.fake.step) == 3 and int(state.student.step) == 2


def test_adapters_begin_as_the_teacher():
    """With b = 0 all three networks are one; merged, the moved student is what ran."""
    cfg = run(rank=4)
    base = weights_of(cfg)
    state = distill.begin(base, cfg=cfg)
    begun = lora.merge(base, state.student.weights, scale=1.0)
    assert moved(begun, base) == 0.0
    given = test_stages.window(cfg)
    x, level = given["latent"], jnp.full(2, 0.5)
    speakers = windows.speakers_of(given, cfg)

    def drawn(p: dict) -> jax.Array:
        return SCORE(p, x, level, given["reference"], speakers, cfg)

    grown = jax.tree.map(lambda leaf: leaf + 0.1, state.student.weights)
    merged = dit.lay_out(lora.merge(base, grown, scale=1.0), cfg.dit)
    np.testing.assert_allclose(drawn(distill.network(base, grown, cfg)), drawn(merged), atol=2e-5)


def test_who_draws_as_the_teacher_unguided_is_left_alone():
    """Real and fake score agree, so nothing pulls; a guided teacher does."""
    for guidance, still in ((1.0, True), (3.0, False)):
        cfg = run(guidance=guidance)
        base, batch = weights_of(cfg), test_stages.window(cfg)
        p = dit.lay_out(base, cfg.dit)
        drawn = STREAM(p, batch, jax.random.key(0), cfg)
        pull = PULL(p, p, drawn, jax.random.key(1), cfg)
        assert drawn.x.shape == batch["latent"].shape
        assert (float(jnp.abs(pull).max()) < 1e-5) == still


def test_rollouts_that_start_from_data():
    """Where a rollout is anchored its first block is real latents, noised; elsewhere it is the noise it was."""
    cfg = run()
    p, batch = dit.lay_out(weights_of(cfg), cfg.dit), test_stages.window(cfg)
    free, tied = (STREAM(p, batch, jax.random.key(KEY), _anchored(cfg, share)).x for share in (0.0, 1.0))
    exits = TASK(p, batch, jax.random.key(KEY), cfg)[0].exit_step
    assert int(exits) == 1  # else block 0 is noise in both
    assert moved(free, tied) > 1e-3
    other = batch | {"latent": batch["latent"] + 1.0}
    np.testing.assert_array_equal(STREAM(p, other, jax.random.key(KEY), _anchored(cfg, 0.0)).x, free)
    assert moved(STREAM(p, other, jax.random.key(KEY), _anchored(cfg, 1.0)).x, tied) > 1e-3


def _anchored(cfg: TrainingConfig, share: float) -> TrainingConfig:
    settings = dataclasses.replace(distill.rates(cfg), anchored=share)
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, distill=settings))


def test_pictures_side_by_side():
    """A pair becomes one picture with two speakers, and each hears what it heard alone in its own half."""
    cfg = test_stages.small()
    batch = jax.tree.map(np.asarray, test_stages.window(cfg))
    pair = latents.beside(batch)
    assert pair["latent"].shape == (1, 6, 4, 8, 16) and pair["features"].shape[:2] == (1, 2)
    wide = windows.sized(pair, cfg)
    assert wide.video.width == 2 * cfg.video.width and wide.video.height == cfg.video.height
    np.testing.assert_array_equal(pair["latent"][0, :, :, 4:], batch["latent"][1])
    left, right = windows.speakers_of(pair, wide)
    np.testing.assert_array_equal(right.features[0], batch["features"][1, 0])
    rows, columns = wide.grid
    assert left.mask is not None and right.mask is not None
    np.testing.assert_array_equal(left.mask + right.mask, 1.0)
    assert left.mask.reshape(rows, columns)[:, : columns // 2].all()
    p = dit.lay_out(weights_of(cfg), cfg.dit)
    loss, _ = LOSS(p, pair, jax.random.key(0), cfg=cfg)
    assert np.isfinite(loss)


def test_a_window_seen_whole():
    """Its tokens see each other and one reference; as a stream sees it, nothing later."""
    cfg = test_stages.small()
    tokens, blocks = cfg.tokens_per_frame, 2
    whole, causal = window.whole(blocks, cfg), window.causal(blocks, cfg)
    assert whole.shape == causal.shape == (6 * tokens, 2 * tokens + 6 * tokens)
    assert whole.sum(1).tolist() == [7 * tokens] * (6 * tokens)
    assert causal.sum(1).tolist() == [4 * tokens] * (3 * tokens) + [7 * tokens] * (3 * tokens)


def test_a_teacher_needs_no_mask():
    """It sees what `whole` lets a window see, and draws the same."""
    cfg = run()
    p, given = dit.lay_out(weights_of(cfg), cfg.dit), test_stages.window(cfg)
    x, level, (speaker,) = given["latent"], jnp.full(2, 0.5), windows.speakers_of(given, cfg)
    ahead = window.starts(BLOCKS, cfg) + cfg.stream.reference_ahead[0]

    def masked(p: dict) -> jax.Array:
        seen, levels = window.whole(BLOCKS, cfg), jnp.broadcast_to(level[:, None], x.shape[:2])
        voices = (rollout.voice_of(p, speaker, cfg=cfg),)
        return window.velocity(p, x, levels, given["reference"], voices, ahead=ahead, seen=seen, cfg=cfg)

    found = SCORE(p, x, level, given["reference"], (speaker,), cfg)
    assert float(jnp.abs(found).mean()) > 1e-2
    np.testing.assert_allclose(found, jax.jit(masked)(p), atol=2e-5)


def test_a_base_in_half_precision_computes_what_it_did():
    """Only matrices are rounded, and to what they are multiplied in anyway."""
    cfg = run(rank=4)
    cfg.dit = dataclasses.replace(cfg.dit, compute_dtype="bfloat16")
    base = weights_of(cfg)
    halved, given = distill.frozen(base, cfg), test_stages.window(cfg)
    kinds = {path: str(leaf.dtype) for path, leaf in tree.flatten(halved).items()}
    assert kinds["blocks/self/q/w"] == "bfloat16" and kinds["blocks/self/q/b"] == kinds["patch/w"] == "float32"
    drawn = [
        SCORE(p, given["latent"], jnp.full(2, 0.5), given["reference"], windows.speakers_of(given, cfg), cfg)
        for p in (dit.lay_out(base, cfg.dit), dit.lay_out(halved, cfg.dit))
    ]
    np.testing.assert_array_equal(*drawn)


def test_captions_drive_all_three_networks():
    """The student reads them in its rollout, both scores too, and guidance leads away from none."""
    cfg = run()
    cfg = validate(dataclasses.replace(cfg, text=READS, dit=dataclasses.replace(cfg.dit, text_width=8, text_tokens=4)))
    p = dit.lay_out(weights_of(cfg), cfg.dit)
    rows = jax.random.normal(jax.random.key(9), (2, 4, 8))
    one, other = (test_stages.window(cfg) | {"text": said} for said in (rows, -rows))
    drawn, again = (STREAM(p, batch, jax.random.key(KEY), cfg) for batch in (one, other))
    assert moved(drawn.x, again.x) > 1e-4
    pulls = [PULL(p, p, drawn._replace(text=said), jax.random.key(1), cfg) for said in (rows, -rows)]
    assert moved(*pulls) > 1e-4


def test_nothing_is_not_silence():
    cfg = test_stages.small()
    (speaker,) = windows.speakers_of(test_stages.window(cfg), cfg)
    (nobody,) = windows.without((speaker,))
    assert float(jnp.abs(nobody.features).max()) == 0.0
    cfg.train = dataclasses.replace(cfg.train, dit_drop_audio=0.0)
    silent = dataclasses.replace(speaker, features=jnp.full_like(speaker.features, -1.0))
    (kept,) = windows.varied(jax.random.key(0), (silent,), cfg)
    assert float(kept.features.max()) == -1.0
