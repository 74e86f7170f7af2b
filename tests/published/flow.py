"""Schedules, conversions and samplers, on an analytic velocity field: there are no weights."""

import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from avatar_jax.diffusion import flow, schedule, solver
from tests.published.case import Case, Outputs


def field(x: Any, t: Any) -> np.ndarray:
    """The case's toy velocity at timestep t."""
    s, x = np.float32(t) / np.float32(1000.0), np.asarray(x)
    return (0.7 * x + np.sin(1.3 * x + 2.0 * s) - 0.4 * s * np.square(x) / (1.0 + np.square(x))).astype(np.float32)


def _euler(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    path = [x]
    for level, below in itertools.pairwise(levels):
        v = jnp.asarray(field(path[-1], level * np.float32(1000.0)))
        path.append(np.asarray(flow.euler(jnp.asarray(path[-1]), v, level, below)))
    return np.stack(path)


def _multistep(x: np.ndarray, levels: np.ndarray, step: Callable) -> np.ndarray:
    path, history = [x], solver.History()
    for k, t in enumerate(schedule.timesteps(levels)):
        history, x = step(history, jnp.asarray(x), field(x, t), levels, k)
        path.append(np.asarray(x))
    return np.stack(path)


def _training(prefix: str, shift: float, io: dict, steps: list[int]) -> Outputs:
    levels = schedule.training(shift)
    weights = schedule.training_weights(levels)
    outputs: Outputs = {f"{prefix}.sigmas": levels, f"{prefix}.timesteps": levels * np.float32(1000.0)}
    outputs[f"{prefix}.weights"] = weights
    if f"{prefix}.warped_list" not in io:
        return outputs
    x0, noise, v = (io[name] for name in ("x0", "noise", "flow"))
    at = schedule.nearest(io["t"], levels)
    sigma = levels[at][:, None, None, None]
    noisy = flow.add_noise(jnp.asarray(x0), jnp.asarray(noise), sigma)
    below = np.append(levels, 0.0).astype(np.float32)[at + 1][:, None, None, None]
    below = np.where((at == len(levels) - 1).any(), 0.0, below)  # as published: one last entry ends the batch
    outputs |= {
        "warped_list": schedule.warped(steps, shift),
        "warped_list_with0": schedule.warped([*steps, 0], shift),
        "nearest_id": at,
        "add_noise": noisy,
        "training_weight": weights[at],
        "training_target": flow.velocity(jnp.asarray(x0), jnp.asarray(noise)),
        "x0_from_flow": flow.clean(noisy, jnp.asarray(v), sigma),
        "flow_from_x0": flow.velocity_to(noisy, flow.clean(noisy, jnp.asarray(v), sigma), sigma),
        "step": flow.euler(noisy, jnp.asarray(v), sigma, below),
    }
    return {name if name.startswith(prefix) else f"{prefix}.{name}": value for name, value in outputs.items()}


def schedules(case: Case) -> dict[str, float]:
    """Every table and every trajectory of the case."""
    io, params = dict(case.tensors()), case.about["params"]
    if case.nudge in io:
        io[case.nudge] = io[case.nudge] + 0.01
    outputs: Outputs = {}
    for steps in params["la_steps"]:
        levels = schedule.published(steps, params["la_shift"])
        outputs |= {f"la_euler{steps}.sigmas": levels, f"la_euler{steps}.timesteps": levels[:-1] * np.float32(1000.0)}
        outputs[f"la_euler{steps}.traj"] = _euler(io["x_T"], levels)
    for shift in params["sf_shifts"]:
        outputs |= _training(f"sf_shift{int(shift)}", shift, io, params["lst"])
    outputs |= _training("la_train_shift5", 5.0, io, params["lst"])
    for steps, shift in params["uni"]:
        for name, levels in (("unipc", schedule.unipc(steps, shift)), ("dpmpp", schedule.dpm(steps, shift))):
            outputs[f"{name}_{steps}_shift{int(shift)}.sigmas"] = levels
            outputs[f"{name}_{steps}_shift{int(shift)}.timesteps"] = schedule.timesteps(levels)
    for name, make, step in (("unipc", schedule.unipc, solver.unipc_step), ("dpmpp", schedule.dpm, solver.dpm_step)):
        levels = make(*params["traj"])
        outputs[f"{name}_traj.x"] = _multistep(io["x_T"], levels, step)
        outputs |= {f"{name}_traj.timesteps": schedule.timesteps(levels), f"{name}_traj.sigmas": levels}
    return case.worst(outputs)
