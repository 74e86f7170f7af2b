"""The speakers of a session: each has its own sound, its own signals and its part of the picture."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import Config, Signal
from avatar_jax.stream import saved
from avatar_jax.stream.hear import Ear


def token_masks(masks: np.ndarray, cfg: Config) -> np.ndarray:
    """How much of each token the speakers drive, [speakers, 1, F, f] in 0..1 for a block.

    Args:
      masks: of the picture, [speakers, H, W] in 0..1; where several overlap, their effects add up.
      cfg: the run.

    Raises:
      ValueError: another shape, or values outside 0..1.
    """
    wanted = (cfg.video.height, cfg.video.width)
    if masks.ndim != 3 or masks.shape[1:] != wanted or not len(masks):
        raise ValueError(f"masks of shape {masks.shape}: must be (speakers, {wanted[0]}, {wanted[1]})")
    if not (np.min(masks) >= 0.0 and np.max(masks) <= 1.0):
        raise ValueError("masks: values must lie in 0..1")
    rows, columns = cfg.grid
    cells = masks.astype(np.float32).reshape(len(masks), rows, cfg.cell, columns, cfg.cell).mean((2, 4))
    return np.tile(cells.reshape(len(masks), 1, 1, -1), (1, 1, cfg.stream.drawn_latents, 1))


class Signals:
    """Rows of driving signals for the video frames still to be drawn, as they come."""

    def __init__(self, signals: tuple[Signal, ...]):
        self._widths = {signal.name: signal.width for signal in signals}
        self._rows: dict[str, dict[int, np.ndarray]] = {name: {} for name in self._widths}
        self._next, self._first = dict.fromkeys(self._widths, 0), 0

    def push(self, name: str, rows: np.ndarray, frame: int | None = None) -> None:
        """Takes rows [T, width]; see `Session.push_signals`."""
        if name not in self._widths:
            raise ValueError(f"signal {name!r}: must be one of {', '.join(self._widths) or '(this model reads none)'}")
        rows = np.array(rows, np.float32)  # kept: the caller may fill its array anew
        if rows.ndim != 2 or rows.shape[1] != self._widths[name]:
            raise ValueError(f"signal {name!r} of shape {rows.shape}: must be (frames, {self._widths[name]})")
        first = self._next[name] if frame is None else frame
        self._next[name] = first + len(rows)
        late = max(0, self._first - first)  # rows of frames that have been drawn
        self._rows[name].update(enumerate(rows[late:], first + late))

    def take(self, first: int, frames: int) -> dict[str, np.ndarray]:
        """Rows of the video frames from `first` on, [frames, width], NaN where none came; forgets older ones."""
        taken, gone, self._first = {}, range(self._first, first), first
        for name, width in self._widths.items():
            rows, absent = self._rows[name], np.full(width, np.nan, np.float32)
            for frame in gone:
                rows.pop(frame, None)
            taken[name] = np.stack([rows.get(first + k, absent) for k in range(frames)])
        return taken

    def state(self) -> Any:
        """The rows that wait with their frames, and which frame is next, a tree of arrays."""
        waiting = [
            {"frames": np.array(list(rows), np.int64), "rows": np.array(list(rows.values())).reshape(-1, width)}
            for rows, width in zip(self._rows.values(), self._widths.values(), strict=True)
        ]
        return {"first": self._first, "next": list(self._next.values()), "waiting": waiting}

    def restore(self, found: saved.Found) -> None:
        """Goes on from a `state` that was saved."""
        self._first = int(found["first"])
        self._next = dict(zip(self._widths, map(int, saved.items(found, "next")), strict=True))
        for name, kept in zip(self._widths, saved.items(found, "waiting"), strict=True):
            self._rows[name] = dict(zip(kept["frames"].tolist(), kept["rows"], strict=True))


class Track:
    """One speaker of a session: what it hears, the features that wait for the others', and its signals."""

    def __init__(self, ear: Ear, cfg: Config):
        self._ear, self._cfg, self._size = ear, cfg.stream, cfg.block_frames
        self._waiting: collections.deque[jax.Array] = collections.deque()
        self._context: jax.Array | None = None
        self.signals, self.samples = Signals(cfg.dit.signals), 0

    @property
    def ready(self) -> bool:
        """Whether a block of features waits."""
        return bool(self._waiting)

    def push(self, samples: np.ndarray) -> None:
        """Takes mono float32 samples [n]."""
        self.samples += len(samples)
        self._waiting += self._ear.push(samples)

    def finish(self, samples: int) -> None:
        """Hears what is left, with silence after it up to the length of the longest recording."""
        if samples > self.samples:
            self.push(np.zeros(samples - self.samples, np.float32))
        self._waiting += self._ear.finish()

    def take(self) -> jax.Array:
        """The next block's features behind their left context, [context + T, layers, width], T with those of a knot."""
        features, cfg, rest = self._waiting.popleft(), self._cfg, self._ear.rest
        if self._context is None or cfg.audio_history == "repeated":
            before = features[0] if rest is None or cfg.audio_history == "repeated" else rest
            self._context = jnp.tile(before, (cfg.audio_context, 1, 1))
        heard = jnp.concatenate([self._context, features])
        self._context = heard[self._size :][: cfg.audio_context]  # what precedes the next block
        return heard

    def state(self) -> Any:
        """Sound, features and signals that blocks to come are drawn from, a tree of arrays."""
        return {
            "ear": self._ear.state(),
            "signals": self.signals.state(),
            "samples": self.samples,
            "waiting": tuple(self._waiting),
            "context": self._context,
        }

    def restore(self, found: saved.Found) -> None:
        """Goes on from a `state` that was saved."""
        self._ear.restore(found["ear"])
        self.signals.restore(found["signals"])
        self.samples = int(found["samples"])
        self._waiting = collections.deque(map(jnp.asarray, saved.items(found, "waiting")))
        self._context = jnp.asarray(found["context"]) if "context" in found else None
