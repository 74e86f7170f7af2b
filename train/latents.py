"""Encodes clips of the drawn world once, so that the transformer trains on latents.

    python -m train.latents --config=configs/tiny.py --vae=runs/tiny/vae/vae.safetensors --workdir=runs/tiny/latents

Restartable: finished shards are kept.
"""

import functools
import pathlib

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from avatar_jax.core import check
from avatar_jax.core import config as configs
from avatar_jax.data import controls, latents
from avatar_jax.data.source import WorldSource
from avatar_jax.io import weights as weight_files
from avatar_jax.models import mel, vae
from infer import door

FLAGS = flags.FLAGS
CLIPS_PER_SHARD = 50


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    flags.DEFINE_string("vae", "runs/tiny/vae/vae.safetensors", "Weights of the trained VAE.")
    flags.DEFINE_string("workdir", "runs/tiny/latents", "Where the shards go.")


@functools.partial(jax.jit, static_argnames="cfg")
def encode(p: dict, frames: jax.Array, sound: jax.Array, *, cfg: configs.TrainingConfig) -> tuple[jax.Array, jax.Array]:
    """uint8 frames [1 + T, H, W, 3] and samples [640 T] to latents [1 + T/4, h, w, C] and features [T, W], float16."""
    z = vae.encode(p, vae.from_uint8(frames[None]), cfg=cfg.vae)
    return z[0].astype(jnp.float16), mel.whole(sound, cfg.mel).astype(jnp.float16)


def record_of(p: dict, clip: dict[str, np.ndarray], *, cfg: configs.TrainingConfig) -> latents.Record:
    """One encoded clip, opened by its reference image as a stream is."""

    def moving(frames: np.ndarray, moved: np.ndarray) -> latents.Record:
        latent, features = encode(p, np.concatenate([clip["reference"][None], frames]), clip["waveform"], cfg=cfg)
        signals = controls.signals(moved)  # all of them: a configuration chooses without encoding again
        named = {latents.SIGNAL + name: rows for name, rows in signals.items()}
        return {"latent": np.asarray(latent), "features": np.asarray(features)} | named

    record = moving(clip["frames"], clip["controls"]) | {latents.PERFORMED: clip["performed"]}
    if "twin_frames" in clip:
        twin = moving(clip["twin_frames"], clip["twin_controls"])
        record |= {latents.TWIN + name: rows for name, rows in twin.items() if name != "features"}
    return record


def main() -> None:
    """Writes every shard that is not there yet."""
    door.start_jax()
    cfg, folder = check.validate(FLAGS.config), pathlib.Path(FLAGS.workdir)
    p = weight_files.load(pathlib.Path(FLAGS.vae), vae.spec(cfg.vae))
    source = WorldSource(
        seed=cfg.data.seed,
        size=cfg.video.height,
        video_frames=cfg.data.video_frames,
        count=cfg.data.clips,
        performed=cfg.data.performed,
        twinned=cfg.data.twinned,
    )
    shards = -(-cfg.data.clips // CLIPS_PER_SHARD)
    todo = [shard for shard in range(shards) if not latents.shard_path(folder, shard).exists()]
    indices = [i for s in todo for i in range(s * CLIPS_PER_SHARD, min((s + 1) * CLIPS_PER_SHARD, cfg.data.clips))]
    reader = grain.ReadOptions(num_threads=cfg.data.workers, prefetch_buffer_size=8)
    clips = iter(grain.MapDataset.source(indices).map(source.__getitem__).to_iter_dataset(reader))
    bar = tqdm.tqdm(total=cfg.data.clips, initial=cfg.data.clips - len(indices), unit="clip", mininterval=5)
    for shard in todo:
        count = min((shard + 1) * CLIPS_PER_SHARD, cfg.data.clips) - shard * CLIPS_PER_SHARD
        records = []
        for _ in range(count):
            records.append(record_of(p, next(clips), cfg=cfg))
            bar.update()
        latents.write_shard(latents.shard_path(folder, shard), records)
    bar.close()


if __name__ == "__main__":
    door.run(main, define)
