"""`infer.stream` with an engine that needs no weights: grey frames as bright as the sound is loud.

python -m tests.infer.fake_stream FLAGS          the main itself
python -m tests.infer.fake_stream --cases        argument lists from stdin (JSON), each run in a fork
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np

from infer import door, stream, summary

BLOCK, HOP = 7680, 640
DELAY_S = float(os.environ.get("FAKE_DELAY_S", "0"))


class Engine:
    """Blocks of 12 frames whose brightness is the sound's peak, or a signal's first number where there is one."""

    def __init__(self) -> None:
        self._pending = np.zeros(0, np.float32)
        self._led: list[float] = []

    def _draw(self, sound: np.ndarray) -> np.ndarray:
        time.sleep(DELAY_S)
        padded = np.pad(sound, (0, -sound.size % HOP)).reshape(-1, HOP)
        level = np.clip(np.abs(padded).max(axis=1) * 255, 0, 255).astype(np.uint8)
        led, self._led = self._led[: len(level)], self._led[len(level) :]
        level[: len(led)] = led
        return np.broadcast_to(level[:, None, None, None], (len(level), 96, 96, 3)).copy()

    def push_signals(self, name: str, rows: np.ndarray, speaker: int = 0) -> None:
        """Takes rows of any signal."""
        self._led += [float(row[0]) for row in rows]

    def push_audio(self, samples: np.ndarray, speaker: int = 0) -> list[np.ndarray]:
        """Takes sound, returns whole blocks; only the first of several speakers is seen."""
        if speaker:
            return []
        self._pending = np.concatenate([self._pending, samples])
        whole = len(self._pending) // BLOCK * BLOCK
        blocks, self._pending = np.split(self._pending[:whole], whole // BLOCK or 1), self._pending[whole:]
        return [self._draw(block) for block in blocks if block.size]

    def finish(self) -> list[np.ndarray]:
        """Returns the rest."""
        return [self._draw(self._pending)] if self._pending.size else []


def _measure(meter: Any) -> None:
    meter._opening.extend(np.concatenate(meter._frames).mean((1, 2, 3)) / 255)
    meter._frames = []


def main() -> None:
    """Runs the command with the fake engine."""
    stream.prepare = lambda request: (Engine(), 0.25)
    door.start_jax = lambda cache=None: None
    summary.SyncMeter._measure = _measure  # type: ignore[method-assign]
    door.run(stream.main, stream.define)


def _fork(arguments: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            sys.argv = ["stream", *arguments]
            try:
                main()
            finally:
                sys.stderr.flush()
                os.write(out.fileno(), b"jax was imported\n" if "jax" in sys.modules else b"")
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        return {"code": code, "text": out.read().decode()}


if __name__ == "__main__":
    if sys.argv[1:] == ["--cases"]:
        sys.stdout.write(json.dumps([_fork(arguments) for arguments in json.load(sys.stdin)]))
    else:
        main()
