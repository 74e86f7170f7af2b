"""An invisible mark in the pixels: this picture was generated, and by whom.

A picture of any size is cut into 24 x 24 cells. Each cell is made a level or so lighter or darker, by a pattern that
follows from a key and the frame's number and changes every two frames (80 ms), for 1024 frames, then again. Half of
the cells say nothing but that the mark is there; the others carry 96 coded bits, of which a code makes a payload of 32.

A reader knows the key, not the frame's number: it takes the two-frame means of the cells, subtracts what their
neighbours in time and space have in common, and compares with the pattern at all 1024 starts. Under no mark the signs
of the pattern are independent of whatever picture it is, so the score's tail is below exp(-score^2 / 2) (Hoeffding,
1963): the threshold follows from the promised rate of false alarms alone.

Cells scale with the picture, so a mark put on 96 x 96 is read after the video was enlarged; it does not survive
cropping or another frame rate.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from avatar_jax.io import golay

GRID, GROUP, GROUPS = 24, 2, 512  # cells a side; frames that share a pattern; patterns
PERIOD = GROUP * GROUPS  # video frames until the pattern repeats: 41 s
SMALL_SIDE, SMALL, LARGE = 256, 1.3, 1.0  # mean levels of 255 that a cell is changed by, below that side and from it on
BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16 + 1 / 32  # ordered dither
PUBLIC_KEY, GENERATED = "avatar_jax", 0x41565452  # of whoever names no other; "AVTR": generated, nothing more said
FALSE_ALARMS = 1e-4  # of unmarked videos
WINDOW = 50  # video frames that are read together: 2 s
PAYLOAD_WINDOWS = 30  # that the payload is read from
_FLOOR = 0.3  # levels: noise that even a still picture has


class Layout(NamedTuple):
    """What follows from a key."""

    signs: np.ndarray  # [GROUPS, cells] of ±1
    roles: np.ndarray  # [GROUPS, cells]: the coded bit that a cell carries, -1 for a cell that only marks


@functools.lru_cache(maxsize=4)
def layout(key: str) -> Layout:
    """Signs and roles of a key, the same everywhere and for ever (SHAKE-256)."""
    cells = GRID * GRID
    stream = hashlib.shake_256(key.encode()).digest(GROUPS * cells // 8 + GROUPS * cells * 4)
    bits, order = np.frombuffer(stream, np.uint8), np.frombuffer(stream, "<u4", offset=GROUPS * cells // 8)
    signs = 1.0 - 2.0 * np.unpackbits(bits[: GROUPS * cells // 8]).reshape(GROUPS, cells)
    place = order.reshape(GROUPS, cells).argsort(-1, kind="stable").argsort(-1, kind="stable")
    return Layout(signs.astype(np.float32), np.where(place < cells // 2, -1, place % golay.BITS))


def pattern(key: str, payload: int) -> np.ndarray:  # int8 [GROUPS, GRID, GRID] of ±1
    """What is added, in signs. Raises ValueError for a payload that is no number of 32 bits."""
    signs, roles = layout(key)
    said = np.where(roles < 0, 1.0, golay.encode(payload)[roles])
    return (signs * said).astype(np.int8).reshape(GROUPS, GRID, GRID)


def _cell_of(pixels: int) -> np.ndarray:  # [pixels]
    """The cell that each row or column belongs to."""
    return np.arange(pixels) * GRID // pixels


def _levels(height: int, width: int) -> np.ndarray:  # int16 [H, W]
    """How many levels each pixel is changed by."""
    if min(height, width) < 2 * GRID:
        raise ValueError(f"frames of {height} x {width} are too small for a watermark; at least {2 * GRID} a side")
    strength = SMALL if min(height, width) < SMALL_SIDE else LARGE
    tiled = np.tile(BAYER, (-(-height // 4), -(-width // 4)))[:height, :width]
    return np.floor(strength + tiled).astype(np.int16)


def make_marker(
    *, height: int, width: int, payload: int = GENERATED, key: str = PUBLIC_KEY
) -> Callable[[Any, int], Any]:
    """A compiled function (frames uint8 [T, H, W, 3], number of the first) to marked frames, uint8 [T, H, W, 3].

    Raises:
      ValueError: frames too small, or a payload that is no number of 32 bits.
    """
    import jax
    import jax.numpy as jnp

    chips, levels = jnp.asarray(pattern(key, payload)), jnp.asarray(_levels(height, width))
    rows, columns = jnp.asarray(_cell_of(height)), jnp.asarray(_cell_of(width))

    @jax.jit
    def mark(frames: jax.Array, first: jax.Array) -> jax.Array:
        groups = (first + jnp.arange(frames.shape[0])) // GROUP % GROUPS
        change = chips[groups][:, rows][:, :, columns] * levels  # [T, H, W]
        return jnp.clip(frames.astype(jnp.int16) + change[..., None], 0, 255).astype(jnp.uint8)

    return lambda frames, first: mark(frames, np.int32(first % PERIOD))


def host_marker(
    *, height: int, width: int, payload: int = GENERATED, key: str = PUBLIC_KEY
) -> Callable[[np.ndarray, int], np.ndarray]:
    """A function (frame uint8 [H, W, 3], its number) to the marked frame, as `make_marker`'s to the bit.

    For the encoder of one live stream: on the host, as a program on the devices would wait behind the model's.

    Raises:
      ValueError: as `make_marker`.
    """
    chips, levels = pattern(key, payload), np.repeat(_levels(height, width).astype(np.int8), 3, axis=1)  # [H, 3 W]
    rows, columns = _cell_of(height), np.repeat(_cell_of(width), 3)
    held, more, less = -1, levels, levels  # of the group that was marked last

    def mark(frame: np.ndarray, number: int) -> np.ndarray:
        nonlocal held, more, less
        group = number // GROUP % GROUPS
        if group != held:
            change = chips[group][:, columns][rows] * levels
            held, more, less = group, np.maximum(change, 0).view(np.uint8), np.maximum(-change, 0).view(np.uint8)
        flat = np.minimum(frame.reshape(height, 3 * width), 255 - more) + more
        return (np.maximum(flat, less) - less).reshape(frame.shape)

    return mark


def cells(luma: np.ndarray) -> np.ndarray:  # [T, H, W] any type -> float32 [T, GRID, GRID]
    """The mean brightness of every cell."""
    for axis in (1, 2):
        pixels = luma.shape[axis]
        if pixels < GRID:
            raise ValueError(f"frames of {luma.shape[1]} x {luma.shape[2]} are too small to read a watermark from")
        starts = -(-np.arange(GRID) * pixels // GRID)
        size = np.diff(np.append(starts, pixels)).astype(np.float32)
        sums = np.add.reduceat(luma, starts, axis, dtype=np.float32)
        luma = sums / (size[:, None] if axis == 1 else size)
    return luma


def evidence(seen: np.ndarray, phase: int) -> np.ndarray:  # float32 [T, GRID, GRID] -> [groups, cells]
    """What speaks for a lighter cell, by group, where the first group begins at frame `phase`.

    Differences from the groups before and after and from the four cells around, divided by the square of their usual
    size there: the best weights for noise of that size.
    """
    groups = (len(seen) - phase) // GROUP
    means = seen[phase : phase + groups * GROUP].reshape(groups, GROUP, GRID, GRID).mean(1)
    near = np.pad(means, ((1, 1), (0, 0), (0, 0)), mode="reflect")
    own = means - (near[:-2] + near[2:]) / 2
    near = np.pad(own, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    own -= (near[:, :-2, 1:-1] + near[:, 2:, 1:-1] + near[:, 1:-1, :-2] + near[:, 1:-1, 2:]) / 4
    energy = np.pad(own**2, 1, mode="reflect")
    for axis in range(3):
        energy = np.lib.stride_tricks.sliding_window_view(energy, 3, axis).mean(-1)
    usual = np.maximum((own**2).mean(0), energy)
    return (own / (usual + _FLOOR**2)).reshape(groups, -1).astype(np.float32)


class Finding(NamedTuple):
    """What a video was found to hold."""

    marked: bool
    score: float  # of the whole video, at its best start; without a mark above x with a chance below exp(-x^2 / 2)
    threshold: float  # from which on a video counts as marked
    payload: int | None  # None where it cannot be read
    first: int  # number of the first frame, modulo PERIOD
    windows: tuple[float, ...]  # the score of every 2 s by themselves


def threshold(windows: int) -> float:
    """The score that unmarked videos reach at most once in 1 / FALSE_ALARMS, of all starts and windows together."""
    trials = PERIOD * (windows + 1 if windows > 1 else 1)
    return math.sqrt(2 * math.log(trials / FALSE_ALARMS))


class Detector:
    """Reads the mark of a video that is pushed piece by piece; memory does not grow with its length."""

    def __init__(self, key: str = PUBLIC_KEY) -> None:
        self._signs, self._roles = layout(key)
        self._marks = (self._roles < 0).astype(np.float32)
        self._sync = self._signs * self._marks
        self._waiting = np.zeros((0, GRID, GRID), np.float32)
        self._sum, self._power = np.zeros(PERIOD), np.zeros(PERIOD)  # by the number of the video's first frame
        self._kept: list[tuple[int, list[np.ndarray]]] = []
        self._scores: list[float] = []
        self._frames = 0

    def push(self, luma: np.ndarray) -> None:
        """Takes frames in grey, [T, H, W] of 0..255."""
        self._waiting = np.concatenate([self._waiting, cells(luma)])
        while len(self._waiting) >= 2 * WINDOW:  # the rest is read with the last whole window
            self._read(self._waiting[:WINDOW])
            self._waiting = self._waiting[WINDOW:]

    def _read(self, seen: np.ndarray) -> None:
        """A window's evidence at every start."""
        total, power, kept = np.zeros(PERIOD), np.zeros(PERIOD), []
        for phase in range(GROUP):
            found = evidence(seen, phase)
            places = (np.arange(GROUPS) + np.arange(len(found))[:, None]) % GROUPS
            first = np.arange(GROUPS) * GROUP - phase - self._frames  # number of the video's first frame, by start
            total[first % PERIOD] = np.take_along_axis(found @ self._sync.T, places, 1).sum(0)
            power[first % PERIOD] = np.take_along_axis(found**2 @ self._marks.T, places, 1).sum(0)
            kept.append(found)
        if len(self._kept) < PAYLOAD_WINDOWS:
            self._kept.append((self._frames, kept))
        self._sum, self._power = self._sum + total, self._power + power
        self._scores.append(float((total / np.sqrt(power + 1e-9)).max()))
        self._frames += len(seen)

    def _payload(self, first: int) -> int | None:
        soft = np.zeros(golay.BITS)
        for at, kept in self._kept:
            phase = -(first + at) % GROUP
            group = ((first + at + phase) // GROUP + np.arange(len(kept[phase]))) % GROUPS
            roles, said = self._roles[group], kept[phase] * self._signs[group]
            soft += np.bincount(roles[roles >= 0], said[roles >= 0], golay.BITS)
        return golay.decode(soft)

    def finish(self) -> Finding:
        """What was found. Raises ValueError for a video of fewer than 6 frames."""
        if len(self._waiting) >= 3 * GROUP:
            self._read(self._waiting)
            self._waiting = self._waiting[:0]
        if not self._scores:
            raise ValueError(f"a watermark is read from at least {3 * GROUP} frames")
        scores, needed = self._sum / np.sqrt(self._power + 1e-9), threshold(len(self._scores))
        first, score = int(scores.argmax()), float(scores.max())
        marked = max(score, *self._scores) >= needed
        payload = self._payload(first) if marked else None
        return Finding(marked, score, needed, payload, first, tuple(self._scores))


def detect(luma: np.ndarray, key: str = PUBLIC_KEY) -> Finding:
    """What a clip in grey, [T, H, W] of 0..255, holds."""
    detector = Detector(key)
    detector.push(luma)
    return detector.finish()
