"""Many-step samplers of the bidirectional models: UniPC and DPM-Solver++, both of order 2 on x0 predictions.

With lambda = log((1 - sigma) / sigma) and h = lambda_t - lambda_s, both step from sigma_s to sigma_t by

(1)  x_t = (sigma_t / sigma_s) x - (1 - sigma_t) (e^-h - 1) (m + D)

where m predicts x0 at s and D corrects it with earlier predictions. The coefficients depend on the levels alone and
are float64 on the host.
"""

import flax.struct
import jax
import numpy as np

from avatar_jax.diffusion import flow


@flax.struct.dataclass
class History:
    """What a multistep solver remembers."""

    x: jax.Array | None = None  # sample at the last level
    x0: tuple[jax.Array, ...] = ()  # predictions, newest first
    order: int = flax.struct.field(pytree_node=False, default=0)  # of the last step


def _lambda(sigma: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(1.0 - sigma) - np.log(sigma))


def _base(x: jax.Array, m: jax.Array, sigma_s: float, sigma_t: float) -> tuple[jax.Array, float]:
    """Equation (1) without D, and D's factor."""
    factor = (1.0 - sigma_t) * np.expm1(_lambda(sigma_s) - _lambda(sigma_t))
    return sigma_t / sigma_s * x - factor * m, factor


def _slope(new: jax.Array, old: jax.Array, levels: tuple[float, float, float]) -> jax.Array:
    """Difference of two predictions over the ratio of their steps in lambda: older, newer, target level."""
    older, newer, target = map(_lambda, levels)
    return (new - old) * ((target - newer) / (newer - older))


def dpm_step(history: History, x: jax.Array, v: jax.Array, levels: np.ndarray, k: int) -> tuple[History, jax.Array]:
    """Step k of DPM-Solver++ 2M (midpoint), first order at both ends.

    Args:
      history: what the steps before left, `History()` at the start.
      x: the sample at levels[k].
      v: its velocity.
      levels: from `schedule.dpm`.
      k: the step.
    """
    m = flow.clean(x, v, levels[k])
    after, factor = _base(x, m, levels[k], levels[k + 1])
    if 0 < k < len(levels) - 2:
        after -= 0.5 * factor * _slope(m, history.x0[0], (levels[k - 1], levels[k], levels[k + 1]))
    return History(x0=(m,)), after


def _phi(h: float) -> tuple[float, float]:
    """The two right-hand sides of UniPC's order conditions, over B(h) = e^-h - 1."""
    first = np.expm1(-h) / -h - 1.0
    second = first / -h - 0.5
    return first / np.expm1(-h), 2.0 * second / np.expm1(-h)


def _correct(history: History, m: jax.Array, levels: np.ndarray, k: int) -> jax.Array:
    """UniC: the sample at levels[k] again, now that its own prediction m is known."""
    assert history.x is not None
    before, sigma_s, sigma_t = history.x0[0], levels[k - 1], levels[k]
    after, factor = _base(history.x, before, sigma_s, sigma_t)
    if history.order == 1:
        return after - 0.5 * factor * (m - before)
    older = (_lambda(levels[k - 2]) - _lambda(sigma_s)) / (_lambda(sigma_t) - _lambda(sigma_s))
    weights = np.linalg.solve(np.array([[1.0, 1.0], [older, 1.0]]), _phi(_lambda(sigma_t) - _lambda(sigma_s)))
    return after - factor * (weights[0] * (history.x0[1] - before) / older + weights[1] * (m - before))


def unipc_step(history: History, x: jax.Array, v: jax.Array, levels: np.ndarray, k: int) -> tuple[History, jax.Array]:
    """Step k of UniPC (B2), as `dpm_step`: corrects the sample that v was predicted from, then predicts the next."""
    m = flow.clean(x, v, levels[k])
    x = _correct(history, m, levels, k) if k else x
    order = min(2, len(levels) - 1 - k, history.order + 1)
    after, factor = _base(x, m, levels[k], levels[k + 1])
    if order == 2:
        after -= 0.5 * factor * _slope(m, history.x0[0], (levels[k - 1], levels[k], levels[k + 1]))
    return History(x=x, x0=(m, *history.x0[:1]), order=order), after
