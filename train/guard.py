"""Whether a run is still learning, and whether it was asked to stop."""

import dataclasses
import math
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

MEMORY = 100  # steps over which the usual loss is averaged
SETTLED = 20  # steps before which nothing is unusual
PATIENCE = 3  # times a run goes back to one and the same checkpoint


@dataclasses.dataclass
class Guard:
    """The usual loss, and how many batches were left out because of an unusual one. Saved with every checkpoint."""

    spike: float  # times the usual loss that count as one; 0: none does
    seen: int = 0
    usual: float = 0.0
    skipped: int = 0

    def judge(self, scalars: Mapping[str, Any]) -> str:
        """What is wrong with a step's scalars, or ''. Waits for the step.

        Everything named "loss..." must be finite, and "loss" no spike.
        """
        for name, value in scalars.items():
            if name.startswith("loss") and not math.isfinite(float(value)):
                return f"{name} is {float(value)}"
        if "loss" not in scalars:
            return ""
        loss = float(scalars["loss"])
        if self.spike and self.seen >= SETTLED and loss > self.spike * self.usual > 0.0:
            return f"loss is {loss:.4g}, where {self.usual:.4g} is usual"
        self.seen += 1
        self.usual += (loss - self.usual) / min(self.seen, MEMORY)
        return ""

    def place(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"seen": self.seen, "usual": self.usual, "skipped": self.skipped}

    def go_back(self, place: Mapping[str, Any]) -> None:
        """To what a checkpoint has kept."""
        self.seen, self.usual, self.skipped = place["seen"], place["usual"], place["skipped"]


class Stop:
    """SIGTERM, heard from when it is entered until it is left."""

    def __init__(self) -> None:
        self._told, self._asked = False, 0

    def __enter__(self) -> Self:
        """JAX listens itself where there are several processes, and agrees with them on the step."""
        self._alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        """SIGTERM means what it meant before."""
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._told = True

    def asked(self) -> bool:
        """Whether the run should save and end now, asked after every step; the same answer in all its processes."""
        self._asked += 1  # not the run's step, which a return to a checkpoint would take back
        return multihost_utils.reached_preemption_sync_point(self._asked) if jax.process_count() > 1 else self._told


def agreed(word: bool) -> bool:
    """The first process' word, in all of them."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(word))) if jax.process_count() > 1 else word
