"""What a run tells: scalars as JSON lines and for TensorBoard, a curve, one live line; and where its time goes."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import matplotlib
import tqdm
from absl import logging
from tensorboardX import SummaryWriter
from tensorboardX.proto import summary_pb2

from avatar_jax.io.errors import InputError

matplotlib.use("Agg")
from matplotlib import pyplot

# Dense bfloat16 operations a second of one device, as its maker states them, by JAX's name of the device.
PEAKS = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v6 lite": 918e12,
}


class Cost(NamedTuple):
    """What one call of a step function works on, over all devices; 0 where nobody counted."""

    tokens: int = 0
    flops: float = 0.0  # of forward and backward pass, recomputation not counted


UNKNOWN = Cost()


class Look(NamedTuple):
    """What a run draws at a step."""

    scalars: dict[str, float]
    picture: bytes  # the clips side by side, a GIF that moves
    size: tuple[int, int]  # its height and width


class Meter:
    """Where the time goes: waiting for data, saving, looking at what is drawn, and the rest, which is the step's."""

    def __init__(self, cost: Cost, devices: int):
        kind = jax.devices()[0].device_kind
        self._cost, self._peak = cost, PEAKS.get(kind, 0.0) * devices
        if cost.flops and not self._peak:
            logging.info("no peak is known for %r, so there is no mfu", kind)
        self._start()

    def _start(self) -> None:
        self._since, self._calls, self._spent = time.monotonic(), 0, {"data": 0.0, "save": 0.0, "look": 0.0}

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Counts the time of the block as `part`: "data", "save" or "look"."""
        begun = time.monotonic()
        yield
        self._spent[part] += time.monotonic() - begun

    def count(self) -> None:
        """One more call of the step function."""
        self._calls += 1

    def read(self, stride: int) -> dict[str, float]:
        """Rates and seconds a call since the last reading; `stride` is the optimiser steps of a call."""
        seconds, calls = time.monotonic() - self._since, max(self._calls, 1)
        spent = self._spent | {"step": seconds - sum(self._spent.values())}
        found = {"steps_per_second": self._calls * stride / seconds}
        if self._cost.tokens:
            found["tokens_per_second"] = self._calls * self._cost.tokens / seconds
        if self._cost.flops and self._peak:
            found["mfu"] = self._calls * self._cost.flops / seconds / self._peak
        self._start()
        return found | {f"seconds_{part}": value / calls for part, value in spent.items()}


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """InputError where the block cannot write."""
    try:
        yield
    except OSError as error:
        advice = "make room, then repeat the command: it goes on from the last checkpoint"
        raise InputError(f"{path}: cannot be written ({error.strerror}); {advice}") from error


class Journal:
    """Scalars of a run, under `workdir`, from `step` on: what was written of later steps is done again."""

    def __init__(self, workdir: pathlib.Path, *, step: int, steps: int):
        self.path = workdir / "metrics.jsonl"
        with writing(self.path):
            workdir.mkdir(parents=True, exist_ok=True)
            self._cut(step)
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self.bar = tqdm.tqdm(total=steps, initial=step, unit="step", mininterval=5, dynamic_ncols=True)

    def rows(self) -> list[dict]:
        """What is written; a line that a kill has cut short is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def _cut(self, step: int) -> None:
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step))
        os.replace(part, self.path)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one line and the same points to TensorBoard, and shows them beside the bar."""
        with writing(self.path):
            with self.path.open("a") as lines:
                lines.write(json.dumps({"step": step, **scalars}) + "\n")
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in scalars.items()}, refresh=False)

    def show(self, step: int, look: Look) -> None:
        """Writes what was drawn: its scalars as `write`, its picture for TensorBoard."""
        height, width = look.size
        protos: Any = summary_pb2  # its classes are made at run time
        image = protos.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=look.picture)
        board: Any = self._board.file_writer
        with writing(self.path):
            board.add_summary(protos.Summary(value=[protos.Summary.Value(tag="watch", image=image)]), step)
        self.write(step, look.scalars)

    def plot(self, name: str = "loss") -> None:
        """Redraws `<name>.png` from the record."""
        points = [(row["step"], row[name]) for row in self.rows() if name in row]
        if not points:
            return
        figure, axes = pyplot.subplots(figsize=(6, 3.5))
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set(xlabel="step", ylabel=name, yscale="log")
        axes.grid(alpha=0.3)
        with writing(self.path.parent / f"{name}.png"):
            figure.savefig(self.path.parent / f"{name}.png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)

    def close(self) -> None:
        """Ends the live line. A disk that is full by now has been spoken of."""
        with contextlib.suppress(OSError):
            self.bar.close()
            self._board.close()


class Silence(Journal):
    """The journal of a process that is not the first of its run."""

    def __init__(self) -> None:
        self.bar = tqdm.tqdm(disable=True)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Nothing."""

    def show(self, step: int, look: Look) -> None:
        """Nothing."""

    def plot(self, name: str = "loss") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
