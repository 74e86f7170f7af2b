"""A whole clip from a prompt: a bidirectional model, many steps, classifier-free guidance (live_avatar.md section 5.4).

(1)  v = v_u + g (v_c - v_u)      v_c follows the prompt, v_u the negative one
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import ClipConfig, SampleConfig
from avatar_jax.diffusion import flow, schedule, solver
from avatar_jax.models import dit, vae
from avatar_jax.stream import clock, rollout

Step = Callable[..., tuple[solver.History, jax.Array]]


def _euler_step(history: solver.History, x: jax.Array, v: jax.Array, levels: np.ndarray, k: int):
    return history, flow.euler(x, v, levels[k], levels[k + 1])


SOLVERS: dict[str, tuple[Callable[[int, float], np.ndarray], Step]] = {
    "unipc": (schedule.unipc, solver.unipc_step),
    "dpm": (schedule.dpm, solver.dpm_step),
    "euler": (schedule.sigmas, _euler_step),
}


def seen_levels(levels: np.ndarray, cfg: SampleConfig) -> np.ndarray:
    """The levels that the network is told: the many-step samplers cut their timesteps to integers, float64 [steps]."""
    if cfg.solver == "euler":
        return levels[:-1].astype(np.float64)
    return schedule.timesteps(levels) / schedule.TRAINING_STEPS


def velocity(p: dict, x: jax.Array, level: jax.Array, prompts: tuple[Any, ...], *, cfg: ClipConfig) -> jax.Array:
    """Equation (1), one network call a prompt.

    Args:
      p: weights.
      x: noisy latents [B, F, h, w, C].
      level: their noise level, [].
      prompts: from `dit.remember`: the prompt, and the negative one unless g is 1.
      cfg: the run.
    """
    frames = x.shape[1]
    phase = clock.grid_phase(np.arange(frames), cfg)
    sigma = jnp.broadcast_to(level, (len(x), frames))
    asked, *negative = (dit.apply_joint(p, x, sigma, phase=phase, cross=cross, cfg=cfg.dit) for cross in prompts)
    return flow.guided(asked, negative[0], cfg.sample.guidance) if negative else asked


@functools.lru_cache(maxsize=2)
def make_velocity(cfg: ClipConfig):
    """`velocity` compiled for `cfg`: (weights, x, level, prompts) -> v."""
    return rollout.make_program(functools.partial(velocity, cfg=cfg), "teacher")


def sample(p: dict, prompts: tuple[Any, ...], noise: jax.Array, *, cfg: ClipConfig) -> Iterator[jax.Array]:
    """The sample after each step, the last one clean.

    Args:
      p: weights from `dit.lay_out`.
      prompts: as `velocity`.
      noise: [B, F, h, w, C].
      cfg: the run.
    """
    table, step = SOLVERS[cfg.sample.solver]
    levels, network = table(cfg.sample.steps, cfg.sample.shift), make_velocity(cfg)
    history, x = solver.History(), noise
    for k, level in enumerate(seen_levels(levels, cfg.sample)):
        history, x = step(history, x, network(p, x, np.float32(level), prompts), levels, k)
        yield x


@functools.lru_cache(maxsize=2)
def make_decode_first(cfg: ClipConfig):
    """The decoder of a clip's first latent compiled: (weights of the VAE, latent) -> (tail, frame)."""

    def first(p: dict, z: jax.Array):
        pixels, tail = vae.decode_first(p, z, cfg=cfg.vae)
        return tail, vae.to_uint8(pixels)

    return rollout.make_program(first, "decode")


def decode(p: dict, latents: jax.Array, *, cfg: ClipConfig) -> Iterator[np.ndarray]:
    """Frames of a clip [1, F, h, w, C] as they are decoded: uint8 [1, H, W, 3], then [4, H, W, 3] a latent."""
    later = rollout.make_decode(cfg)
    tail, frames = make_decode_first(cfg)(p, latents[:, :1])
    yield np.asarray(frames[0])
    for k in range(1, latents.shape[1]):
        tail, frames = later(p, tail, latents[:, k : k + 1])
        yield np.asarray(frames[0])
