"""The tiny avatar, driven by more than sound: head pose, gaze and expression beside the voice.

Train:  python -m train.latents --config=configs/tiny_driven.py --vae=runs/tiny/vae/vae.safetensors \\
            --workdir=runs/tiny_driven/latents
        python -m train.pretrain --config=configs/tiny_driven.py --latents=runs/tiny_driven/latents \\
            --workdir=runs/tiny_driven/pretrain
Run:    python -m infer.stream --config=configs/tiny_driven.py --checkpoint=runs/tiny_driven/weights \\
            --image=face.png --audio=speech.wav --signals=head.npz --output=talk.mp4
        (--drive=actor.mp4 instead of --signals takes them from a video of a drawn face, and its sound without --audio)
        (the checkpoint folder holds dit.safetensors of this run and vae.safetensors of the tiny one)

No weights come with it. The mouth is left to the sound.
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
    slow = dataclasses.replace(optim, rate=0.002, vector_rate=1e-4, warmup=20, ema=0.98, steps=1000, log_every=10)
    return c.DistillConfig(
        student=slow,
        fake=dataclasses.replace(slow, rate=0.004, vector_rate=2e-4),
        rank=0,
        alpha=1.0,
        every=5,
        blocks=4,
        guidance=3.0,
        shift=3.0,
        anchored=0.3,
    )


def get_config() -> c.TrainingConfig:
    """The tiny run with signals."""
    cfg = tiny.get_config()
    train = dataclasses.replace(
        cfg.train,
        dit=dataclasses.replace(cfg.train.dit, rate=0.01, vector_rate=5e-4, steps=2000),
        dit_blocks=4,
        dit_drop_audio=0.1,
        dit_drop_signal=0.7,
        dit_whole=0.4,
        dit_beside=6,
        distill=_distill(cfg.train.dit),
    )
    return dataclasses.replace(
        cfg,
        name="tiny_driven",
        dit=dataclasses.replace(cfg.dit, signals=SIGNALS),
        stream=dataclasses.replace(cfg.stream, steps=4, history="timestep"),
        train=train,
    )
