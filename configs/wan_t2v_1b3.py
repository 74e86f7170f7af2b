"""Wan 2.1 text to video, 1.3B: a prompt to five seconds of 832 x 480 at 16 frames a second.

Weights:  python -m infer.convert --source=Wan2.1-T2V-1.3B --output=weights/wan_t2v_1b3
Run:      python -m infer.stream --config=configs/wan_t2v_1b3.py --checkpoint=weights/wan_t2v_1b3 \\
              --prompt="A cat on a boat" --output=cat.mp4
Devices:  one GPU or TPU; never run here at full size, where there is none.

Sampling as its publishers advise for this size: UniPC, 50 steps, shift 8, guidance 6.
"""

from avatar_jax.core import config as c
from avatar_jax.core import published


def get_config() -> c.ClipConfig:
    """The published text-to-video run."""
    return c.ClipConfig(
        name="wan_t2v_1b3",
        video=c.VideoConfig(height=480, width=832, fps=16),
        vae=published.WAN_VAE,
        dit=published.T2V_1B3,
        text=published.UMT5_XXL,
        sample=c.SampleConfig(solver="unipc", steps=50, shift=8.0, guidance=6.0, latents=21, seed=0),
    )
