"""Noise levels: few-step samplers, many-step samplers, and the tables that training draws from."""

import numpy as np

from avatar_jax.diffusion import flow

TRAINING_STEPS = 1000  # entries of a training table; timesteps count in thousandths of sigma


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
    first, last = flow.shift(1.0, shift), flow.shift(1.0 / TRAINING_STEPS, shift)
    return np.append(flow.shift(np.linspace(first, last, steps), shift), 0.0).astype(np.float32)


def unipc(steps: int, shift: float) -> np.ndarray:
    """Levels of Wan's UniPC sampler, float64 [steps + 1]: its table starts one training step below pure noise."""
    return np.append(flow.shift(np.linspace(1.0 - 1.0 / TRAINING_STEPS, 0.0, steps + 1)[:-1], shift), 0.0)


def dpm(steps: int, shift: float) -> np.ndarray:
    """Levels of Wan's DPM++ sampler, float64 [steps + 1], from pure noise."""
    return flow.shift(np.linspace(1.0, 0.0, steps + 1), shift)


def timesteps(levels: np.ndarray) -> np.ndarray:
    """The timesteps that the many-step samplers hand to the network: cut to integers, int64 [steps]."""
    return (levels[:-1] * TRAINING_STEPS).astype(np.int64)


def training(shift: float) -> np.ndarray:
    """The table that training draws levels from, from 1 downwards, float32 [1000] (section 5.3)."""
    return flow.shift(np.linspace(1.0, 0.0, TRAINING_STEPS + 1)[:-1], shift).astype(np.float32)


def training_weights(levels: np.ndarray) -> np.ndarray:
    """Loss weight of each training level: a bell over the timestep, its minimum taken off, mean 1 (section 5.3)."""
    centred = levels - 0.5
    bell = np.exp(-2.0 * np.square(centred, dtype=np.float64))
    raised = bell - bell.min()
    return (raised / raised.mean()).astype(np.float32)


def nearest(t: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Index of the table entry nearest to each timestep 0..1000, the first of equals. t: [...]."""
    distance = np.abs(levels * np.float32(TRAINING_STEPS) - np.asarray(t, np.float32)[..., None])
    return distance.argmin(-1)


def warped(steps: list[int], shift: float) -> np.ndarray:
    """Few-step timesteps looked up in the training table, float32 (section 5.3): [1000, 750] with shift 5 is
    [1000, 937.5]."""
    table = np.append(training(shift), np.float32(0.0)) * np.float32(TRAINING_STEPS)
    return table[TRAINING_STEPS - np.asarray(steps)]
