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


def get_config() -> c.TrainingConfig:
    """The tiny run with signals."""
    cfg = tiny.get_config()
    return dataclasses.replace(
        cfg,
        name="tiny_driven",
        dit=dataclasses.replace(cfg.dit, signals=SIGNALS),
        train=dataclasses.replace(cfg.train, dit_drop_audio=0.1, dit_drop_signal=0.4),
    )
