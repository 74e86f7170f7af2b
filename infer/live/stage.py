"""The one thread on which the pool beats, and the part that each call has on it.

A part feeds its seat a block of sound when the picture needs one and takes home what is drawn; nobody's frames wait in
memory beyond a few blocks, because a seat whose frames are not shown is not fed.
"""

import collections
import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging

from infer.live.line import Line

POLL_S = 0.004  # how often the thread looks whether something is drawn
DRAW_S = 0.25  # what a block is thought to take before one was seen
SLACK_S = 0.06  # what the host may need beside
SPARE_S = 0.15  # frames that wait longer than they need to after the slowest of the last blocks: an overload left them
KEPT_S = 0.06  # of these


class Guest(Protocol):
    """What is needed of `avatar_jax.stream.live.Guest`."""

    def push_audio(self, samples: np.ndarray, now_s: float) -> None:
        """Takes a block of sound."""
        ...

    def fetch(self) -> list[Any]:
        """What is drawn by now: `frames` and the `sound` under them."""
        ...

    def show(self, scene: Any) -> None:
        """Another scene from the next block on."""
        ...


class Hall(Protocol):
    """What is needed of `avatar_jax.stream.live.Live`."""

    def join(self, avatar: Any) -> Any:
        """A new guest."""
        ...

    def leave(self, guest: Any) -> None:
        """Ends a guest's stream."""
        ...

    def beat(self, now_s: float) -> None:
        """One turn of the mesh."""
        ...


class Form(NamedTuple):
    """What blocks look like."""

    height: int
    width: int
    fps: int
    audio_hz: int
    block_frames: int

    @property
    def hop(self) -> int:
        """Samples under a frame."""
        return self.audio_hz // self.fps

    @property
    def block_samples(self) -> int:
        """Samples under a block."""
        return self.block_frames * self.hop

    @property
    def block_s(self) -> float:
        """Seconds of a block."""
        return self.block_frames / self.fps


class Framed(NamedTuple):
    """A frame that waits for its time."""

    frame: np.ndarray  # uint8 [H, W, 3]
    sound: np.ndarray  # float32 [hop]
    heard_s: float  # when the block's sound was complete


class Part:
    """A call on the stage. `reel` is filled by the stage's thread and emptied by whoever shows it.

    Args:
      guest: its seat.
      line: what it hears.
      form: of the blocks.
      ahead: blocks that may be drawn or under way and not shown.
    """

    def __init__(self, guest: Guest, line: Line, form: Form, *, ahead: int):
        self.guest, self.line, self.form, self._ahead = guest, line, form, ahead
        self.reel: collections.deque[Framed] = collections.deque()
        self.playing = True  # somebody looks on; else the seat pauses
        self._entered: collections.deque[tuple[int, float]] = collections.deque()  # act, when
        self._act, self._lock = 0, threading.Lock()
        self.draw_s = DRAW_S
        self._drawn_s = collections.deque([DRAW_S], maxlen=4)
        self.blocks = 0

    @property
    def under_way(self) -> int:
        """Blocks that were fed and did not come home yet."""
        return len(self._entered)

    def cut(self) -> None:
        """Drops what is drawn and not shown, now and when it comes home."""
        self.line.mute()
        with self._lock:
            self._act += 1
            self.reel.clear()

    def feed(self, now_s: float) -> bool:
        """Enters a block of sound if the picture needs one; whether it did."""
        if not self.playing:
            return False
        frames = self.form.block_frames
        remaining = self.under_way * frames + len(self.reel)
        if remaining > (self._ahead - 1) * frames:
            return False
        must = remaining / self.form.fps <= self.draw_s + SLACK_S
        spare_s = remaining / self.form.fps - max(self._drawn_s) - SLACK_S
        spare = round((spare_s - KEPT_S) * self.form.audio_hz) if spare_s > SPARE_S else 0
        sound = self.line.take(self.form.block_samples, now_s, must=must, spare=spare)
        if sound is None:
            return False
        self._entered.append((self._act, now_s))
        self.guest.push_audio(sound, now_s)
        return True

    def collect(self, now_s: float) -> None:
        """Takes home what is drawn; what an interruption made stale is dropped."""
        for block in self.guest.fetch():
            act, entered_s = self._entered.popleft()
            self.draw_s += 0.2 * (now_s - entered_s - self.draw_s)
            self._drawn_s.append(now_s - entered_s)
            self.blocks += 1
            sound = block.sound.reshape(-1, self.form.hop)
            with self._lock:
                if act == self._act:
                    self.reel.extend(map(Framed, block.frames, sound, [entered_s] * len(sound)))


class Stage:
    """The pool's thread.

    Args:
      hall: the seats.
      beat_s: at least so long from one entry of blocks to the next, so that the calls' blocks go together where a
        turn costs as much for one as for all.
      now: the clock.
    """

    def __init__(self, hall: Hall, *, beat_s: float, now: Callable[[], float] = time.monotonic):
        self._hall, self._beat_s, self._now = hall, beat_s, now
        self._parts: list[Part] = []
        self._asked: collections.deque[tuple[concurrent.futures.Future, Callable[[], Any]]] = collections.deque()
        self._next_s, self._over = -1e9, threading.Event()
        self._thread = threading.Thread(target=self._run, name="stage", daemon=True)
        self.failed: BaseException | None = None

    def join(self, avatar: Any, line: Line, form: Form, *, ahead: int, playing: bool = True) -> Part:
        """A part for a new call, which is fed at once if it is `playing`; on the stage's thread."""
        part = Part(self._hall.join(avatar), line, form, ahead=ahead)
        part.playing = playing
        self._parts.append(part)
        return part

    def leave(self, part: Part) -> None:
        """Ends a call's part; on the stage's thread."""
        if part in self._parts:
            self._parts.remove(part)
            self._hall.leave(part.guest)

    def forgo(self, joining: concurrent.futures.Future) -> None:
        """Ends a part that may still be joining, before whoever has asked later joins."""

        def leave(done: concurrent.futures.Future) -> None:
            if not done.exception():
                here = threading.current_thread() is self._thread
                self.leave(done.result()) if here else self.ask(self.leave, done.result())

        joining.add_done_callback(leave)

    def ask(self, job: Callable[..., Any], *arguments: Any, **named: Any) -> concurrent.futures.Future:
        """Runs a job on the stage's thread, between two beats."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._asked.append((future, lambda: job(*arguments, **named)))
        return future

    def turn(self, now_s: float) -> None:
        """What the thread does over and over: jobs, sound in, a beat, frames out."""
        while self._asked:
            self._do(*self._asked.popleft())
        if now_s >= self._next_s and sum([part.feed(now_s) for part in self._parts]):
            self._next_s = now_s + self._beat_s
        if any(part.under_way for part in self._parts):
            self._hall.beat(now_s)
            for part in self._parts:
                part.collect(self._now())

    def _do(self, future: concurrent.futures.Future, job: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except Exception as error:  # it is the asker's
            future.set_exception(error)

    def _run(self) -> None:
        while not self._over.wait(POLL_S):
            try:
                self.turn(self._now())
            except Exception as error:  # the mesh is lost: say so, and be not ready
                self.failed = error
                logging.exception("the stage has failed")
                return

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join()
