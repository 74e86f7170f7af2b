"""A state of a few numbers and a step that any bit of data, key or order changes: what the host loop's tests train."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.check import validate
from avatar_jax.core.config import TrainingConfig
from configs.tiny import get_config
from train import loop

POISON, PEAK = 10_000, 20_000  # rows that make a loss infinite, and high


@flax.struct.dataclass
class Toy:
    step: jax.Array
    weights: Any


def start(width: int = 3) -> Toy:
    return Toy(jnp.zeros((), jnp.int32), {"w": jnp.ones(width)})


@jax.jit
def _step(state: Toy, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Toy, dict]:
    rows = batch["row"].astype(jnp.float32)
    w = 0.9 * state.weights["w"] + jnp.sin(rows.mean()) + jax.random.normal(key)
    bad = (rows == POISON).any()
    loss = jnp.where(bad, jnp.nan, jnp.where((rows == PEAK).any(), 1e6, 1.0 + jnp.square(jnp.sin(w)).mean()))
    return Toy(
        state.step + 1,
        {"w": jnp.where(bad, jnp.nan, w)},
    ), {"loss": loss}


step = jax.jit(_step, donate_argnums=0)


def rows(changed: dict[int, int] | None = None, count: int = 1000) -> grain.DatasetIterator:
    """Batches of two rows, each its own number but for those that are changed."""
    wrong = changed or {}
    dataset = grain.MapDataset.range(count).map(lambda row: {"row": np.int32(wrong.get(row, row))}).batch(2)
    return loop.batches(dataset, threads=1, prefetch=2)


def config() -> TrainingConfig:
    return validate(get_config())


def run(workdir: pathlib.Path, cfg: TrainingConfig | None = None, **rates: Any) -> loop.Run:
    cfg = cfg or config()
    quick = {"steps": 30, "log_every": 2, "save_every": 5} | rates
    return loop.Run(cfg, dataclasses.replace(cfg.train.dit, **quick), workdir)


class Cut(Exception):
    """What ends a step as a kill would, from the host's view."""


def cut(at: int, step_fn: Callable = step) -> Callable:
    """`step_fn`, ending the process at a step."""

    def walk(state: Toy, batch: Any, key: jax.Array):
        if int(state.step) == at:
            raise Cut
        return step_fn(state, batch, key)

    return walk
