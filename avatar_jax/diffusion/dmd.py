"""Distribution matching: a few-step generator pulled to a teacher's distribution (live_avatar.md section 7.3).

X is the generated sample, X_t the same noised to level sigma_t, r and f the real and the fake score network's
prediction of x0 from X_t, the real one guided (`flow.guided`; Self-Forcing writes r_c + w (r_c - r_u), g = w + 1).

(1)  G      = (f - r) / mean |X - r|                     the mean over each sample
(2)  L      = 1/2 mean (X - stop(X - G))^2               so that dL/dX = G / size
(3)  L_fake = mean (v - (e - X))^2                       flow matching of the fake network on generated samples
"""

import jax
import jax.numpy as jnp

from avatar_jax.diffusion import flow


def direction(x: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Equation (1). All [B, F, h, w, C]; a sample that equals its real prediction gives zeros."""
    size = jnp.abs(x - real).mean((1, 2, 3, 4), keepdims=True)
    return jnp.nan_to_num((fake - real) / size)


def generator_loss(x: jax.Array, gradient: jax.Array, selected: jax.Array | None = None) -> jax.Array:
    """Equation (2), over the elements where `selected` (bool, broadcast to x) is true; None for all of them."""
    squared = jnp.square(x - jax.lax.stop_gradient(x - gradient))
    return 0.5 * (squared.mean() if selected is None else squared.mean(where=selected))


def fake_loss(v: jax.Array, x: jax.Array, noise: jax.Array) -> jax.Array:
    """Equation (3). x: the generated sample, without gradient."""
    return jnp.square(v - flow.velocity(x, noise)).mean()
