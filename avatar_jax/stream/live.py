"""Streams against the clock: sound may come late and viewers may read slowly, and the mesh waits for neither.

A guest's sound is placed by its count of samples: sample n belongs to second n / audio_hz after the first. A block
whose sound is not complete in time is drawn with silence in the place of what is missing, and what arrives for that
place later is dropped, so a stream never falls behind its source. A viewer who has not fetched what was drawn lets its
own seat pause; the others go on.
"""

import collections
from typing import Any, NamedTuple

import numpy as np

from avatar_jax.stream.pool import Pool, Seat
from avatar_jax.stream.session import Avatar, Session
from avatar_jax.stream.state import Scene


class Shown(NamedTuple):
    """A block as a viewer gets it."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    sound: np.ndarray  # what was heard under them, at the model's rate, float32 [T samples_per_frame]


class Guest:
    """One live stream.

    Args:
      seat: in the pool.
      avatar: whose stream it is.
      patience_s: how long after its time a block's sound is waited for.
      ahead: blocks that may be drawn and not fetched.
    """

    def __init__(self, seat: Seat, avatar: Avatar, *, patience_s: float, ahead: int):
        seat.alone = False
        self._session = Session(avatar, seat)
        self._cfg, self._patience_s, self._ahead = avatar.cfg, patience_s, ahead
        self._sound, self._missed = np.zeros(0, np.float32), 0
        self._begun_s: float | None = None
        self._heard: collections.deque[np.ndarray] = collections.deque()
        self._drawn: collections.deque[Any] = collections.deque()  # arrays, perhaps not yet computed
        self._blocks, self.silent, self.late = 0, 0, 0

    def push_audio(self, samples: np.ndarray, now_s: float) -> None:
        """Takes mono float32 samples at the model's rate, whenever they come."""
        if self._begun_s is None:
            self._begun_s = now_s
        drop = min(self._missed, len(samples))  # silence is in their place
        self._missed, self.late = self._missed - drop, self.late + drop
        self._sound = np.concatenate([self._sound, np.asarray(samples[drop:], np.float32)])

    def fetch(self) -> list[Shown]:
        """What is drawn by now; never waits."""
        self._drawn.extend(self._session.poll())
        shown = []
        while self._drawn and self._drawn[0].is_ready():
            shown.append(Shown(np.asarray(self._drawn.popleft()), self._heard.popleft()))
        return shown

    @property
    def outstanding(self) -> int:
        """Blocks entered and not yet fetched."""
        return len(self._heard)

    def offer(self, now_s: float) -> None:
        """Enters the next block if its sound is there, or overdue, and its viewer keeps up."""
        size = self._cfg.block_samples
        if self._begun_s is None or self.outstanding >= self._ahead:
            return
        due_s = self._begun_s + (self._blocks + 1) * size / self._cfg.sound.audio_hz + self._patience_s
        missing = size - len(self._sound)
        if missing > 0 and now_s < due_s:
            return
        if missing > 0:
            self._missed, self.silent = self._missed + missing, self.silent + missing
            self._sound = np.concatenate([self._sound, np.zeros(missing, np.float32)])
        block, self._sound = self._sound[:size], self._sound[size:]
        self._blocks += 1
        self._heard.append(block)
        self._drawn.extend(self._session.push_audio(block))

    def show(self, scene: Scene) -> None:
        """Another portrait or prompt, from `session.make_scene`: taken up by the next block that enters."""
        self._session.show(scene)

    def close(self) -> None:
        """Leaves."""
        self._session.close()


class Live:
    """All guests of a pool.

    Args:
      seats: the pool that their avatars were made for.
      patience_s: how long after its time a block's sound is waited for.
      ahead: blocks that may be drawn for a viewer who does not fetch them.
    """

    def __init__(self, seats: Pool, *, patience_s: float, ahead: int):
        self._seats, self._patience_s, self._ahead = seats, patience_s, ahead
        self._guests: list[Guest] = []

    def join(self, avatar: Avatar) -> Guest:
        """A new stream; raises `pool.Full`."""
        seat = avatar.engine()
        assert isinstance(seat, Seat)
        self._guests.append(Guest(seat, avatar, patience_s=self._patience_s, ahead=self._ahead))
        return self._guests[-1]

    def leave(self, guest: Guest) -> None:
        """Ends a stream."""
        self._guests.remove(guest)
        guest.close()

    def beat(self, now_s: float) -> None:
        """One turn of the mesh: whoever has a block enters it."""
        for guest in self._guests:
            guest.offer(now_s)
        self._seats.beat()
