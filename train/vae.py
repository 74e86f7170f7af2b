"""Trains the tiny VAE on drawn faces: single frames first, then clips.

python -m train.vae --config=configs/tiny.py --workdir=runs/tiny/vae
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
from absl import flags

from avatar_jax.core import config as configs
from avatar_jax.core import spec
from avatar_jax.data.frames import frame_dataset
from avatar_jax.io import weights as weight_files
from avatar_jax.models import vae
from infer import door
from train import loop, optim

FLAGS = flags.FLAGS


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    flags.DEFINE_string("workdir", "runs/tiny/vae", "Where checkpoints, metrics and weights go.")


def loss_fn(p: dict, frames: jax.Array, key: jax.Array, *, cfg: configs.Config) -> tuple[jax.Array, dict]:
    """L1 plus squared error plus a small KL of the latents. frames: uint8 [B, 1 + 4k, H, W, 3]."""
    x = frames.astype(jnp.float32) / 127.5 - 1.0
    mean, log_variance = vae.moments(p, x, cfg=cfg.vae)
    log_variance = jnp.clip(log_variance, -20.0, 10.0)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    error = vae.pixels(p, z, cfg=cfg.vae) - x
    squared = jnp.square(error).mean()
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).mean()
    loss = jnp.abs(error).mean() + squared + cfg.train.vae_kl * kl
    return loss, {"loss": loss, "psnr": -10.0 * jnp.log10(squared / 4.0), "kl": kl}


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=0)
def step(state: optim.TrainState, frames: jax.Array, key: jax.Array, *, cfg: configs.Config):
    """One training step. Returns the state and scalars."""
    (_, scalars), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.weights, frames, key, cfg=cfg)
    return optim.step(state, gradient, cfg=cfg.train.vae), scalars


def with_statistics(p: dict, frames: jax.Array, *, cfg: configs.Config) -> dict:
    """The weights with the latents' per-channel mean and deviation measured on `frames` uint8 [B, T, H, W, 3]."""
    encode = jax.jit(functools.partial(vae.moments, cfg=cfg.vae))
    mean = jnp.concatenate([encode(p, f[None].astype(jnp.float32) / 127.5 - 1.0)[0][0] for f in frames])
    return p | {"stats": {"mean": mean.mean((0, 1, 2)), "std": mean.std((0, 1, 2))}}


def main() -> None:
    """Single frames for `vae_image_steps`, then clips to the end; writes `vae.safetensors` from the averages."""
    cfg, workdir = configs.validate(FLAGS.config), pathlib.Path(FLAGS.workdir)
    train, size = cfg.train, cfg.video.height
    state = optim.empty(spec.init(vae.spec(cfg.vae), jax.random.key(cfg.data.seed)), train.vae)
    clip_frames = 1 + train.vae_clip_latents * cfg.vae.temporal_stride
    phases = ((1, min(train.vae_image_steps, train.vae.steps)), (clip_frames, train.vae.steps))
    for frames, until in phases:
        limit = configs.dataclasses.replace(train.vae, steps=until)
        batch = max(1, train.vae.batch // (1 if frames == 1 else clip_frames // 2))
        data = frame_dataset(cfg.data.seed + frames, video_frames=frames, size=size, batch=batch)
        run = loop.Run(cfg, limit, workdir / f"frames{frames}")
        state = run.fit(state, loop.batches(data, threads=1, prefetch=4), functools.partial(step, cfg=cfg))
    sample = frame_dataset(cfg.data.seed + 99, video_frames=clip_frames, size=size, batch=64)[0]
    weight_files.save(workdir / "vae.safetensors", with_statistics(state.average, sample, cfg=cfg))


if __name__ == "__main__":
    door.run(main, define)
