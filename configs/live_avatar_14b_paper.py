"""Live Avatar, 14B, as the paper describes its stream where the released code does otherwise.

Run:      as configs/live_avatar_14b.py, with --config=configs/live_avatar_14b_paper.py and the same weights
Devices:  as there; on four stages --config.stream.adapt_blocks=4, since the last one knows the first latent.
          Never run here at full size, where there is no such device.

Paper (live_avatar.md section 9, numbers 18 to 20): the reference becomes the stream's first latent right after the
first block, stands slightly ahead of the block at hand instead of 4 to 30 latents by chance, and no past motion is
told. Noise levels stay the released ones, which the released weights were run with.
"""

import dataclasses

from avatar_jax.core import config as c
from configs import live_avatar_14b


def get_config() -> c.Config:
    """The stream of the paper."""
    cfg = live_avatar_14b.get_config()
    stream = dataclasses.replace(cfg.stream, reference_ahead=(3, 3), reference_from=0, adapt_blocks=1, motion=False)
    return dataclasses.replace(cfg, name="live_avatar_14b_paper", stream=stream)
