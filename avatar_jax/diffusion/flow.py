"""Rectified flow, in the convention of Wan: sigma = 1 is noise, sigma = 0 is data, timestep t = 1000 sigma.

(1)  x_sigma = (1 - sigma) x0 + sigma e
(2)  v       = e - x0
(3)  x0      = x_sigma - sigma v
(4)  S_s(u)  = s u / (1 + (s - 1) u)          the time shift
(5)  x_next  = x + (sigma_next - sigma) v      one Euler step
(live_avatar.md section 5.1)
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def add_noise(x0: Array, noise: Array, sigma: Array) -> Array:
    """Equation (1). sigma broadcasts against x0."""
    return (1.0 - sigma) * x0 + sigma * noise


def velocity(x0: Array, noise: Array) -> Array:
    """Equation (2)."""
    return noise - x0


def clean(x: Array, v: Array, sigma: Array) -> Array:
    """Equation (3): the sample that velocity `v` points to from `x` at `sigma`."""
    return x - sigma * v


def shift(u: Array, s: float) -> Array:
    """Equation (4): moves uniform times u in [0, 1] towards noise for s > 1."""
    return s * u / (1.0 + (s - 1.0) * u)


def euler(x: Array, v: Array, sigma: Array, sigma_next: Array) -> Array:
    """Equation (5), in float32."""
    return x.astype(jnp.float32) + (sigma_next - sigma) * v.astype(jnp.float32)
