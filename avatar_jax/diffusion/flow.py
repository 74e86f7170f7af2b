"""Rectified flow, in the convention of Wan: sigma = 1 is noise, sigma = 0 is data, timestep t = 1000 sigma.

(1)  x_sigma = (1 - sigma) x0 + sigma e
(2)  v       = e - x0
(3)  x0      = x_sigma - sigma v
(4)  S_s(u)  = s u / (1 + (s - 1) u)          the time shift
(5)  x_next  = x + (sigma_next - sigma) v      one Euler step
(6)  y       = u + g (c - u)                   classifier-free guidance, of velocities or of predictions
(live_avatar.md section 5.1)
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
Like = jax.typing.ArrayLike


def add_noise(x0: Array, noise: Array, sigma: Like) -> Array:
    """Equation (1). sigma broadcasts against x0."""
    return x0 + sigma * (noise - x0)


def velocity(x0: Array, noise: Array) -> Array:
    """Equation (2)."""
    return noise - x0


def clean(x: Array, v: Array, sigma: Like) -> Array:
    """Equation (3): the sample that velocity `v` points to from `x` at `sigma`."""
    return x - sigma * v


def velocity_to(x: Array, x0: Array, sigma: Like) -> Array:
    """Equation (3) solved for the velocity: the one that points from `x` at `sigma` to `x0`."""
    return (x - x0) / sigma


def shift(u: Any, s: float) -> Any:
    """Equation (4): moves uniform times u in [0, 1], of any array type, towards noise for s > 1."""
    return s * u / (1.0 + (s - 1.0) * u)


def euler(x: Array, v: Array, sigma: Like, sigma_next: Like) -> Array:
    """Equation (5), in float32."""
    return x.astype(jnp.float32) + jnp.subtract(sigma_next, sigma) * v.astype(jnp.float32)


def guided(conditional: Array, unconditional: Array, scale: Like) -> Array:
    """Equation (6)."""
    return unconditional + scale * (conditional - unconditional)
