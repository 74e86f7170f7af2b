"""Few-step noise levels."""

import numpy as np

from avatar_jax.diffusion import flow


def sigmas(steps: int, shift: float) -> np.ndarray:
    """Shifted uniform levels from 1 to 0, float32 [steps + 1] (flow equation 4).

    Raises:
      ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"config.stream.steps={steps}: must be at least 1")
    return np.asarray(flow.shift(np.linspace(1.0, 0.0, steps + 1), shift), np.float32)
