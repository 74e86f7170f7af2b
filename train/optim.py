"""The optimiser and the state of a training run."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from avatar_jax.core.config import OptimConfig

Weights = Any


@flax.struct.dataclass
class TrainState:
    """Everything a run needs to go on: `step` int32 [], weights, their moving average and the optimiser's state."""

    step: jax.Array
    weights: Weights
    average: Weights
    optimiser: optax.OptState


def schedule(cfg: OptimConfig) -> optax.Schedule:
    """Linear warm-up, then cosine decay to a fiftieth of the rate at `cfg.steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, cfg.rate, cfg.warmup, cfg.steps, cfg.rate / 50)


def _matrices(weights: Weights) -> Weights:
    return jax.tree.map(lambda w: w.ndim > 1, weights)


def make_optimiser(cfg: OptimConfig) -> optax.GradientTransformation:
    """AdamW with gradient clipping; decay on matrices only; a step with a non-finite gradient is skipped."""
    adam = optax.adamw(schedule(cfg), b1=0.9, b2=cfg.beta2, weight_decay=cfg.decay, mask=_matrices)
    return optax.apply_if_finite(
        optax.chain(optax.clip_by_global_norm(cfg.clip), adam), max_consecutive_errors=10
    )


def empty(weights: Weights, cfg: OptimConfig) -> TrainState:
    """A fresh state; the average starts as a copy, so both may be donated."""
    copy = jax.tree.map(jnp.copy, weights)
    return TrainState(jnp.zeros((), jnp.int32), weights, copy, make_optimiser(cfg).init(weights))


def step(state: TrainState, gradient: Weights, *, cfg: OptimConfig) -> TrainState:
    """One optimiser step and one step of the moving average, whose decay ramps up over the first steps."""
    updates, optimiser = make_optimiser(cfg).update(gradient, state.optimiser, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    decay = jnp.minimum(cfg.ema, (1.0 + state.step) / (10.0 + state.step))
    average = jax.tree.map(lambda a, w: a * decay + w * (1.0 - decay), state.average, weights)
    return TrainState(state.step + 1, weights, average, optimiser)
