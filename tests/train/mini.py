"""A run of both stages on a transformer of some thousand weights: seconds from start to end.

    python -m train.pretrain --config=tests/train/mini.py --latents=FOLDER --workdir=FOLDER
    python -m train.follow --config=tests/train/mini.py --latents=FOLDER --workdir=FOLDER --teacher=FILE
    python -m train.distill --config=tests/train/mini.py --latents=FOLDER --workdir=FOLDER --teacher=FILE

Its latents are drawn by `write_latents`, its teacher by `write_teacher`.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from avatar_jax.core import config as c
from avatar_jax.core import spec
from avatar_jax.data import latents
from avatar_jax.io import weights
from avatar_jax.models import dit
from configs import tiny

CLIPS = 6


def get_config() -> c.TrainingConfig:
    """The tiny run, smaller."""
    cfg = tiny.get_config()
    quick = {"batch": 8, "steps": 20, "warmup": 2, "log_every": 5, "save_every": 10}
    rates = dataclasses.replace(cfg.train.dit, **quick)
    distill = c.DistillConfig(
        student=rates,
        fake=rates,
        rank=2,
        alpha=2.0,
        every=2,
        blocks=2,
        guidance=2.0,
        shift=3.0,
        anchored=0.5,
        follow=rates,
    )
    return dataclasses.replace(
        cfg,
        name="mini",
        video=dataclasses.replace(cfg.video, height=32, width=32),
        dit=dataclasses.replace(
            cfg.dit, width=16, heads=2, layers=2, ffn=32, audio_inject=(1,), freq=16, layer_loop="scan"
        ),
        data=dataclasses.replace(cfg.data, video_frames=24, workers=1),
        stream=dataclasses.replace(cfg.stream, steps=2, history="timestep"),
        train=dataclasses.replace(cfg.train, dit_blocks=2, dit=rates, distill=distill),
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


def write_teacher(path: pathlib.Path, cfg: c.TrainingConfig) -> None:
    """Weights that no training has made."""
    weights.save(path, spec.init(dit.spec(cfg.dit), jax.random.key(0)))


def batch(folder: pathlib.Path, cfg: c.TrainingConfig) -> dict:
    """The first batch of a folder's windows."""
    data: Any = latents.window_dataset(folder, cfg, silence=None, batch=cfg.train.dit.batch)
    return data[0]
