"""The host loop every training main shares: resume, step, log, save; go back from a loss that left its course.

A run is a folder. Whatever ended it, the same command goes on from its last checkpoint, to the same bits.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import grain
import jax
from absl import logging
from jax.sharding import Mesh

from avatar_jax.core import config as configs
from avatar_jax.core import fields
from avatar_jax.io.errors import InputError
from infer import door
from train import mesh as meshes
from train import saves
from train.guard import PATIENCE, Guard, Stop, agreed
from train.journal import UNKNOWN, Cost, Journal, Look, Meter, Silence, writing

# What may change between one start of a run and the next: how long, how watched, and on what it runs.
FREE = re.compile(
    r"config\.(train(\.\w+)+\.(steps|minutes|log_every|save_every|spike|patience)|train\.mesh\..*|data\.workers|mesh\..*"
    r"|dit\.(attention|remat))"
)


class Stepped(Protocol):
    """A state of training: any tree of arrays that counts its optimiser steps."""

    @property
    def step(self) -> jax.Array:
        """int32 []."""
        ...


class Watching(Protocol):
    """Looks at what a state draws; `train.watch.Watch` is one."""

    def look(self, state: Any, step: int) -> Look:
        """What it draws, every process taking part."""
        ...

    def over(self, step: int) -> bool:
        """Whether it has not become better for too long."""
        ...


State = TypeVar("State", bound=Stepped)
StepFn = Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]


def claim(workdir: pathlib.Path, cfg: configs.TrainingConfig, *, begun: bool) -> None:
    """Writes `config.json`; of a run that has `begun`, only after it has found the configuration unchanged.

    Raises:
      ValueError: fields differ that decide what is learned.
    """
    record = workdir / "config.json"
    if begun and record.exists():
        changed = fields.changed(json.loads(record.read_text()), cfg)
        kept = [f"{name} (was {old!r})" for name, old in changed.items() if not FREE.fullmatch(name)]
        if kept:
            advice = "set them back, or begin another run with another --workdir"
            raise ValueError(f"{workdir}: is a run of another configuration: {', '.join(kept)} differ; {advice}")
    if jax.process_index() == 0:
        with writing(record):
            record.with_suffix(".part").write_text(fields.to_json(cfg))
            os.replace(record.with_suffix(".part"), record)


@dataclasses.dataclass
class Run:
    """A training run in a folder: its configuration, journal and checkpoints.

    On a mesh the batches are spread over it, and the state is where the main has put it.
    """

    cfg: configs.TrainingConfig
    optim: configs.OptimConfig
    workdir: pathlib.Path
    mesh: Mesh | None = None
    cost: Cost = UNKNOWN
    watch: Watching | None = None

    def fit(self, state: State, data: grain.DatasetIterator, step_fn: StepFn[State], *, stride: int = 1) -> State:
        """Trains to `optim.steps`, for `optim.minutes`, or until `watch` has seen enough; saves at the end.

        It goes on from the last checkpoint.

        SIGTERM saves and ends the program with code 0.

        Args:
          state: where to start without a checkpoint; any tree with an int32 `step`.
          data: batches, with a place that can be saved.
          step_fn: takes one batch; of its scalars, those named "loss..." must stay finite.
          stride: optimiser steps that one call of `step_fn` makes.

        Raises:
          ValueError: a run of another configuration or network is in the folder, or the loss does not recover.
          InputError: the folder cannot be written.
        """
        fit = _Fit(self, state, data, step_fn, stride)
        try:
            with Stop() as stop:
                return fit.run(stop)
        finally:
            fit.close()


class _Fit:
    """One start of a run: what moves while it trains."""

    def __init__(self, run: Run, state: Any, data: grain.DatasetIterator, step_fn: StepFn, stride: int):
        self.about, self.state, self.data, self.step_fn, self.stride = run, state, data, step_fn, stride
        with writing(run.workdir):
            run.workdir.mkdir(parents=True, exist_ok=True)
        self.saves = saves.Saves(run.workdir / "checkpoints")
        self.good, self.returns = self.saves.latest(), 0  # the newest checkpoint, and how often it was gone back to
        claim(run.workdir, run.cfg, begun=self.good is not None)
        self.guard, self.target = Guard(run.optim.spike), saves.abstract(state)
        if self.good is not None:
            place = self.restore(self.good)
            self.data.set_state(place["data"])
            logging.info("resumed at step %d", self.good)
        self.done = int(self.state.step)
        first = jax.process_index() == 0
        self.journal = Journal(run.workdir, step=self.done, steps=run.optim.steps) if first else Silence()
        self.meter = Meter(run.cost, run.mesh.size if run.mesh else 1)
        self.key, self.waiting = jax.random.key(run.cfg.data.seed), {}  # the scalars of a step not judged yet

    def restore(self, step: int) -> dict[str, Any]:
        """The state of a checkpoint; what else it keeps."""
        self.state, place = self.saves.restore(step, self.target)
        self.guard.go_back(place.get("guard", Guard(0.0).place()))
        return place

    def save(self) -> None:
        """A checkpoint of this step."""
        with self.meter.timed("save"):
            place = {"data": self.data.get_state(), "guard": self.guard.place()}
            self.saves.save(self.done, self.state, place)
            self.journal.plot()
        self.good, self.returns = self.done, 0
        if self.about.watch:
            with self.meter.timed("look"), writing(self.about.workdir):
                self.journal.show(self.done, self.about.watch.look(self.state, self.done))

    def over(self) -> bool:
        """Whether what it draws has not become better for too long."""
        return self.about.watch is not None and agreed(self.about.watch.over(self.done))

    def step(self) -> dict[str, jax.Array]:
        """One call of the step function; its scalars. Every batch has a key of its own, those left out too."""
        with self.meter.timed("data"):
            batch = meshes.spread(next(self.data), self.about.mesh)
        self.done += self.stride
        key = jax.random.fold_in(self.key, self.done + self.guard.skipped)
        self.state, scalars = self.step_fn(self.state, batch, key)
        self.meter.count()
        return scalars

    def judge(self, scalars: dict[str, jax.Array], *, at_once: bool) -> str:
        """What is wrong, or ''. Of the step before this one, which runs meanwhile; `at_once`, of this one too."""
        wrong, self.waiting = self.guard.judge(self.waiting), scalars
        if at_once and not wrong:
            wrong, self.waiting = self.guard.judge(scalars), {}
        return wrong

    def go_back(self, wrong: str) -> None:
        """To the last checkpoint, the batches since then left out. Raises ValueError if that has not helped."""
        good, bad = self.good or 0, self.done
        if self.returns == PATIENCE:
            advice = f"lower the rates of config.train, or look at the data; checkpoint {good} is whole"
            raise ValueError(f"step {bad}: {wrong}, after {PATIENCE} returns to step {good}; {advice}")
        skipped = self.guard.skipped + bad - good
        self.saves.finish()
        self.restore(good)
        self.guard.skipped, self.done, self.waiting = skipped, good, {}
        self.returns += 1
        logging.warning("step %d: %s; back to step %d, the batches since then left out", bad, wrong, good)
        self.journal.write(good, {"left_out": bad - good})
        self.journal.bar.update(good - bad)

    def due(self, every: int) -> bool:
        """Whether something that is done so often is to be done now."""
        return self.done % every < self.stride

    def run(self, stop: Stop) -> Any:
        """Trains to the end."""
        optim, start = self.about.optim, time.monotonic()
        if self.good is None:
            self.save()  # where to go back to
        while self.done < optim.steps and not self.over():
            scalars = self.step()
            self.journal.bar.update(self.stride)
            stopped = stop.asked()
            late = optim.minutes > 0 and agreed(time.monotonic() - start > 60 * optim.minutes)
            save = stopped or late or self.done >= optim.steps or self.due(optim.save_every)
            wrong = self.judge(scalars, at_once=save or self.due(optim.log_every))
            if wrong and not stopped:
                self.go_back(wrong)
                if not late:
                    continue
            elif not wrong and self.due(optim.log_every):
                values = {name: float(value) for name, value in scalars.items()}
                self.journal.write(self.done, values | self.meter.read(self.stride))
            if save and not wrong:
                self.save()
            if stopped:
                self.leave()
            if late:
                break
        self.saves.finish()
        return self.state

    def close(self) -> None:
        """Lets the save that is under way end, whatever ended the run."""
        with contextlib.suppress(InputError):  # it has been said
            self.saves.finish()
        self.journal.close()

    def leave(self) -> None:
        """Ends the program: SIGTERM asked for it."""
        self.saves.finish()
        if jax.process_index() == 0:
            door.say(f"stopped at step {self.good}, saved in {self.saves.folder}; the same command goes on from there")
        sys.exit(0)


def batches(dataset: grain.MapDataset, *, threads: int, prefetch: int) -> grain.DatasetIterator:
    """An iterator with a saved place over a batched dataset, rendered ahead in threads. ValueError if it is empty."""
    if not len(dataset):
        raise ValueError(
            "there is nothing to train on: the dataset is empty; make clips first, as docs/training.md says"
        )
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
