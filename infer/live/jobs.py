"""Videos that nobody watches while they are made: each a call without a caller, in a seat that nobody live wants."""

import asyncio
import collections
import uuid
from typing import Any

import numpy as np
from absl import logging

from infer.live.call import Call, Look
from infer.live.viewer import Viewer

POLL_S = 0.05  # how often seats and frames are looked at
REMEMBERED = 100  # jobs that are over and can still be asked for


class Job:
    """One video: `open` until its speech is there, `queued`, `running`, then `done` or `failed`."""

    def __init__(self, owner: str, look: Look, due_s: float):
        self.name, self.owner, self.look = uuid.uuid4().hex, owner, look
        self.due_s = due_s  # when its speech has to be there
        self.state, self.reason = "open", "waits for its speech"
        self.samples = np.zeros(0, np.float32)
        self.frames = 0  # of the whole video
        self.call: Call | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ("done", "failed")

    def become(self, state: str, reason: str = "") -> None:
        """Another state."""
        self.state, self.reason = state, reason

    def status(self) -> dict[str, Any]:
        """What its owner may know."""
        drawn = min(self.frames, self.call.pace.frames) if self.call else 0
        about = {"id": self.name, "state": self.state, "reason": self.reason}
        return {**about, "frames": drawn, "of_frames": self.frames, "portrait": self.look.name}


async def _nothing(_: Any) -> None:
    """Where the events and media of a job go; its recording stays."""


class Jobs:
    """All jobs of a server.

    Args:
      desk: whose seats they take.
    """

    def __init__(self, desk: Any):
        self._desk = desk
        self.all: dict[str, Job] = {}
        self._queue: collections.deque[Job] = collections.deque()
        self._running: asyncio.Task | None = None

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return sum(job.state in ("open", "queued") for job in self.all.values()) >= self._desk.limits.jobs

    def open(self, owner: str, look: Look) -> Job:
        """A new job, which waits for its speech."""
        job = Job(owner, look, self._desk.now() + self._desk.limits.connect_s)
        self.all[job.name] = job
        over = [name for name, one in self.all.items() if one.over]
        for name in over[: max(0, len(over) - REMEMBERED)]:
            del self.all[name]
        return job

    def hear(self, job: Job, samples: np.ndarray) -> None:
        """What it says, float32 [n]; it waits for a seat from now on."""
        job.samples, job.frames = samples, -(-samples.size // self._desk.studio.form.hop)
        job.become("queued", "waits for a seat that nobody live wants")
        self._queue.append(job)

    async def end(self, job: Job, reason: str) -> None:
        """Ends a job, and what is there of its video."""
        if job in self._queue:
            self._queue.remove(job)
        if job.call:
            await self._desk.end(job.call, reason)
            if job.call.record:
                job.call.record.unlink(missing_ok=True)
        job.become("failed", reason)

    async def watch(self) -> None:
        """Seats what waits, one at a time, for ever."""
        while True:
            await asyncio.sleep(POLL_S)
            for job in self.all.values():
                if job.state == "open" and self._desk.now() > job.due_s:
                    job.become("failed", "no speech came")
            free = self._running is None or self._running.done()
            if self._queue and free and self._desk.idle_seats:
                self._running = asyncio.ensure_future(self._run(self._queue.popleft()))

    async def _run(self, job: Job) -> None:
        try:
            call = job.call = self._desk.open(job.owner, job.look, keep=True)
            call.say(job.samples)
            job.samples = job.samples[:0]
            job.become("running")
            await self._watched(call, job.frames)
            whole = call.pace.frames >= job.frames
            await self._desk.end(call, "the job is done")
            done, reason = whole and call.record is not None, call.reason
        except Exception:  # the next one may do better
            logging.exception("a job failed")
            done, reason = False, "it failed; the server's log says why"
        if not job.over:
            job.become("done" if done else "failed", "" if done else reason)

    async def _watched(self, call: Call, frames: int) -> None:
        """Looks on until so many frames have gone out, or the call has ended."""
        most, stall_s = 2 * call.form.block_frames, call.limits.stall_s
        viewer = Viewer(_nothing, _nothing, fragments=most, stall_s=stall_s)
        call.attach(viewer)
        sending = asyncio.ensure_future(viewer.run())
        try:
            while call.state != "ended" and call.pace.frames < frames:
                await asyncio.sleep(POLL_S)
        finally:
            sending.cancel()
