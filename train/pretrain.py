"""Stage one: diffusion forcing. Every block of a window has its own noise level, under the block-causal mask.

python -m train.pretrain --config=configs/tiny.py --latents=runs/tiny/latents --workdir=runs/tiny/pretrain
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from avatar_jax.core import check, spec
from avatar_jax.core import config as configs
from avatar_jax.data import latents
from avatar_jax.diffusion import flow
from avatar_jax.io import weights as weight_files
from avatar_jax.models import audio, condition, dit, layout, mask, mel, signal
from avatar_jax.nn import rope
from avatar_jax.stream import clock
from infer import door, hosts
from infer.aot import counts
from train import journal, loop, optim
from train import mesh as meshes

FLAGS = flags.FLAGS


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    hosts.define()
    flags.DEFINE_string("latents", "runs/tiny/latents", "Folder that train.latents wrote.")
    flags.DEFINE_string("workdir", "runs/tiny/pretrain", "Where checkpoints, metrics and weights go.")


def noise_levels(key: jax.Array, shape: tuple[int, int], cfg: configs.TrainConfig) -> jax.Array:
    """Independent levels of every block, [B, blocks]: shifted uniform, some of them nearly or fully clean.

    Uniform levels almost never show the network the clean history it streams over, so `dit_clean` of the blocks
    draw from [0, 0.1] instead, half of those exactly 0.
    """
    noisy, low, choice = jax.random.split(key, 3)
    level = flow.shift(jax.random.uniform(noisy, shape), cfg.dit_shift)
    near = jnp.maximum(jax.random.uniform(low, shape, minval=-0.1, maxval=0.1), 0.0)
    return jnp.where(jax.random.uniform(choice, shape) < cfg.dit_clean, near, level)


def positions(key: jax.Array, batch: int, cfg: configs.TrainingConfig) -> tuple[rope.Phase, rope.Phase]:
    """Phases of the window's tokens and of one reference copy a block, its offset drawn from the span, [B, ...]."""
    low, high = cfg.train.dit_reference_span
    length, blocks = cfg.stream.block_latents, cfg.train.dit_blocks
    offset = jax.random.randint(key, (batch, 1), low, high + 1)
    starts = jnp.arange(blocks) * length
    return clock.grid_phase(np.arange(blocks * length), cfg), clock.grid_phase(starts + offset, cfg)


def motion_weight(x0: jax.Array, share: float) -> jax.Array:
    """Loss weight of each latent pixel, mean 1: `share` of it goes where the window moves.

    A mouth covers a twentieth of the picture; unweighted, most of the loss is spent on what stands still.
    x0: [B, F, h, w, C] -> [B, 1, h, w, 1].
    """
    motion = x0.std(1, keepdims=True).mean(-1, keepdims=True)
    return (1.0 - share) + share * motion / (motion.mean((2, 3), keepdims=True) + 1e-6)


def dropped_signals(key: jax.Array, signals: dict[str, jax.Array], share: float) -> dict[str, jax.Array]:
    """Signals [B, T, width] by name, some rows absent (NaN): of each, `share` of the windows, whatever the others do.

    Half of those lack it wholly; in the others it ends or begins at some frame, as in a stream it may at any.
    """

    def drop(key: jax.Array, rows: jax.Array) -> jax.Array:
        batch, frames = rows.shape[:2]
        which, how, cut = (jax.random.uniform(part, (batch, 1, 1)) for part in jax.random.split(key, 3))
        frame = jnp.arange(frames)[:, None] / frames
        part = jnp.where(how < 0.75, frame >= cut, frame < cut) | (how < 0.5)
        return jnp.where((which < share) & part, jnp.nan, rows)

    return {name: drop(jax.random.fold_in(key, i), rows) for i, (name, rows) in enumerate(sorted(signals.items()))}


def voice_of(
    p: dict, batch: dict[str, Any], drop_key: jax.Array, gain_key: jax.Array, *, cfg: configs.TrainingConfig
) -> audio.Voice:
    """What drives a window: louder or quieter, `dit_drop_audio` of the sound silent, signals dropped by themselves."""
    features = batch["features"].astype(jnp.float32)
    gain = jax.random.uniform(gain_key, (len(features), 1, 1, 1), minval=-0.3, maxval=0.1)
    dropped = jax.random.uniform(drop_key, (len(features), 1, 1, 1)) < cfg.train.dit_drop_audio
    features = jnp.where(dropped, mel.SILENCE_VALUE, jnp.maximum(features + gain, mel.SILENCE_VALUE))
    voice = audio.encode(p["audio"]["encoder"], features, context=cfg.stream.audio_context, cfg=cfg.dit)
    rows = dropped_signals(jax.random.fold_in(drop_key, 1), batch["signals"], cfg.train.dit_drop_signal)
    return signal.join(p, voice, rows, cfg=cfg.dit)


def loss_fn(p: dict, batch: dict[str, Any], key: jax.Array, *, cfg: configs.TrainingConfig) -> tuple[jax.Array, dict]:
    """Mean squared velocity error over blocks with noise in them (live_avatar.md section 7.1).

    batch: latent [B, F, h, w, C], reference [B, 1, h, w, C], features [B, context + 4F, 1, W], signals [B, 4F, width].
    """
    level_key, noise_key, place_key, drop_key, gain_key = jax.random.split(key, 5)
    x0 = batch["latent"].astype(jnp.float32)
    length, blocks = cfg.stream.block_latents, cfg.train.dit_blocks
    level = noise_levels(level_key, (len(x0), blocks), cfg.train)
    sigma = jnp.repeat(level, length, 1)
    noise = jax.random.normal(noise_key, x0.shape)
    phase, ahead = positions(place_key, len(x0), cfg)
    reference = batch["reference"].astype(jnp.float32)
    tokens = condition.embed_reference(p, reference, cfg.dit)
    held = dit.prefill(p, tokens, clock.grid_phase(clock.STILL, cfg), cfg=cfg.dit)
    per_frame = cfg.tokens_per_frame
    v = dit.apply(
        p,
        flow.add_noise(x0, noise, sigma[..., None, None, None]),
        sigma,
        held,
        phase=phase,
        reference_phases=ahead,
        mask=mask.with_reference(blocks, cfg.stream.window_blocks, length * per_frame, per_frame),
        voices=(voice_of(p, batch, drop_key, gain_key, cfg=cfg),),
        cfg=cfg.dit,
    )
    error = (motion_weight(x0, cfg.train.dit_motion) * jnp.square(v - flow.velocity(x0, noise))).mean((2, 3, 4))
    counted = sigma > 0.0
    loss = jnp.where(counted, error, 0.0).sum() / counted.sum()
    high = sigma > 0.8  # where only the sound and the portrait can tell what to draw
    return loss, {"loss": loss, "loss_high": jnp.where(high, error, 0.0).sum() / high.sum().clip(1)}


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=0)
def step(state: optim.TrainState, batch: dict[str, Any], key: jax.Array, *, cfg: configs.TrainingConfig):
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


def train(cfg: configs.TrainingConfig, folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """Trains on the latents of a folder, to the end, and writes `dit.safetensors` from the averaged weights."""
    rates, mesh = cfg.train.dit, meshes.make_mesh(cfg.train.mesh)
    share = meshes.share(rates.batch, mesh)
    data = latents.window_dataset(folder, cfg, silence=mel.silence(cfg.mel), batch=rates.batch // share.count)

    def fresh() -> optim.TrainState:
        drawn = spec.init(dit.spec(cfg.dit), jax.random.key(cfg.data.seed))
        return optim.empty(dit.lay_out(drawn, cfg.dit), rates)

    where = layout.shardings(meshes.RULES, mesh, unrolled=cfg.dit.layer_loop == "unroll", cfg=cfg.dit)
    state = meshes.make_state(fresh, where, mesh)
    walk = meshes.make_step(functools.partial(step, cfg=cfg), state, mesh)
    batches = loop.batches(share.of(data), threads=cfg.data.workers, prefetch=8)
    state = loop.Run(cfg, rates, workdir, mesh, cost(cfg)).fit(state, batches, walk)
    average = dit.gather(meshes.whole(state.average))
    if hosts.first():
        weight_files.save(workdir / "dit.safetensors", average, dtype="float16")


def main() -> None:
    """One process of the run."""
    hosts.check()
    cfg = check.validate(FLAGS.config)
    if cfg.stream.knot:
        raise ValueError("config.stream.engine='knot': is not trained here yet; take a sink configuration")
    door.start_jax()
    with hosts.together():
        train(cfg, pathlib.Path(FLAGS.latents), pathlib.Path(FLAGS.workdir))


if __name__ == "__main__":
    door.run(main, define)
