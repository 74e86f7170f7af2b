"""Wan 2.1 text to video at the size of the golden cases, for `--config`."""

import dataclasses

from avatar_jax.core import config as c
from configs import wan_t2v_1b3
from tests.published.mini_live_avatar import TEXT, VAE


def get_config() -> c.ClipConfig:
    """Nine frames of 64 x 96 pixels in six steps."""
    cfg = wan_t2v_1b3.get_config()
    sizes = {"width": 96, "heads": 4, "layers": 3, "ffn": 224, "text_width": 32, "text_tokens": 12}
    return dataclasses.replace(
        cfg,
        name="mini_t2v",
        video=dataclasses.replace(cfg.video, height=64, width=96),
        vae=VAE,
        dit=dataclasses.replace(cfg.dit, compute_dtype="float32", **sizes),
        text=TEXT,
        sample=dataclasses.replace(cfg.sample, steps=6, latents=3),
    )
