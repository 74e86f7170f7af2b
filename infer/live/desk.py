"""Who has a seat, who waits, who has to go: a fixed number of calls at once and a bounded queue before them."""

import asyncio
import collections
import concurrent.futures
import contextlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from avatar_jax.io import guard
from avatar_jax.io.errors import InputError
from infer.live import decode, push, record
from infer.live.audit import Audit
from infer.live.call import Call, Limits, Look
from infer.live.encode import Retouch
from infer.live.figures import Figures
from infer.live.jobs import Jobs
from infer.live.stage import Form, Stage
from infer.live.tongue import Talk

REAP_S = 0.25
SWEEP_S = 60.0  # how often old recordings are looked for
REMEMBERED = 1000  # ended calls whose state and recording can still be asked for
RETRY_S = 10  # what a caller is told who finds the queue full


class Studio(Protocol):
    """What prepares portraits."""

    form: Form

    def prepare(self, look: Look) -> Any:
        """An avatar for the stage; on a thread of its own."""
        ...

    def scene(self, look: Look) -> Any:
        """What a running call changes to."""
        ...

    def check_prompt(self, prompt: str | None) -> str | None:
        """The prompt, where the model reads one. Raises ValueError."""
        ...


class Busy(Exception):
    """No seat, and no room to wait; or the server is about to end."""

    def __init__(self, reason: str, retry_s: int = RETRY_S):
        super().__init__(reason)
        self.reason, self.retry_s = reason, retry_s


class Desk:
    """All calls of a server.

    Args:
      studio: prepares portraits.
      stage: draws.
      limits: what callers may have.
      audit: the log.
      folder: of recordings; None: none are made.
      retouch: for each call, what becomes of its frames before they are encoded.
      sign: signs a finished recording.
      talk: makes what says typed text.
      now: the clock.
    """

    def __init__(
        self,
        studio: Studio,
        stage: Stage,
        limits: Limits,
        *,
        audit: Audit,
        folder: Path | None,
        retouch: Callable[[str], Retouch | None] = lambda name: None,
        sign: record.Sign | None = None,
        talk: Talk | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.studio, self.stage, self.limits, self.audit, self.figures = studio, stage, limits, audit, Figures(self)
        self._folder, self._retouch, self._sign, self.now = folder, retouch, sign, now
        self.talk = talk
        self.calls: dict[str, Call] = {}
        self.active: dict[str, Call] = {}
        self.queue: collections.deque[Call] = collections.deque()
        self.uploads = decode.Uploads()
        self._encoders = concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 2), "encode")
        self.workers = concurrent.futures.ThreadPoolExecutor(2, "prepare")
        self._tasks: set[asyncio.Task] = set()
        self.draining = False
        self.jobs = Jobs(self)
        self.pushes: dict[str, str] = {}  # addresses of the operator's, by name
        self._files = concurrent.futures.ThreadPoolExecutor(1, "files")

    # in and out

    def open(self, owner: str, look: Look, *, keep: bool) -> Call:
        """A new call, with a seat or in the queue. Raises Busy.

        Args:
          owner: who opens it.
          look: what it shows.
          keep: whether it is recorded.
        """
        self.check_room()
        name = uuid.uuid4().hex
        folder = self._folder if keep else None
        call = Call(
            name,
            owner,
            look,
            self.studio.form,
            self.limits,
            pool=self._encoders,
            files=self._files,
            folder=folder,
            retouch=self._retouch(name),
            sign=self._sign,
            talk=self.talk,
            now=self.now,
        )
        self.calls[name] = call
        self.queue.append(call)
        self.figures.opened.inc()
        self.audit.note("opened", call=name, owner=owner, portrait=look.name, consent=True, record=bool(folder))
        self.admit()
        return call

    def check_room(self) -> None:
        """Raises Busy where a new call would neither get a seat nor a place in the queue."""
        if self.draining:
            raise Busy("the server is about to end")
        if not self._free and not self._parked and len(self.queue) >= self.limits.queue:
            self.figures.refused.inc()
            raise Busy(f"all {self.limits.seats} seats and {self.limits.queue} places in the queue are taken")

    @property
    def _free(self) -> int:
        return self.limits.seats - len(self.active)

    @property
    def _parked(self) -> list[Call]:
        """Calls with a seat that nobody looks at and that have been looked at, longest left first."""
        left = [call for call in self.active.values() if call.parked and call.contact_s > call.created_s]
        return sorted(left, key=lambda call: call.contact_s)

    @property
    def free(self) -> int:
        """Seats that a new call would get at once."""
        return 0 if self.draining or self.queue else self._free + len(self._parked)

    @property
    def idle_seats(self) -> int:
        """Seats that nobody has and nobody waits for."""
        return 0 if self.draining or self.queue else self._free

    def admit(self) -> None:
        """Seats for those who wait, in their order; whoever has left one loses it."""
        while self.queue and (self._free or self._parked) and not self.draining:
            if not self._free:
                left = self._parked[0]
                self._leave(left)
                left.become("parked", "another call has taken the seat; connect again to wait for one")
            call = self.queue.popleft()
            self.active[call.name] = call
            call.become("starting", "the portrait is being prepared")
            self.spawn(self._begin(call))
        for place, call in enumerate(self.queue, 1):
            call.become("queued", "all seats are taken", place)

    def rejoin(self, call: Call) -> None:
        """A call whose seat was taken waits for the next one, before all others."""
        if call.state == "parked":
            self.queue.appendleft(call)
            call.become("queued", "all seats are taken", 1)
            self.admit()

    async def _begin(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        try:
            avatar = await loop.run_in_executor(self.workers, self.studio.prepare, call.look)
            if self.active.get(call.name) is not call or call.part:
                return
            joining = call.joining = self.stage.ask(
                self.stage.join, avatar, call.line, call.form, ahead=self.limits.ahead, playing=False
            )
            part = await asyncio.wrap_future(joining)
        except Exception as error:  # a portrait or prompt that the model refuses, a lost device
            logging.exception("a call could not begin")
            await self.end(
                call, f"the call could not begin: {error if isinstance(error, ValueError) else 'see the log'}"
            )
            return
        if self.active.get(call.name) is call and call.state == "starting":
            call.begin(part)
        else:
            self.stage.ask(self.stage.leave, part)

    async def change(self, call: Call, look: Look) -> None:
        """Another portrait or prompt, from the next block on. Raises ValueError."""
        call.look = look
        if call.part:
            scene = await asyncio.get_running_loop().run_in_executor(self.workers, self.studio.scene, look)
            if call.part:
                await asyncio.wrap_future(self.stage.ask(call.part.guest.show, scene))
        self.audit.note("changed", call=call.name, portrait=look.name)

    def _leave(self, call: Call) -> None:
        self.active.pop(call.name, None)
        joining, call.joining = call.joining, None
        call.rise()
        if joining:
            self.stage.forgo(joining)

    async def end(self, call: Call, reason: str) -> None:
        """Ends a call and lets the next one in."""
        if call.state == "ended":
            return
        self._leave(call)
        if call in self.queue:
            self.queue.remove(call)
        await call.end(reason)
        seconds = round(call.pace.frames / call.form.fps, 2)
        self.figures.over(call)
        self.audit.note("ended", call=call.name, owner=call.owner, reason=reason, seconds=seconds, **call.signed)
        self.admit()
        while len(self.calls) > REMEMBERED:
            old = next((name for name, one in self.calls.items() if one.state == "ended"), None)
            if old is None:
                break
            del self.calls[old]

    async def portrait(self, data: bytes) -> np.ndarray:
        """A portrait of the model's size from an upload. Raises guard.Refused, decode.Crowded."""
        form = self.studio.form
        return await self.uploads.portrait(data, height=form.height, width=form.width)

    async def sound(self, data: bytes) -> np.ndarray:
        """Speech at the model's rate from an upload. Raises guard.Refused, decode.Crowded."""
        return await self.uploads.sound(data, audio_hz=self.studio.form.audio_hz, seconds=self.limits.speech_s)

    async def spoken(self, text: str) -> np.ndarray:
        """A text in the voice, float32 [n], whole. Raises InputError where it does not speak, guard.Refused."""
        if self.talk is None:
            raise InputError("there is no voice")
        voice, most, pieces = self.talk.voice(), self.limits.speech_s, [np.zeros(0, np.float32)]

        def say() -> None:
            seconds = 0.0
            with contextlib.closing(voice.say(text)) as said:  # type: ignore[type-var]
                for piece in said:
                    pieces.append(piece)
                    seconds += piece.size / self.studio.form.audio_hz
                    if seconds > most:
                        raise guard.Refused("too_long", f"text: becomes longer than {most:.0f} s; send it in parts")

        try:
            await asyncio.to_thread(say)
        finally:
            voice.close()
        return np.concatenate(pieces)

    @property
    def keeps(self) -> bool:
        """Whether recordings are kept."""
        return self._folder is not None

    # time

    def _overdue(self, call: Call, now_s: float) -> str:
        """Why a call has to end; '' if it may stay."""
        limits = self.limits
        gone_s = now_s - call.contact_s if call.viewer is None else 0.0
        came = call.contact_s > call.created_s
        if call.state == "ended":
            return ""
        if gone_s > (limits.resume_s if came else limits.connect_s):
            return "the connection did not come back" if came else "nobody connected"
        if call.state == "queued":
            return "waited too long for a seat" if now_s - call.since_s > limits.queue_s else ""
        if now_s - max(call.sound_s, call.since_s) > limits.idle_s and not call.line.waiting_s:
            return f"no sound for {limits.idle_s:.0f} s"
        return f"{limits.call_s:.0f} s are the most a call may last" if now_s - call.created_s > limits.call_s else ""

    async def reap(self) -> None:
        """Ends what is overdue."""
        now_s = self.now()
        for call in list(self.calls.values()):
            reason = self._overdue(call, now_s)
            if reason:
                await self.end(call, reason)
        self.admit()

    async def watch(self) -> None:
        """Reaps, and tells every call its state, for ever."""
        while True:
            await asyncio.sleep(REAP_S)
            try:
                await self.reap()
            except Exception:  # whatever it was, others still have to be told and to go
                logging.exception("the desk could not end what is overdue")
            for call in self.active.values():
                call.tell()

    async def sweep(self, folder: Path) -> None:
        """Deletes old recordings, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                for path in await loop.run_in_executor(
                    self._files, record.expire, folder, time.time() - self.limits.keep_s
                ):
                    self.audit.note("recording deleted", call=path.stem)
            except OSError:
                logging.exception("old recordings could not be deleted")
            await asyncio.sleep(SWEEP_S)

    # start and end

    @property
    def ready(self) -> str:
        """'' if a new call would be seated at once, else why not."""
        if self.stage.failed:
            return "the model has failed"
        if self.draining:
            return "draining"
        return "" if self.free else "no seat is free"

    def start(self) -> None:
        """Begins to watch; in the event loop."""
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in record.mend(self._folder, self._sign):
                self.audit.note("recording mended", call=path.stem)
            self.spawn(self.sweep(self._folder))
        self.stage.start()
        self.spawn(self.watch())
        self.spawn(self.jobs.watch())

    def spawn(self, work: Any) -> None:
        """Runs something until it ends, or the desk does."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def push(self, call: Call, name: str) -> None:
        """Sends a call to one of the operator's targets as well."""
        call.push = name
        self.audit.note("pushed", call=call.name, target=name)
        self.spawn(push.run(call, self.pushes[name]))

    async def drain(self, grace_s: float) -> None:
        """Takes nobody in any more, lets blocks under way be shown, ends every call, stops."""
        self.draining = True
        for call in list(self.queue):
            await self.end(call, "the server ends")
        for call in self.active.values():
            if call.viewer:
                call.viewer.event({"type": "closing", "reason": "the server ends"})
        if self.active:
            await asyncio.sleep(grace_s)
        await asyncio.gather(*(self.end(call, "the server ends") for call in list(self.calls.values())))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.stage.stop()
        self.uploads.close()
        self.workers.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown()
        self._files.shutdown()
