"""One call: its state, its sound, its picture, who looks on, its recording."""

import asyncio
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from infer.live.encode import Encoder, Fragment, Retouch
from infer.live.keys import Bucket
from infer.live.line import Line
from infer.live.pace import Pace
from infer.live.record import Recording, Sign
from infer.live.stage import Form, Framed, Part
from infer.live.tongue import Talk, Tongue
from infer.live.viewer import Viewer

LEAD_S = 0.16  # media sent before it is due
LATE_S = 0.6  # a picture that has stood so long has a named reason
SHOWN_S = 2.0  # over which frames a second are counted


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server lets its callers have. Seconds, unless named otherwise."""

    seats: int = 1
    queue: int = 8  # calls that may wait for a seat
    queue_s: float = 300.0  # how long each
    jobs: int = 4  # jobs that may wait
    connect_s: float = 20.0  # for the first connection
    resume_s: float = 20.0  # for the next one after one was lost
    idle_s: float = 180.0  # without a sound
    call_s: float = 3600.0
    speech_s: float = 600.0  # handed in and not yet spoken
    stall_s: float = 4.0  # a reader that takes nothing
    keep_s: float = 86400.0  # of finished recordings
    sound_rate: float = 2.0  # times real time
    opened_a_minute: float = 30.0  # calls of one token
    uploads_a_minute: float = 60.0  # portraits and speech of one call
    vcodec: str = "libx264"  # of what they are sent
    webrtc: bool = False  # whether peers may look on
    ahead: int = 2  # blocks drawn or under way and not shown


@dataclasses.dataclass(frozen=True)
class Look:
    """What a call shows."""

    name: str  # of the portrait: the house's own, or the hash of what was sent
    portrait: np.ndarray  # uint8 [H, W, 3]
    prompt: str | None = None


class Call:
    """A call from its creation to its end; all methods but `say` belong to the event loop's thread.

    Args:
      name: made by the server.
      owner: who opened it.
      look: what it shows.
      form: of the blocks.
      limits: the server's.
      pool: threads that encode.
      files: threads that finish recordings, which takes long; nobody's frames wait for it.
      folder: of its recording; None for none.
      retouch: of every frame before it is encoded.
      sign: of the finished recording.
      talk: makes what says typed text; None: nothing does.
      now: the clock.
    """

    def __init__(
        self,
        name: str,
        owner: str,
        look: Look,
        form: Form,
        limits: Limits,
        *,
        pool: concurrent.futures.Executor,
        files: concurrent.futures.Executor,
        folder: Path | None = None,
        retouch: Retouch | None = None,
        sign: Sign | None = None,
        talk: Talk | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.name, self.owner, self.look, self.form, self.limits = name, owner, look, form, limits
        self._pool, self._files, self._now = pool, files, now
        # A block, and what a packet may be late; so the sound of an overloaded call is never older than two blocks.
        self.line = Line(audio_hz=form.audio_hz, live_s=2 * form.block_s, speech_s=limits.speech_s)
        self._tongue = Tongue(talk, self.line, self.say, self._mute) if talk else None
        self.state, self.reason, self.position = "queued", "waiting for a free seat", 0
        self.created_s = self.contact_s = self.sound_s = self.since_s = now()
        self.joining: concurrent.futures.Future | None = None  # of its part, from the stage
        self.part: Part | None = None
        self.viewer: Viewer | None = None
        self.pace = Pace(form.fps, round(LEAD_S * form.fps))
        vcodec = limits.vcodec
        self._encoder = Encoder(
            height=form.height, width=form.width, fps=form.fps, audio_hz=form.audio_hz, retouch=retouch, vcodec=vcodec
        )
        self._recording = Recording(folder, name, sign) if folder else None
        self.record: Path | None = None  # once it is finished
        self.signed: dict[str, Any] = {}  # what its signature says
        self.uploading = asyncio.Lock()  # one after the other: a call takes no more than its share of the decoders
        self.uploads = Bucket(limits.uploads_a_minute / 60, limits.uploads_a_minute)
        self._pump: asyncio.Task | None = None
        self._encoding = threading.Lock()  # a frame may still be encoded when the call ends
        self._shown: list[float] = []  # times of the last frames
        self.first_frame_s: float | None = None
        self.behind_s, self.dropped, self._cuts = 0.0, 0, 0
        self.push, self.push_state = "", ""  # name of the operator's target that the call also goes to
        self._pushed: Viewer | None = None

    # what comes in

    def hear(self, samples: np.ndarray) -> None:
        """Live sound, float32 [n] at the model's rate."""
        self.sound_s = self._now()
        self.line.talk(samples, self.sound_s, keep=self.form.block_samples)

    def say(self, samples: np.ndarray) -> None:
        """Speech to be spoken to its end. Raises `line.Overfull`."""
        self.sound_s = self._now()
        self.line.say(samples)

    @property
    def speaks(self) -> bool:
        """Whether it can say typed text."""
        return self._tongue is not None

    def type(self, text: str) -> None:
        """Typed text to be said, or answered. Raises InputError if too many texts wait."""
        self.sound_s = self._now()
        if self._tongue:
            self._tongue.take(text)

    def _mute(self) -> None:
        if self.viewer:
            self.viewer.event({"type": "voice", "reason": "a text could not be said; the server's log says why"})

    def interrupt(self) -> None:
        """Empties every queue, the player's included."""
        self.sound_s = self._now()
        if self._tongue:
            self._tongue.cancel()  # first: it fills the line
        self.line.clear()
        self._cut()
        if self.viewer:
            self.viewer.event({"type": "flush", "time": self.pace.frames / self.form.fps})

    def _cut(self) -> None:
        """To the live edge: no frame that waits or is under way is shown any more."""
        self._cuts += 1
        if self.part:
            self.part.cut()
        if self.viewer:
            self.viewer.flush()
        if self._pushed:
            self._pushed.flush()
        self._encoder.want_key()
        self.pace.rest()

    # who looks on

    def attach(self, viewer: Viewer) -> None:
        """A connection looks on, in place of a former one."""
        if self.viewer:
            self.viewer.event({"type": "ended", "reason": "taken over by another connection"})
            self.viewer.close()
        self.viewer, self.contact_s = viewer, self._now()
        self._cut()
        if self.part:
            self.part.playing = True
        self.tell()

    def detach(self, viewer: Viewer) -> None:
        """The connection is gone: the seat pauses, and is kept for its return unless another call needs it."""
        if self.viewer is viewer:
            self.viewer, self.contact_s = None, self._now()
            if self.part:
                self.part.playing = False

    @property
    def parked(self) -> bool:
        """Whether it holds a seat and nobody looks on."""
        return self.state in ("live", "starting") and self.viewer is None

    @property
    def push_fragments(self) -> int:
        """Fragments that may wait for the push."""
        return 4 * self.form.block_frames

    def push_to(self, viewer: Viewer) -> None:
        """The push looks on, from the next frame; nothing waits for it."""
        self._pushed = viewer
        self._encoder.want_key()

    # its life

    def become(self, state: str, reason: str, position: int = 0) -> None:
        """Another state, told to whoever looks on."""
        if (state, reason, position) != (self.state, self.reason, self.position):
            if state != self.state:
                self.since_s = self._now()
            self.state, self.reason, self.position = state, reason, position
            self.tell()

    def begin(self, part: Part) -> None:
        """It has a seat."""
        self.part, part.playing = part, self.viewer is not None
        self.become("live", "drawing the first block")
        self._cut()
        self._pump = asyncio.get_running_loop().create_task(self._run())

    def rise(self) -> None:
        """Gives its seat up; the call can go on in another one."""
        self.part = None
        if self._pump:
            self._pump.cancel()
            self._pump = None

    async def end(self, reason: str) -> None:
        """Finishes the recording and tells whoever looks on."""
        self.become("ended", reason)
        pump, self._pump = self._pump, None
        if pump:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(self._files, self._finish)
        if self.viewer:
            self.viewer.event({"type": "ended", "reason": reason, "record": self.record is not None})
            self.viewer.close()
        if self._pushed:
            self._pushed.close()

    def _finish(self) -> None:
        if self._tongue:
            self._tongue.close()
        self.line.clear()  # ended calls are remembered, what they held is not
        with self._encoding:
            self._encoder.close()
            recording, self._recording = self._recording, None
        if recording:
            try:
                self.signed = recording.close()
                self.record = recording.path if recording.path.exists() else None
            except (OSError, ValueError):
                logging.exception("the recording of a call could not be finished")

    # the picture

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now_s = self._now()
            framed, wait_s = self._due(now_s)
            if framed is None:
                await asyncio.sleep(wait_s)
                continue
            self.pace.sent(now_s)
            self.behind_s = now_s - framed.heard_s
            cuts = self._cuts
            fragments = await asyncio.shield(loop.run_in_executor(self._pool, self._encode, framed))
            if cuts == self._cuts:
                self._publish(fragments, now_s)
            else:  # it is stale, and may have taken the key frame that the next one has to be
                self._encoder.want_key()

    def _due(self, now_s: float) -> tuple[Framed | None, float]:
        """The next frame, if it may go out now; else how long to wait until the next look."""
        reel, wait_s = self.part.reel if self.part else None, self.pace.wait_s(now_s)
        if not reel or self.viewer is None:
            if now_s - self.last_frame_s > LATE_S and self.viewer is not None:
                self.become("live", self._lack())
            return None, 0.01
        if wait_s > 0.0:
            return None, min(wait_s, 0.02)
        return reel.popleft(), 0.0

    def _lack(self) -> str:
        """Why no frame comes."""
        if not self.pace.frames:
            return "drawing the first block"
        return "the model is slower than real time; old sound is dropped"

    def _encode(self, framed: Framed) -> list[Fragment]:
        """On a thread of the pool."""
        with self._encoding:
            if self.state == "ended":
                return []
            fragments = self._encoder.encode(framed.frame, framed.sound)
            if self._recording:
                try:
                    self._recording.write(self._encoder.init, fragments)
                except OSError:  # the call goes on
                    logging.exception("a recording stopped")
                    self._recording = None
            return fragments

    def _publish(self, fragments: list[Fragment], now_s: float) -> None:
        self._shown = [time_s for time_s in self._shown if now_s - time_s < SHOWN_S] + [now_s]
        if self.first_frame_s is None:
            self.first_frame_s = now_s - self.since_s
        self.become("live", "")
        for viewer in (self.viewer, self._pushed):
            if viewer and not viewer.over and self._encoder.init:
                self._send(viewer, fragments)

    def _send(self, viewer: Viewer, fragments: list[Fragment]) -> None:
        if not viewer.told:
            viewer.head(self._encoder.mime, self._encoder.init)
        for fragment in fragments:
            wanted = viewer.wants_key
            self.dropped += not viewer.show(fragment)
            if viewer.wants_key and not wanted:  # the queue was full
                self._encoder.want_key()

    # what is told

    @property
    def last_frame_s(self) -> float:
        """When the last frame went out."""
        return self._shown[-1] if self._shown else self.since_s

    @property
    def fps(self) -> float:
        """Frames a second that go out."""
        now_s = self._now()
        return sum(now_s - time_s < SHOWN_S for time_s in self._shown) / min(SHOWN_S, max(0.04, now_s - self.since_s))

    def status(self) -> dict[str, Any]:
        """What anyone who holds the call's token may know."""
        return {
            "id": self.name,
            "state": self.state,
            "reason": self.reason,
            "position": self.position,
            "portrait": self.look.name,
            "record": self.record is not None,
            "push": self.push_state,
            "frames": self.pace.frames,
            "fps": round(self.fps, 1),
            "stalls": self.pace.stalls,
            "behind_ms": round(1e3 * self.behind_s),
            "first_frame_ms": None if self.first_frame_s is None else round(1e3 * self.first_frame_s),
            "waiting_ms": round(1e3 * self.line.waiting_s),
            "dropped_ms": round(1e3 * self.line.dropped / self.form.audio_hz),
        }

    def tell(self) -> None:
        """Sends the status."""
        if self.viewer:
            self.viewer.event({"type": "state", **self.status()})
