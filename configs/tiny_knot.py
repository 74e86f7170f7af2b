"""The tiny avatar's geometry with the knot engine: blocks of 3 latents and a knot of 1 over a window of 6, four steps.

Run:    python -m infer.stream --config=configs/tiny_knot.py --output=talk.mp4
Train:  python -m train.pretrain --config=configs/tiny_knot.py \\
            --latents=runs/tiny/driven/latents=1,runs/tiny/driven/acted=2 \\
            --init=runs/tiny/driven/pretrain/dit.safetensors --workdir=runs/tiny/knot

The network of `tiny_driven`, signals and all, that reads 20 condition channels beside the noise: the mask and the known
latents of knots and reference. Its weights come with the package (docs/training.md has the record).

A block waits for four more video frames of sound than it shows, 0.16 s (knot_forcing.md section 1.4).
"""

import dataclasses

from avatar_jax.core import config as c
from configs import tiny_driven


def get_config() -> c.TrainingConfig:
    """`tiny_driven` with a knot."""
    cfg = tiny_driven.get_config()
    stream = dataclasses.replace(
        cfg.stream,
        engine="knot",
        steps=4,
        shift=5.0,
        history="clean",
        knot=c.KnotConfig(latents=1, window=6, reference_start=8, reference_jump=4),
    )
    assert cfg.train.distill is not None
    train = dataclasses.replace(
        cfg.train,
        dit=dataclasses.replace(cfg.train.dit, batch=4, steps=500, save_every=100),
        dit_whole=0.0,  # above 0 it becomes its own teacher too, which `train.distill` wants
        dit_beside=0,
        distill=dataclasses.replace(cfg.train.distill, follow=None),  # a step of a knotted block has no step before it
    )
    return dataclasses.replace(
        cfg, name="tiny_knot", dit=dataclasses.replace(cfg.dit, condition_channels=20), stream=stream, train=train
    )
