"""The training stages learn, save and resume exactly, on networks of a few thousand weights."""

import dataclasses
import functools
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import spec
from avatar_jax.core.check import validate
from avatar_jax.core.config import Signal, TrainingConfig, Umt5Config
from avatar_jax.data import latents
from avatar_jax.models import dit, vae
from avatar_jax.stream.state import Speaker
from configs import tiny_knot
from configs.tiny import get_config
from train import loop, optim, pretrain, windows
from train import vae as train_vae

READS = Umt5Config(16, 8, 8, 2, 1, 8, 4, 8, 1e-6)
LOSS = jax.jit(pretrain.loss_fn, static_argnames="cfg")
LEARN = jax.jit(jax.value_and_grad(pretrain.loss_fn, has_aux=True), static_argnames="cfg")


def small(steps: int = 6) -> TrainingConfig:
    cfg = get_config()
    cfg.dit = dataclasses.replace(cfg.dit, width=32, heads=2, layers=2, ffn=48, audio_inject=(0,), freq=32)
    cfg.vae = dataclasses.replace(cfg.vae, width=8, mult=(1, 1, 1))
    cfg.video = dataclasses.replace(cfg.video, height=32, width=32)
    quick = {"steps": steps, "warmup": 1, "rate": 0.02, "log_every": 2, "save_every": 3}
    cfg.train = dataclasses.replace(
        cfg.train,
        dit_blocks=2,
        vae=dataclasses.replace(cfg.train.vae, **quick),
        dit=dataclasses.replace(cfg.train.dit, **quick),
    )
    return validate(cfg)


def frames_data() -> grain.DatasetIterator:
    def draw(index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        return np.broadcast_to(rng.integers(0, 256, (1, 1, 1, 3)), (5, 32, 32, 3)).astype(np.uint8)

    return loop.batches(grain.MapDataset.range(1000).map(draw).batch(2), threads=1, prefetch=1)


def vae_state(cfg: TrainingConfig) -> optim.TrainState:
    return optim.empty(spec.init(vae.spec(cfg.vae), jax.random.key(0)), cfg.train.vae)


def window(cfg: TrainingConfig) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    frames, context = cfg.window_latents, cfg.stream.audio_context
    return {
        "latent": jax.random.normal(keys[0], (2, frames, 4, 4, 16)),
        "reference": jax.random.normal(keys[1], (2, 1, 4, 4, 16)),
        "features": jax.random.normal(keys[2], (2, 1, context + 4 * frames, 1, cfg.dit.audio_width)),
        "signals": {s.name: jax.random.normal(keys[1], (2, 1, 4 * frames, s.width)) for s in cfg.dit.signals},
        "performed": jnp.zeros((2, 1), bool),
    }


@pytest.mark.slow
def test_the_decoder_phase_leaves_latents_as_they_are():
    cfg, data = small(), frames_data()
    before = vae_state(cfg)
    kept = jax.tree.map(np.asarray, before.weights)
    walk = functools.partial(train_vae.clip_step, piece=4, loss=train_vae.decoder_loss_fn, rates=cfg.train.vae, cfg=cfg)
    state, first = walk(before, next(data), jax.random.key(1))
    for _ in range(3):
        state, last = walk(state, next(data), jax.random.key(1))
    for part in ("encoder", "moments", "stats"):
        jax.tree.map(np.testing.assert_array_equal, state.weights[part], kept[part])
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state.average[part], kept[part])
    assert float(jnp.abs(state.average["decoder"]["conv"]["w"] - kept["decoder"]["conv"]["w"]).max()) > 0.0
    assert float(last["loss"]) < float(first["loss"])


def test_the_vae_learns_a_few_colours():
    cfg, data = small(), frames_data()
    walk = functools.partial(train_vae.clip_step, piece=4, loss=train_vae.loss_fn, rates=cfg.train.vae, cfg=cfg)
    state, first = walk(vae_state(cfg), next(data), jax.random.key(1))
    for _ in range(30):
        state, last = walk(state, next(data), jax.random.key(1))
    assert float(last["loss"]) < 0.8 * float(first["loss"])


def test_pretraining_overfits_one_window():
    cfg = small(steps=40)
    batch, step = window(cfg), functools.partial(pretrain.step, cfg=cfg)
    state = optim.empty(dit.lay_out(spec.init(dit.spec(cfg.dit), jax.random.key(0)), cfg.dit), cfg.train.dit)
    losses = []
    for _ in range(40):
        state, scalars = step(state, batch, jax.random.key(3))
        losses.append(float(scalars["loss"]))
    assert losses[-1] < 0.9 * losses[0]


def test_signals_are_dropped_each_by_itself():
    """`share` of the windows lack a signal, half of those wholly, the others in one run of frames at either end."""
    rows = {name: jnp.ones((4000, 24, 2)) for name in ("head", "gaze")}
    dropped = {name: np.isnan(left) for name, left in windows.dropped_signals(jax.random.key(0), rows, 0.4).items()}
    for gone in dropped.values():
        assert (gone[..., 0] == gone[..., 1]).all()
        assert gone.any((1, 2)).mean() == pytest.approx(0.4, abs=0.03)
        assert gone.all((1, 2)).mean() == pytest.approx(0.2, abs=0.03)
        edges = np.diff(gone[..., 0].astype(int))
        assert np.abs(edges).sum(1).max() == 1
        assert (edges == 1).any(1).mean() == pytest.approx(0.1, abs=0.02) == (edges == -1).any(1).mean()
    head, gaze = (gone.any((1, 2)) for gone in dropped.values())
    assert abs(np.corrcoef(head, gaze)[0, 1]) < 0.05


def test_an_actors_signals_are_never_dropped():
    cfg = small()
    cfg.train = dataclasses.replace(cfg.train, dit_drop_signal=1.0)
    rows = {"head": jnp.ones((8, 12, 2))}
    speaker = Speaker(jnp.zeros((8, 12, 1, cfg.dit.audio_width)), rows)
    acted = jnp.arange(8)[:, None] % 2 == 0
    (left,) = windows.varied(jax.random.key(0), (speaker,), cfg, acted)
    lost = np.isnan(np.asarray(left.signals["head"])).any((1, 2))
    np.testing.assert_array_equal(lost, ~np.asarray(acted)[:, 0])


def test_signals_train_where_the_sound_is_dropped():
    """With all sound dropped the signals still decide the loss, and they are learned."""
    cfg = small()
    cfg.dit = dataclasses.replace(cfg.dit, signals=(Signal("head", (1.0, 1.0)),))
    p = spec.init(dit.spec(cfg.dit), jax.random.key(0))
    p = dit.lay_out(
        jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), p), cfg.dit
    )
    batch = window(cfg)
    louder = batch | {"features": batch["features"] + 1.0}
    turned = batch | {"signals": {"head": batch["signals"]["head"] + 1.0}}

    def losses(drop_audio: float, drop_signal: float) -> list[float]:
        rates = dataclasses.replace(cfg.train, dit_drop_audio=drop_audio, dit_drop_signal=drop_signal)
        run = dataclasses.replace(cfg, train=rates)
        return [float(LOSS(p, given, jax.random.key(2), cfg=run)[0]) for given in (batch, louder, turned)]

    plain, loud, turn = losses(1.0, 0.0)
    assert plain == loud and plain != turn
    plain, loud, turn = losses(0.0, 0.0)
    assert plain != loud and plain != turn
    _, gradient = LEARN(p, batch, jax.random.key(2), cfg=cfg)
    assert float(jnp.abs(gradient["signals"]["head"]["in"]["w"]).max()) > 0.0


def test_twins_are_judged_by_how_they_differ():
    """Of what a window and its twin share nothing is left: a constant error of both is none, the signal is all."""
    x0, other = jnp.ones((1, 2, 3, 2, 2, 4)), jnp.ones((1, 2, 3, 2, 2, 4)).at[0, 1, 0, 0, 0, 0].add(0.1)
    wrong, ones = jnp.full(x0.shape, 7.0), jnp.ones((1, 2))
    np.testing.assert_array_equal(pretrain.twin_error(wrong - wrong, x0 - other, ones), 0.0)
    deaf = pretrain.twin_error(x0 - other, x0 - other, ones)  # draws both alike: misses all by which they differ
    assert deaf[0, 0] == 0.0 and 0.5 < float(deaf.mean()) < 1.0
    larger = pretrain.twin_error(3.0 * (x0 - other), 3.0 * (x0 - other), ones)
    assert float(deaf[0, 1]) < float(larger[0, 1]) < 2.0 + 1e-6


def test_a_signal_is_learned_from_twins():
    """One step down the twins' loss makes their drawings differ more as they should; noise and levels are the same."""
    cfg = small()
    cfg.dit = dataclasses.replace(cfg.dit, signals=(Signal("head", (1.0, 1.0)),))
    cfg.train = dataclasses.replace(cfg.train, dit_twin=1.0)
    p = spec.init(dit.spec(cfg.dit), jax.random.key(0))
    p = dit.lay_out(
        jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), p), cfg.dit
    )
    batch = window(cfg)
    same = batch | {"twin": {name: batch[name] for name in ("latent", "signals")}}
    scalars = LOSS(p, same, jax.random.key(2), cfg=cfg)[1]
    assert float(scalars["loss_twin"]) == 0.0
    assert float(scalars["loss"]) == pytest.approx(float(LOSS(p, batch, jax.random.key(2), cfg=cfg)[0]), rel=1e-5)
    turned = {"latent": batch["latent"] + 0.1, "signals": {"head": batch["signals"]["head"] + 1.0}}
    pair = batch | {"twin": turned}
    (loss, before), gradient = LEARN(p, pair, jax.random.key(2), cfg=cfg)
    assert float(loss) == pytest.approx(float(before["loss"] + before["loss_twin"]), rel=1e-5)
    stepped = jax.tree.map(lambda leaf, slope: leaf - 1e-3 * slope, p, gradient)
    assert float(LOSS(stepped, pair, jax.random.key(2), cfg=cfg)[1]["loss_twin"]) < float(before["loss_twin"])


def test_the_loss_looks_where_the_picture_moves():
    still = jnp.ones((1, 4, 2, 2, 3))
    moving = still.at[0, :, 1, 0].add(jnp.arange(4.0)[:, None])
    weight = pretrain.motion_weight(moving, 0.5)
    assert weight.shape == (1, 1, 2, 2, 1)
    np.testing.assert_allclose(weight[0, 0, :, :, 0], [[0.5, 0.5], [2.5, 0.5]], atol=1e-4)
    np.testing.assert_allclose(pretrain.motion_weight(still, 0.0), 1.0)


def test_noise_levels_are_independent_and_partly_clean():
    cfg = get_config().train
    levels = np.asarray(pretrain.noise_levels(jax.random.key(0), (4000, 2), cfg))
    assert levels.min() == 0.0 and levels.max() <= 1.0
    assert (levels <= 0.1).mean() == pytest.approx(cfg.dit_clean + (1 - cfg.dit_clean) * 0.036, abs=0.03)
    assert abs(np.corrcoef(levels.T)[0, 1]) < 0.05


def test_a_run_cut_in_two_equals_one_run(tmp_path):
    cfg = small()
    step = functools.partial(train_vae.clip_step, piece=4, loss=train_vae.loss_fn, rates=cfg.train.vae, cfg=cfg)
    straight = loop.Run(cfg, cfg.train.vae, tmp_path / "one").fit(vae_state(cfg), frames_data(), step)
    half = dataclasses.replace(cfg.train.vae, steps=3)
    loop.Run(cfg, half, tmp_path / "two").fit(vae_state(cfg), frames_data(), step)
    resumed = loop.Run(cfg, cfg.train.vae, tmp_path / "two").fit(vae_state(cfg), frames_data(), step)
    assert int(resumed.step) == int(straight.step) == 6
    jax.tree.map(np.testing.assert_array_equal, straight.average, resumed.average)
    assert (tmp_path / "two" / "loss.png").stat().st_size > 1000
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count("\n") == 3


def test_a_poisoned_gradient_is_skipped():
    cfg = small()
    state = vae_state(cfg)
    kept = jax.tree.map(jnp.copy, state.weights)
    poison = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), state.weights)
    state = optim.step(state, poison, cfg=cfg.train.vae)
    jax.tree.map(np.testing.assert_array_equal, state.weights, kept)


@pytest.mark.parametrize(("beside", "whole"), [(True, 0.0), pytest.param(False, 1.0, marks=pytest.mark.slow)])
def test_the_knot_engine_learns_from_tied_windows(beside: bool, whole: float):
    """And from whole ones, as its teacher.

    A network whose output layer is zero says v = 0: the loss is that of data and noise, and every weight hears.
    """
    cfg = small()
    knot = tiny_knot.get_config()
    cfg = dataclasses.replace(cfg, stream=knot.stream, dit=dataclasses.replace(cfg.dit, condition_channels=20))
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, dit_whole=whole))
    batch = window(validate(cfg))
    given = latents.beside(jax.tree.map(np.asarray, batch)) if beside else batch
    p = dit.lay_out(spec.init(dit.spec(cfg.dit), jax.random.key(0)), cfg.dit)
    loss, gradient = LEARN(p, given, jax.random.key(1), cfg=cfg)
    assert float(loss[0]) == pytest.approx(2.0, abs=0.3)  # noise and data of variance 1 each
    assert float(jnp.abs(gradient["head"]["out"]["w"]).max()) > 0.0


def test_the_knot_engine_reads_captions_and_signals():
    """In tied windows and in whole ones."""
    cfg, knot = small(), tiny_knot.get_config()
    reads = {"text_width": 8, "text_tokens": 4, "condition_channels": 20, "signals": (Signal("head", (1.0, 1.0)),)}
    cfg = dataclasses.replace(cfg, stream=knot.stream, dit=dataclasses.replace(cfg.dit, **reads))
    cfg = dataclasses.replace(cfg, text=READS, train=dataclasses.replace(cfg.train, dit_whole=0.5, dit_twin=1.0))
    drawn = spec.init(dit.spec(validate(cfg).dit), jax.random.key(0))
    p = dit.lay_out(
        jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), drawn), cfg.dit
    )
    said = jax.random.normal(jax.random.key(9), (2, 4, 8))
    batch = window(cfg) | {"text": said}
    turned = batch | {"signals": {"head": batch["signals"]["head"] + 1.0}}
    twins = batch | {"twin": {"latent": batch["latent"] + 0.1, "signals": turned["signals"]}}
    ways = [bool(jax.random.uniform(jax.random.split(jax.random.key(n))[1]) < 0.5) for n in range(8)]
    for number in (ways.index(True), ways.index(False)):
        losses = [
            float(LOSS(p, given, jax.random.key(number), cfg=cfg)[0])
            for given in (batch, batch | {"text": -said}, turned)
        ]
        assert len(set(losses)) == 3
        assert float(LOSS(p, twins, jax.random.key(number), cfg=cfg)[1]["loss_twin"]) > 0.0
