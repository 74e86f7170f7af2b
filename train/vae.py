"""Trains the tiny VAE on drawn faces: single frames, then clips, then the decoder alone.

python -m train.vae --config=configs/tiny.py --workdir=runs/tiny/vae
"""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from avatar_jax.core import check, spec
from avatar_jax.core import config as configs
from avatar_jax.data.frames import frame_dataset, wandering_clip
from avatar_jax.io import weights as weight_files
from avatar_jax.models import vae
from infer import door
from train import loop, optim

FLAGS = flags.FLAGS
Tails = tuple[vae.Tail, vae.Tail]
Loss = Callable[..., tuple[jax.Array, tuple[Tails, dict]]]


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    flags.DEFINE_string("workdir", "runs/tiny/vae", "Where checkpoints, metrics and weights go.")


def loss_fn(
    p: dict, tails: Tails | None, frames: jax.Array, key: jax.Array, *, cfg: configs.TrainingConfig
) -> tuple[jax.Array, tuple[Tails, dict]]:
    """L1 plus squared error plus a small KL of the latents, over one piece of a clip.

    Args:
      p: weights.
      tails: the encoder's and decoder's histories; None opens a clip.
      frames: uint8 [B, 1 + 4k, H, W, 3] to open a clip, [B, 4k, H, W, 3] to go on.
      key: of the latents' noise.
      cfg: the run.
    """
    x = vae.from_uint8(frames)
    mean, log_variance, heard = vae.posterior(p, x, None if tails is None else tails[0], cfg=cfg.vae)
    log_variance = jnp.clip(log_variance, -20.0, 10.0)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    y, shown = vae.pixels(p, z, None if tails is None else tails[1], cfg=cfg.vae)
    squared = jnp.square(y - x).mean()
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).mean()
    loss = jnp.abs(y - x).mean() + squared + cfg.train.vae_kl * kl
    return loss, ((heard, shown), {"loss": loss, "psnr": -10.0 * jnp.log10(squared / 4.0), "kl": kl})


def decoder_loss_fn(
    p: dict, tails: Tails | None, frames: jax.Array, key: jax.Array, *, cfg: configs.TrainingConfig
) -> tuple[jax.Array, tuple[Tails, dict]]:
    """Squared error of the decoder on the latents as they are; arguments as for `loss_fn`."""
    del key
    x = vae.from_uint8(frames)
    mean, _, heard = vae.posterior(jax.lax.stop_gradient(p), x, None if tails is None else tails[0], cfg=cfg.vae)
    y, shown = vae.pixels(p, mean, None if tails is None else tails[1], cfg=cfg.vae)
    squared = jnp.square(y - x).mean()
    return squared, ((heard, shown), {"loss": squared, "psnr": -10.0 * jnp.log10(squared / 4.0)})


@functools.partial(jax.jit, static_argnames=("loss", "cfg", "rates"), donate_argnums=0)
def step(
    state: optim.TrainState,
    tails: Tails | None,
    frames: jax.Array,
    key: jax.Array,
    *,
    loss: Loss,
    rates: configs.OptimConfig,
    cfg: configs.TrainingConfig,
) -> tuple[optim.TrainState, Tails, dict]:
    """One optimiser step on one piece. Returns the state, the histories for the next piece, and scalars."""
    gradient, (after, scalars) = jax.grad(loss, has_aux=True)(state.weights, tails, frames, key, cfg=cfg)
    return optim.step(state, gradient, cfg=rates), after, scalars


def clip_step(
    state: optim.TrainState,
    frames: jax.Array,
    key: jax.Array,
    *,
    piece: int,
    loss: Loss,
    rates: configs.OptimConfig,
    cfg: configs.TrainingConfig,
) -> tuple[optim.TrainState, dict]:
    """Walks through clips uint8 [B, 1 + n piece, H, W, 3], one optimiser step a piece, histories carried over.

    Short clips alone teach a decoder that leans on the first frame and fades after it; carried histories show it
    the middle of a stream at no cost.
    """
    once = functools.partial(step, loss=loss, rates=rates, cfg=cfg)
    state, tails, scalars = once(state, None, frames[:, : 1 + piece], key)
    for at in range(1 + piece, frames.shape[1], piece):
        state, tails, scalars = once(state, tails, frames[:, at : at + piece], jax.random.fold_in(key, at))
    return state, scalars


def with_statistics(p: dict, frames: np.ndarray, *, cfg: configs.TrainingConfig) -> dict:
    """The weights with the latents' per-channel mean and deviation measured on `frames` uint8 [B, T, H, W, 3]."""
    encode = jax.jit(lambda p, x: vae.posterior(p, x, None, cfg=cfg.vae)[0][0])
    mean = jnp.concatenate([encode(p, vae.from_uint8(f[None])) for f in frames])
    return p | {"stats": {"mean": mean.mean((0, 1, 2)), "std": mean.std((0, 1, 2))}}


def main() -> None:
    """The three phases, each in its own folder; writes `vae.safetensors` from the averages.

    Latents are settled with the second phase: the third moves the decoder only, so that what a transformer learned on
    them stays true.
    """
    door.start_jax()
    cfg, workdir = check.validate(FLAGS.config), pathlib.Path(FLAGS.workdir)
    train, size, stride = cfg.train, cfg.video.height, cfg.vae.temporal_stride
    piece, clip = train.vae_segment_latents * stride, 1 + train.vae_clip_latents * stride

    def fit(
        state: optim.TrainState, name: str, frames: int, batch: int, loss: Loss, rates: configs.OptimConfig, to: int
    ):
        data = frame_dataset(zlib.crc32(name.encode()) + cfg.data.seed, video_frames=frames, size=size, batch=batch)
        walk = functools.partial(clip_step, piece=piece, loss=loss, rates=rates, cfg=cfg)
        batches = loop.batches(data, threads=cfg.data.workers, prefetch=4)
        run = loop.Run(cfg, dataclasses.replace(rates, steps=to), workdir / name)
        return run.fit(state, batches, walk, stride=max(1, frames // piece))

    state, rates = optim.empty(spec.init(vae.spec(cfg.vae), jax.random.key(cfg.data.seed)), train.vae), train.vae
    state = fit(state, "images", 1, 2 * rates.batch, loss_fn, rates, min(train.vae_image_steps, rates.steps))
    state = fit(state, "clips", clip, rates.batch // 2, loss_fn, rates, rates.steps)
    state, rates = optim.empty(state.average, train.decoder), train.decoder
    state = fit(state, "decoder", clip, rates.batch // 2, decoder_loss_fn, rates, rates.steps)
    sample = np.stack([wandering_clip(cfg.data.seed + 99, i, video_frames=clip, size=size) for i in range(64)])
    weight_files.save(workdir / "vae.safetensors", with_statistics(state.average, sample, cfg=cfg), dtype="float16")


if __name__ == "__main__":
    door.run(main, define)
