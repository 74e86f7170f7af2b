"""The host loop every training main shares: resume, step, log, save."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import matplotlib
import orbax.checkpoint as ocp
import tqdm
from absl import logging
from tensorboardX import SummaryWriter

from avatar_jax.core import config as configs
from avatar_jax.core import fields
from train.optim import TrainState

matplotlib.use("Agg")
from matplotlib import pyplot

Batch = Any
StepFn = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


class Journal:
    """Scalars of a run: JSON lines (the record) and TensorBoard, under `workdir`."""

    def __init__(self, workdir: pathlib.Path):
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / "metrics.jsonl"
        self._board = SummaryWriter(str(workdir / "tensorboard"))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one line and the same points to TensorBoard."""
        with self.path.open("a") as lines:
            lines.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def plot(self, name: str = "loss") -> None:
        """Redraws `<name>.png` from the record."""
        rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        points = [(row["step"], row[name]) for row in rows if name in row]
        if not points:
            return
        figure, axes = pyplot.subplots(figsize=(6, 3.5))
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set(xlabel="step", ylabel=name, yscale="log")
        axes.grid(alpha=0.3)
        figure.savefig(self.path.parent / f"{name}.png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)


def manager(workdir: pathlib.Path, save_every: int) -> ocp.CheckpointManager:
    """Orbax checkpoints at `workdir/checkpoints/<step>`, the last two kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=save_every)
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def _restore(checkpoints: ocp.CheckpointManager, state: TrainState, data: grain.DatasetIterator) -> TrainState:
    latest = checkpoints.latest_step()
    if latest is None:
        return state
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    items = checkpoints.restore(
        latest, args=ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
    )
    data.set_state(items["data"])
    logging.info("resumed at step %d", latest)
    return items["state"]


@dataclasses.dataclass
class Run:
    """A training run in a folder: its configuration, journal and checkpoints."""

    cfg: configs.TrainingConfig
    optim: configs.OptimConfig
    workdir: pathlib.Path

    def fit(self, state: TrainState, data: grain.DatasetIterator, step_fn: StepFn, *, stride: int = 1) -> TrainState:
        """Trains to `optim.steps` or for `optim.minutes`, resuming from the last checkpoint; saves at the end.

        Args:
          state: where to start without a checkpoint.
          data: batches, with a place that can be saved.
          step_fn: takes one batch.
          stride: optimiser steps that one call of `step_fn` makes.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        (self.workdir / "config.json").write_text(fields.to_json(self.cfg))
        journal, checkpoints = Journal(self.workdir), manager(self.workdir, self.optim.save_every)
        state = _restore(checkpoints, state, data)
        key, start = jax.random.key(self.cfg.data.seed), time.monotonic()
        first = int(state.step)
        bar = tqdm.tqdm(total=self.optim.steps, initial=first, unit="step", mininterval=5, dynamic_ncols=True)
        for done in range(first + stride, self.optim.steps + stride, stride):
            state, scalars = step_fn(state, next(data), jax.random.fold_in(key, done))
            bar.update(stride)
            if done % self.optim.log_every < stride:
                rate = (done - first) / (time.monotonic() - start)
                values = {name: float(value) for name, value in scalars.items()} | {"steps_per_second": rate}
                journal.write(done, values)
                bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
            late = self.optim.minutes > 0 and time.monotonic() - start > 60 * self.optim.minutes
            if late or done >= self.optim.steps or done % self.optim.save_every < stride:
                items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data.get_state()))
                checkpoints.save(done, args=items, force=True)
                journal.plot()
            if late:
                break
        checkpoints.wait_until_finished()
        bar.close()
        return state


def batches(dataset: grain.MapDataset, *, threads: int, prefetch: int) -> grain.DatasetIterator:
    """An iterator with a saved place over a batched dataset, rendered ahead in threads."""
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
