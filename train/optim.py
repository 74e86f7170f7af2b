"""The optimiser and the state of a training run."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from avatar_jax.core.config import OptimConfig

Weights = Any
SMALLEST_MATRIX = 12  # rows and columns below which a table is a list of vectors


@flax.struct.dataclass
class TrainState:
    """Everything a run needs to go on: `step` int32 [], weights, their moving average and the optimiser's state."""

    step: jax.Array
    weights: Weights
    average: Weights
    optimiser: optax.OptState


def schedule(rate: float, cfg: OptimConfig) -> optax.Schedule:
    """Linear warm-up, then cosine decay to a fiftieth of the rate at `cfg.steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, cfg.warmup, cfg.steps, rate / 50)


def _matrix(weight: jax.Array) -> contrib.MuonDimensionNumbers | None:
    """How Muon sees a weight: [in, out], a stack [layers, in, out], or a convolution [t, h, w, in, out]."""
    if weight.ndim < 2 or min(weight.shape[-2:]) < SMALLEST_MATRIX:
        return None
    inputs = tuple(range(weight.ndim - 1)) if weight.ndim == 5 else (weight.ndim - 2,)
    return contrib.MuonDimensionNumbers(inputs, weight.ndim - 1)


def make_optimiser(cfg: OptimConfig) -> optax.GradientTransformation:
    """Muon with AdamW for what is no matrix, gradients clipped; a step with a non-finite gradient is skipped.

    On the tiny VAE Muon reaches in 240 steps the error that AdamW needs more than twice as many for.
    """
    muon = contrib.muon(
        schedule(cfg.rate, cfg),
        adam_learning_rate=schedule(cfg.vector_rate, cfg),
        adam_b2=cfg.beta2,
        weight_decay=cfg.decay,
        adam_weight_decay=0.0,
        muon_weight_dimension_numbers=lambda weights: jax.tree.map(_matrix, weights),
    )
    return optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(cfg.clip), muon), max_consecutive_errors=10)


def empty(weights: Weights, cfg: OptimConfig) -> TrainState:
    """A fresh state; the average starts as a copy, so both may be donated."""
    copy = jax.tree.map(jnp.copy, weights)
    return TrainState(jnp.zeros((), jnp.int32), weights, copy, make_optimiser(cfg).init(weights))


def gradient(
    loss: Callable[..., tuple[jax.Array, dict]], weights: Weights, batch: Any, key: jax.Array, *, pieces: int
) -> tuple[Weights, dict]:
    """Gradient and scalars of `loss(weights, batch, key)`, the means over so many pieces of the batch.

    The pieces go one after the other and need the memory of one. Piece i has the rows i, i + pieces, ..., so that of a
    batch that is spread over devices every device has some; and a key of its own. For a loss that is a mean over rows
    and draws nothing this is the whole batch's gradient.
    """
    once = jax.grad(loss, has_aux=True)
    if pieces == 1:
        return once(weights, batch, key)
    split = jax.tree.map(lambda rows: rows.reshape(-1, pieces, *rows.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, pieces)
    shapes = jax.eval_shape(once, weights, *jax.tree.map(lambda rows: rows[0], (split, keys)))

    def add(total: Any, piece: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, once(weights, *piece)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (split, keys))
    return jax.tree.map(lambda leaf: leaf / pieces, total)


def step(state: TrainState, gradient: Weights, *, cfg: OptimConfig) -> TrainState:
    """One optimiser step and one step of the moving average, whose decay ramps up over the first steps."""
    updates, optimiser = make_optimiser(cfg).update(gradient, state.optimiser, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    decay = jnp.minimum(cfg.ema, (1.0 + state.step) / (10.0 + state.step))
    average = jax.tree.map(lambda a, w: a * decay + w * (1.0 - decay), state.average, weights)
    return TrainState(state.step + 1, weights, average, optimiser)
