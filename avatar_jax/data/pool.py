"""A worker process that may hang, grow or die over a video without harm to the run: killed, replaced, and said why."""

import contextlib
import dataclasses
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from avatar_jax.data.cut import Clip, Cut
from avatar_jax.io.footage import Unusable

REASONS = {
    "time": "took longer than a file is given",
    "memory": "needed more memory than a file is given",
    "crash": "the process that read it died",
    "failed": "raised an error that no broken file should; worth a report",
}
START_S = 120.0  # for imports, on a loaded machine
END_S = 5.0


class Lost(Unusable):
    """A file whose worker was stopped: nothing of it is kept, since how far it came was chance."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one file may cost: seconds that the run waits for it, memory in MiB."""

    seconds: float
    megabytes: int


class Worker:
    """Cuts one video at a time in a process of its own; a context manager."""

    def __init__(self, how: Cut, limits: Limits) -> None:
        self._how, self._limits = how, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer, self._left = bytearray(), 0.0

    def _start(self) -> subprocess.Popen[bytes]:
        settings = {"cut": dataclasses.asdict(self._how), "megabytes": self._limits.megabytes}
        command = [sys.executable, "-m", "avatar_jax.data.worker", json.dumps(settings)]
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = os.environ | one | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "0"}
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run, which must not take it for a video's crash
        )
        self._process, self._buffer, self._left = process, bytearray(), START_S
        self._line()
        return process

    def _receive(self, size: int) -> None:
        """Waits until so many bytes are there. Raises Lost."""
        assert self._process and self._process.stdout
        pipe = self._process.stdout.fileno()
        while len(self._buffer) < size:
            began = time.monotonic()
            ready, _, _ = select.select([pipe], [], [], max(0.0, self._left))
            self._left -= time.monotonic() - began
            part = os.read(pipe, 1 << 20) if ready else b""
            if not part:
                raise self._lost(dead=bool(ready))
            self._buffer += part

    def _lost(self, *, dead: bool) -> Lost:
        process = self._process
        self.close()
        if not dead:
            return Lost("time", f"took more than {self._limits.seconds:g} s")
        code = process.returncode if process else None
        return Lost("crash", f"its worker ended with {code}")

    def _line(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            self._receive(len(self._buffer) + 1)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return json.loads(line)

    def _array(self, shape: list[int], dtype: Any) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._receive(size)
        array = np.frombuffer(bytes(self._buffer[:size]), dtype).reshape(shape)
        del self._buffer[:size]
        return array

    def clips(self, path: str | os.PathLike[str]) -> Iterator[Clip]:
        """Every clip of a video, as `cut.clips`; to be read to its end.

        Raises:
            Lost: the worker was stopped.
            Unusable: the video, or the rest of it, cannot be used; the clips that came before are good.
        """
        process = self._process or self._start()
        self._left = self._limits.seconds
        assert process.stdin
        try:
            process.stdin.write(json.dumps(os.fspath(path)).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._lost(dead=True) from error
        while "end" not in (answer := self._line()):
            clip = Clip(**answer["clip"])
            if answer["shapes"]:
                frames, samples = answer["shapes"]
                clip.frames, clip.waveform = self._array(frames, np.uint8), self._array(samples, np.float32)
            yield clip
        reason, detail = answer["end"]["reason"], answer["end"]["detail"]
        if reason in REASONS:
            self.close()  # what a failure left behind stays in that process
            raise Lost(reason, detail)
        if reason is not None:
            raise Unusable(reason, detail)

    def kill(self) -> None:
        """Ends the process from another thread; the reader finds out."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(END_S)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
