"""What a process and those that it has started hold, read from outside."""

import contextlib
import os
import threading
from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that a process has started, from whichever thread, and that still run."""
    found = []
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found


def memory(*pids: int) -> float:
    """MB that processes and what they have started hold, shared pages counted once."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
            total += memory(*children(pid))
    return total


def threads(pid: int) -> int:
    """Threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors(pid: int) -> int:
    """Descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Peak:
    """The most memory that a process and its children hold within the `with`, above what they began with."""

    def __init__(self, pid: int) -> None:
        self._pid, self._over, self.grown = pid, threading.Event(), 0.0

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.grown = max(self.grown, memory(self._pid) - self._began)

    def __enter__(self) -> "Peak":
        self._began = memory(self._pid)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
