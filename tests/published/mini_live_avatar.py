"""Live Avatar at the size of the golden cases, for `--config`: the released run with small networks."""

import dataclasses

from avatar_jax.core import config as c
from avatar_jax.core import published
from configs import live_avatar_14b

TEXT = dataclasses.replace(
    published.UMT5_XXL, vocabulary=60, width=32, attention_width=32, heads=4, layers=2, ffn=48, buckets=32
)
VAE = dataclasses.replace(published.WAN_VAE, width=8)


def get_config() -> c.Config:
    """Pictures of up to 128 x 64 pixels."""
    cfg = live_avatar_14b.get_config()
    sizes = {"width": 96, "heads": 4, "layers": 4, "ffn": 192, "text_width": 32, "text_tokens": 12}
    sizes |= {"audio_width": 24, "audio_inject": (0, 2), "compute_dtype": "float32"}
    convolutions = tuple((16, kernel, stride) for _, kernel, stride in published.WAV2VEC2_XLSR.convolutions)
    small = {"convolutions": convolutions, "width": 24, "heads": 2, "ffn": 40, "position_kernel": 16}
    return dataclasses.replace(
        cfg,
        name="mini_live_avatar",
        video=dataclasses.replace(cfg.video, height=64, width=64, area=128 * 64),
        vae=VAE,
        dit=dataclasses.replace(cfg.dit, **sizes),
        sound=dataclasses.replace(published.WAV2VEC2_XLSR, position_groups=4, **small),
        text=TEXT,
    )
