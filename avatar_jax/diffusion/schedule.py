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


def published(steps: int, shift: float) -> np.ndarray:
    """The levels of the released Live Avatar sampler, float32 [steps + 1] (live_avatar.md section 5.2).

    Its library stores the ends of a table that is shifted already, spaces the levels evenly between them and shifts
    again; a final 0 is added.
    """
    ends = flow.shift(np.array([1.0, 1e-3]), shift)
    return np.append(flow.shift(np.linspace(*ends, steps), shift), 0.0).astype(np.float32)
