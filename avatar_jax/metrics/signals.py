"""The driving signals of a video of a drawn face, read from its pixels."""

import numpy as np

from avatar_jax.data.controls import SIGNALS
from avatar_jax.metrics import reader


def read_frames(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Signals by name, float32 [T, width], as `data.controls.signals` gives the truth of them.

    A proxy trained on this project's drawn world only; configs/reader.py says how well it agrees with the truth. Where
    a number cannot be seen (the gaze behind shut lids, brows on a face without) it is near its mean: a row is never
    NaN, since that would take the numbers beside it from whoever it drives.

    Args:
      frames: uint8 RGB [T, H, W, 3] of any size.
    """
    frames = reader.fit(frames)
    seen = {}
    for tower, names in (("pose", reader.POSE), ("mouth", reader.MOUTH)):
        seen |= dict(zip(names, reader.read(frames, tower).T, strict=True))
    return {signal: np.stack([seen[name] for name in names], -1) for signal, names in SIGNALS.items()}
