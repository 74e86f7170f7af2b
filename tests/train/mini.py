"""A run of stage one on a transformer of some thousand weights: seconds from start to end.

    python -m train.pretrain --config=tests/train/mini.py --latents=FOLDER --workdir=FOLDER

Its latents are drawn by `write_latents`.
"""

import dataclasses
import pathlib

import numpy as np

from avatar_jax.core import config as c
from avatar_jax.data import latents
from configs import tiny

CLIPS = 6


def get_config() -> c.TrainingConfig:
    """The tiny run, smaller."""
    cfg = tiny.get_config()
    quick = {"batch": 8, "steps": 20, "warmup": 2, "log_every": 5, "save_every": 10}
    return dataclasses.replace(
        cfg,
        name="mini",
        video=dataclasses.replace(cfg.video, height=32, width=32),
        dit=dataclasses.replace(
            cfg.dit, width=16, heads=2, layers=2, ffn=32, audio_inject=(1,), freq=16, layer_loop="scan"
        ),
        data=dataclasses.replace(cfg.data, video_frames=24, workers=1),
        train=dataclasses.replace(cfg.train, dit_blocks=2, dit=dataclasses.replace(cfg.train.dit, **quick)),
    )


def write_latents(folder: pathlib.Path, cfg: c.TrainingConfig) -> None:
    """One shard of clips without meaning."""
    rng = np.random.default_rng(0)
    frames, length = cfg.data.video_frames, cfg.data.video_frames // cfg.vae.temporal_stride

    def record() -> latents.Record:
        drawn = {
            "latent": rng.normal(size=(1 + length, *cfg.latent_size, cfg.dit.latent_channels)),
            "features": rng.normal(size=(frames, cfg.dit.audio_width)),
        }
        return {name: rows.astype(np.float16) for name, rows in drawn.items()}

    latents.write_shard(latents.shard_path(folder, 0), [record() for _ in range(CLIPS)])
