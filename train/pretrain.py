"""Stage one: diffusion forcing. Every block of a window has its own noise level, under the block-causal mask.

python -m train.pretrain --config=configs/tiny.py --latents=runs/tiny/latents --workdir=runs/tiny/pretrain
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from avatar_jax.core import check, spec
from avatar_jax.core import config as configs
from avatar_jax.diffusion import flow
from avatar_jax.io import weights as weight_files
from avatar_jax.models import dit, layout
from avatar_jax.stream import rollout, window
from infer import door, hosts
from infer.aot import counts
from train import journal, loop, optim, tied, watch, windows
from train import mesh as meshes

FLAGS = flags.FLAGS
Draw = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
APART = 1e-4  # mean squared difference of twins below which it hardly counts: brows on a face that has none


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    hosts.define()
    flags.DEFINE_string("latents", "runs/tiny/latents", "Folders of train.latents or train.prepare: a=3,b=1 by weight.")
    flags.DEFINE_string("workdir", "runs/tiny/pretrain", "Where checkpoints, metrics and weights go.")
    watch.define()
    flags.DEFINE_string("init", "", "Weights to start from; what they lack is drawn anew. Default: all is.")


def noise_levels(key: jax.Array, shape: tuple[int, int], cfg: configs.TrainConfig) -> jax.Array:
    """Independent levels of every block, [B, blocks]: shifted uniform, some of them nearly or fully clean.

    Uniform levels almost never show the network the clean history it streams over, so `dit_clean` of the blocks
    draw from [0, 0.1] instead, half of those exactly 0.
    """
    noisy, low, choice = jax.random.split(key, 3)
    level = flow.shift(jax.random.uniform(noisy, shape), cfg.dit_shift)
    near = jnp.maximum(jax.random.uniform(low, shape, minval=-0.1, maxval=0.1), 0.0)
    return jnp.where(jax.random.uniform(choice, shape) < cfg.dit_clean, near, level)


def seen_whole(key: jax.Array, batch: int, cfg: configs.TrainingConfig) -> tuple[jax.Array, jax.Array]:
    """What a step sees and at which levels: the mask, and levels of the blocks [B, blocks].

    `dit_whole` of the steps see a window as a teacher does, whole and at one level; the others as a stream does.
    """
    level_key, choice_key = jax.random.split(key)
    blocks = cfg.train.dit_blocks
    levels = noise_levels(level_key, (batch, blocks), cfg.train)
    one = flow.shift(jax.random.uniform(level_key, (batch, 1)), cfg.train.dit_shift)
    as_teacher = jax.random.uniform(choice_key) < cfg.train.dit_whole
    seen = jnp.where(as_teacher, window.whole(blocks, cfg), window.causal(blocks, cfg))
    return seen, jnp.where(as_teacher, one, levels)


def reference_ahead(key: jax.Array, batch: int, cfg: configs.TrainingConfig) -> jax.Array:
    """Positions of each block's copy of the reference, its distance drawn from the span, [B, blocks]."""
    low, high = cfg.train.dit_reference_span
    return jax.random.randint(key, (batch, 1), low, high + 1) + window.starts(cfg.train.dit_blocks, cfg)


def motion_weight(x0: jax.Array, share: float) -> jax.Array:
    """Loss weight of each latent pixel, mean 1: `share` of it goes where the window moves.

    A mouth covers a twentieth of the picture; unweighted, most of the loss is spent on what stands still.
    x0: [B, F, h, w, C] -> [B, 1, h, w, 1].
    """
    motion = x0.std(1, keepdims=True).mean(-1, keepdims=True)
    return (1.0 - share) + share * motion / (motion.mean((2, 3), keepdims=True) + 1e-6)


def velocity_error(
    p: dict, batch: windows.Batch, key: jax.Array, *, cfg: configs.TrainingConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Error of a window's velocity [B, blocks, F, h, w, C], its latents, and the levels of its blocks.

    batch: from `latents.window_dataset`; cfg: from `windows.sized`.
    """
    level_key, noise_key, place_key, vary_key = jax.random.split(key, 4)
    x0, reference = (batch[name].astype(jnp.float32) for name in ("latent", "reference"))
    seen, levels = seen_whole(level_key, len(x0), cfg)
    sigma = jnp.repeat(levels, cfg.stream.block_latents, 1)
    noise = jax.random.normal(noise_key, x0.shape)
    speakers = windows.learned(vary_key, batch, cfg)
    v = window.velocity(
        p,
        flow.add_noise(x0, noise, sigma[..., None, None, None]),
        sigma,
        reference,
        tuple(rollout.voice_of(p, speaker, cfg=cfg) for speaker in speakers),
        ahead=reference_ahead(place_key, len(x0), cfg),
        seen=seen,
        cross=windows.prompt(p, batch.get("text"), cfg),
        cfg=cfg,
    )
    shape = (*levels.shape, -1, *x0.shape[2:])
    return (v - flow.velocity(x0, noise)).reshape(shape), x0.reshape(shape), levels


class Errors(NamedTuple):
    """Of each block [B, blocks]: the mean squared error, its noise level, and the error beside the twin's or 0."""

    own: jax.Array
    level: jax.Array
    twin: jax.Array


def twin_error(error: jax.Array, apart: jax.Array, level: jax.Array) -> jax.Array:
    """How wrong a window's clean latents, as drawn, differ from its twin's, relative to how they do. [B, blocks]

    Twins differ in one signal, and both are noised with the same noise, so that all but the signal's effect cancels: a
    brow, a hundredth of what varies in a window and of its own error, is all there is of this one.

    Args:
      error: the difference of the two errors of velocity, [B, blocks, F, h, w, C].
      apart: the difference of the latents, of the same shape.
      level: noise levels [B, blocks]: of an error of velocity, so much is one of the clean latents.
    """
    much = jnp.square(apart).mean((1, 2, 3, 4, 5), keepdims=True)
    return jnp.square(level) * (jnp.square(error) / (much + APART)).mean((2, 3, 4, 5))


def block_errors(draw: Draw, p: dict, batch: windows.Batch, key: jax.Array, cfg: configs.TrainingConfig) -> Errors:
    """The errors of a batch, those of velocity weighted by `motion_weight`."""

    def weighted(error: jax.Array, x0: jax.Array) -> jax.Array:
        weight = motion_weight(x0.reshape(len(x0), -1, *x0.shape[3:]), cfg.train.dit_motion)
        return (weight[:, None] * jnp.square(error)).mean((2, 3, 4, 5))

    error, x0, levels = draw(p, batch, key, cfg=cfg)
    own = weighted(error, x0)
    if "twin" not in batch:
        return Errors(own, levels, jnp.zeros_like(own))
    twin, twin_x0, _ = draw(p, batch | batch["twin"], key, cfg=cfg)  # the same key: the same levels and noise
    return Errors((own + weighted(twin, twin_x0)) / 2, levels, twin_error(error - twin, x0 - twin_x0, levels))


def tied_errors(p: dict, batch: windows.Batch, key: jax.Array, cfg: configs.TrainingConfig) -> Errors:
    """`block_errors` of the knot engine; `dit_whole` of the steps see a window as a teacher does."""
    key, choice_key = jax.random.split(key)
    as_teacher = jax.random.uniform(choice_key) < cfg.train.dit_whole
    ways = (functools.partial(block_errors, draw) for draw in (tied.whole_error, tied.velocity_error))
    return jax.lax.cond(as_teacher, *(functools.partial(way, cfg=cfg) for way in ways), p, batch, key)


def loss_fn(p: dict, batch: windows.Batch, key: jax.Array, *, cfg: configs.TrainingConfig) -> tuple[jax.Array, dict]:
    """Mean squared velocity error over blocks with noise in them (live_avatar.md section 7.1), and `twin_error`.

    batch: from `latents.window_dataset`.
    """
    errors = tied_errors if cfg.stream.knot else functools.partial(block_errors, velocity_error)
    error, level, twin = errors(p, batch, key, cfg=windows.sized(batch, cfg))
    counted, high = level > 0.0, level > 0.8  # high: where only the sound and the portrait can tell what to draw

    def mean(values: jax.Array, over: jax.Array) -> jax.Array:
        return jnp.where(over, values, 0.0).sum() / over.sum().clip(1)

    scalars = {"loss": mean(error, counted), "loss_high": mean(error, high)}
    if "twin" not in batch:
        return scalars["loss"], scalars
    apart = mean(twin, counted)
    return scalars["loss"] + cfg.train.dit_twin * apart, scalars | {"loss_twin": apart}


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=0)
def step(state: optim.TrainState, batch: windows.Batch, key: jax.Array, *, cfg: configs.TrainingConfig):
    """One training step. Returns the state and scalars."""
    loss = functools.partial(loss_fn, cfg=cfg)
    gradient, scalars = optim.gradient(loss, state.weights, batch, key, pieces=cfg.train.dit.accumulate)
    return optim.step(state, gradient, cfg=cfg.train.dit), scalars


def cost(cfg: configs.TrainingConfig) -> journal.Cost:
    """Noisy tokens of a batch, and the operations of a step: thrice those of a forward pass."""
    blocks, frame = cfg.train.dit_blocks, cfg.tokens_per_frame
    frames, tokens = blocks * cfg.stream.block_latents, cfg.stream.block_latents * frame
    seen = [min(block + 1, cfg.stream.window_blocks) * tokens for block in range(blocks)]
    window = sum(counts.block(cfg.dit, tokens, ring, frame) for ring in seen)
    window += counts.level(cfg.dit, frames) + counts.prefill(cfg.dit, frame, {})
    window += counts.hear(cfg.dit, frames) + counts.audio_encoder(cfg.dit, cfg.stream.audio_context + 4 * frames)
    batch = cfg.train.dit.batch
    return journal.Cost(batch * blocks * tokens, 3.0 * batch * window)


def averaged(state: optim.TrainState) -> dict:
    """What is kept of a run: the averaged weights, stacked."""
    return dit.gather(state.average)


def train(
    cfg: configs.TrainingConfig,
    folders: str,
    workdir: pathlib.Path,
    init: str = "",
    view: watch.View | None = None,
) -> None:
    """Trains on the latents of folders, to the end, and writes `dit.safetensors` from the averaged weights."""
    rates, mesh = cfg.train.dit, meshes.make_mesh(cfg.train.mesh)

    def fresh() -> optim.TrainState:
        drawn = spec.init(dit.spec(cfg.dit), jax.random.key(cfg.data.seed))
        if init:
            drawn = weight_files.into(drawn, pathlib.Path(init), wider=["patch/w"])  # a token's conditions come last
        return optim.empty(dit.lay_out(drawn, cfg.dit), rates)

    where = layout.shardings(meshes.RULES, mesh, unrolled=cfg.dit.layer_loop == "unroll", cfg=cfg.dit)
    state = meshes.make_state(fresh, where, mesh)
    walk = meshes.make_step(functools.partial(step, cfg=cfg), state, mesh)
    batches = windows.batches(folders, rates.batch, mesh, cfg, twins=cfg.train.dit_twin > 0.0)
    around: Any = {"workdir": workdir, "mesh": mesh, "cfg": cfg}
    seen = watch.Watch(view, averaged, functools.partial(dit.lay_out, cfg=cfg.dit), **around) if view else None
    state = loop.Run(cfg, rates, workdir, mesh, cost(cfg), seen).fit(state, batches, walk)
    done = meshes.whole(averaged(state))
    if jax.process_index() == 0:
        weight_files.save(workdir / "dit.safetensors", done, dtype="float16")


def main() -> None:
    """One process of the run."""
    hosts.check()
    cfg = check.validate(FLAGS.config)
    view = watch.asked(cfg)
    door.start_jax()
    with hosts.together():
        train(cfg, FLAGS.latents, pathlib.Path(FLAGS.workdir), FLAGS.init, view)


if __name__ == "__main__":
    door.run(main, define)
