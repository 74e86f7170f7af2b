"""The tiny avatar's geometry with the knot engine: blocks of 3 latents and a knot of 1 over a window of 6, four steps.

Run:  python -m infer.stream --config=configs/tiny_knot.py --checkpoint=FOLDER --output=talk.mp4
Weights:  none are embedded; the transformer reads 20 condition channels beside the noise, so it is one of its own.

A block waits for four more video frames of sound than it shows, 0.16 s (knot_forcing.md section 1.4).
"""

import dataclasses

from avatar_jax.core import config as c
from configs import tiny


def get_config() -> c.TrainingConfig:
    """`tiny` with a knot."""
    cfg = tiny.get_config()
    stream = dataclasses.replace(
        cfg.stream,
        engine="knot",
        steps=4,
        shift=5.0,
        history="clean",
        knot=c.KnotConfig(latents=1, window=6, reference_start=8, reference_jump=4),
    )
    return dataclasses.replace(
        cfg, name="tiny_knot", dit=dataclasses.replace(cfg.dit, condition_channels=20), stream=stream
    )
