"""The numbered equations of rectified flow, and the few-step schedules."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.diffusion import flow, schedule


def test_equations_agree_with_each_other():
    x0, noise = jax.random.normal(jax.random.key(0), (2, 5, 3))
    x, v = flow.add_noise(x0, noise, 0.3), flow.velocity(x0, noise)
    np.testing.assert_allclose(flow.clean(x, v, 0.3), x0, atol=1e-6)
    np.testing.assert_allclose(flow.euler(x, v, 0.3, 0.0), x0, atol=1e-6)
    np.testing.assert_allclose(flow.euler(x, v, 0.3, 1.0), noise, atol=1e-6)


def test_exact_velocity_makes_every_step_count_exact():
    x0, noise = jax.random.normal(jax.random.key(1), (2, 5, 3))
    for steps in (1, 3, 8):
        levels, x = schedule.sigmas(steps, 3.0), noise
        for level, below in itertools.pairwise(levels):
            x = flow.euler(x, flow.velocity(x0, noise), level, below)
        np.testing.assert_allclose(x, x0, atol=1e-5)


def test_schedule_values():
    np.testing.assert_allclose(schedule.sigmas(4, 1.0), [1.0, 0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(schedule.sigmas(4, 3.0), [1.0, 0.9, 0.75, 0.5, 0.0], atol=1e-6)
    assert jnp.isclose(flow.shift(0.25, 5.0), 0.625)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match=r"config\.stream\.steps=0"):
        schedule.sigmas(0, 3.0)
