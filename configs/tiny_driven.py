"""The tiny avatar in four steps, driven by more than sound: head pose, gaze and expression beside the voice.

Run:    python -m infer.stream --config=configs/tiny_driven.py --output=talk.mp4
        python -m infer.stream --config=configs/tiny_driven.py --drive=actor.mp4 --output=talk.mp4
        python -m infer.stream --config=configs/tiny_driven.py --signals=head.npz --output=talk.mp4
Train:  make train           (train.latents, train.pretrain, train.follow, train.distill after those of `tiny`)
One person: python -m train.finetune --config=configs/tiny_driven.py --video=me.mp4 --workdir=runs/me

The mouth is left to the sound. Its weights come with the package, and the teacher they were led by beside them
(docs/training.md has the record).
"""

import dataclasses

from avatar_jax.core import config as c
from configs import tiny

# Standard deviations of the drawn world's motion (data/controls.py); its clips hold these numbers in this order.
SIGNALS = (
    c.Signal("head", (0.09, 0.05, 0.037, 0.01, 0.0075, 0.01)),  # yaw, pitch, roll; x, y; scale - 1
    c.Signal("gaze", (0.27, 0.14, 0.17)),  # x, y; blink
    c.Signal("expression", (0.31, 0.29)),  # brow, smile
)


def _distill(optim: c.OptimConfig) -> c.DistillConfig:
    slow = dataclasses.replace(
        optim, rate=0.001, vector_rate=5e-5, warmup=20, ema=0.98, steps=800, log_every=20, save_every=100
    )
    return c.DistillConfig(
        student=dataclasses.replace(slow, steps=200),
        fake=dataclasses.replace(slow, rate=0.002, vector_rate=1e-4),
        rank=0,
        alpha=1.0,
        every=4,
        blocks=4,
        guidance=2.0,
        shift=3.0,
        anchored=0.3,
        follow=dataclasses.replace(slow, rate=0.004, vector_rate=1e-4, steps=300, save_every=50),
    )


def _finetune(optim: c.OptimConfig) -> c.FinetuneConfig:
    few = dataclasses.replace(
        optim, rate=0.002, vector_rate=2e-4, warmup=10, ema=0.98, steps=200, log_every=10, save_every=50
    )
    return c.FinetuneConfig(optim=few, rank=16, alpha=16.0, held_out=0.2)


def get_config() -> c.TrainingConfig:
    """The tiny run with signals."""
    cfg = tiny.get_config()
    train = dataclasses.replace(
        cfg.train,
        dit=dataclasses.replace(cfg.train.dit, rate=0.01, vector_rate=5e-4, steps=3400),
        dit_blocks=4,
        dit_drop_audio=0.1,
        dit_drop_signal=0.4,
        dit_whole=0.4,
        dit_twin=1.0,
        dit_beside=7,  # of batches that come by turns, twins or not, all are paired
        distill=_distill(cfg.train.dit),
        finetune=_finetune(cfg.train.dit),
    )
    return dataclasses.replace(
        cfg,
        name="tiny_driven",
        dit=dataclasses.replace(cfg.dit, signals=SIGNALS),
        stream=dataclasses.replace(cfg.stream, steps=4, history="timestep"),
        train=train,
    )
