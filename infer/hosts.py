"""Several processes that run one command together, on one machine or on many.

    python -m infer.stream ... --coordinator=10.0.0.1:9911 --processes=2 --process=0      # and the same with 1
    srun python -m infer.stream ... --coordinator=auto                                    # Slurm, JobSet, TPU pods

Every process gives the same command and reads the same files; the first one writes the video. JAX joins their devices
into one mesh; beside it each process keeps a line open to the first, so that one that is lost is missed at once and by
name, while collectives that wait for it would wait for ever.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

from absl import flags

from infer import door

FLAGS = flags.FLAGS
BEAT_S, SILENCE_S = 2.0, 15.0  # a sign of life, and how long one may be missing
JOIN_S = 300  # to find each other
_HERE, _DONE = b"here", b"done"


def define() -> None:
    """The flags."""
    flags.DEFINE_string("coordinator", None, "Address of the first of several processes, host:port, or 'auto'.")
    flags.DEFINE_integer("processes", None, "How many processes run this command together.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)


def check() -> None:
    """Refuses flags that do not belong together: ValueError."""
    told = [flag for flag in ("processes", "process") if getattr(FLAGS, flag) is not None]
    address = FLAGS.coordinator
    if address in (None, "auto"):
        if told:
            raise ValueError(f"--{told[0]}: needs --coordinator=host:port, the address of the first process")
        return
    _, _, port = address.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"--coordinator={address}: must be host:port, or 'auto' under Slurm, Kubernetes or a TPU pod")
    if len(told) < 2:
        raise ValueError("--coordinator: needs --processes=N and --process=I, from 0 to N - 1")
    if FLAGS.process >= FLAGS.processes:
        raise ValueError(f"--process={FLAGS.process}: must be below --processes={FLAGS.processes}")


def first() -> bool:
    """Whether this process is the one that writes. After `together` has begun."""
    if FLAGS.coordinator is None:
        return True
    import jax

    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Joins the processes for as long as it is open; alone, does nothing.

    When one of them is lost, the others end with one line and code 3.

    Raises:
      ValueError: the others are not found.
    """
    if FLAGS.coordinator is None:
        yield
        return
    _join()
    watch = _Watch()
    try:
        yield
    except SystemExit:
        watch.end()  # it ends because it was asked to
        raise
    except Exception:
        watch.judge()  # a lost process often shows first as an error of some collective
        raise
    watch.end()


def _join() -> None:
    import jax

    told: dict[str, Any] = {}
    if FLAGS.coordinator != "auto":
        told = {
            "coordinator_address": FLAGS.coordinator,
            "num_processes": FLAGS.processes,
            "process_id": FLAGS.process,
        }
    try:
        jax.distributed.initialize(**told, initialization_timeout=JOIN_S, heartbeat_timeout_seconds=int(SILENCE_S))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--coordinator={FLAGS.coordinator}: the others are not found ({reason})") from error


def _tell(text: str) -> str:
    """A line of the first process, in all of them."""
    import numpy as np
    from jax.experimental import multihost_utils

    line = np.frombuffer(text.encode().ljust(256), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(line))).decode().strip()


class _Watch:
    """Lines between the first process and each other one."""

    def __init__(self) -> None:
        import jax

        self._number, self._count = jax.process_index(), jax.process_count()
        self._lost, self._over = threading.Event(), threading.Event()
        self._names, self._lines = self._connect()
        for number, line in self._lines.items():
            threading.Thread(target=self._listen, args=(number, line), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def _connect(self) -> tuple[dict[int, str], dict[int, connection.Connection]]:
        """Every process that this one watches: its machine, and a line to it."""
        host, key = socket.gethostname(), secrets.token_hex(16)
        if self._number:
            address, port, key = _tell("").split()
            line = connection.Client((address, int(port)), authkey=bytes.fromhex(key))
            line.send((self._number, host))
            return {0: line.recv()}, {0: line}
        reached = "127.0.0.1" if FLAGS.coordinator == "auto" else FLAGS.coordinator.rpartition(":")[0]
        if FLAGS.coordinator == "auto" and self._count > 1:
            reached = socket.gethostbyname(host)
        with connection.Listener(("", 0), backlog=self._count, authkey=bytes.fromhex(key)) as listener:
            _tell(f"{reached} {listener.address[1]} {key}")
            names, lines = {}, {}
            while len(lines) < self._count - 1:
                line = listener.accept()
                number, name = line.recv()
                line.send(host)
                names[number], lines[number] = name, line
        return names, lines

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._send(_HERE)

    def _send(self, sign: bytes) -> None:
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.send_bytes(sign)

    def _listen(self, number: int, line: connection.Connection) -> None:
        try:
            while line.poll(SILENCE_S):
                if line.recv_bytes() == _DONE:
                    return
        except (EOFError, OSError):
            pass
        if not self._over.is_set():
            self._lost.set()
            lost = f"process {number} of {self._count} on {self._names[number]} is lost"
            door.say(f"{lost}: this run cannot go on without its devices, start it again everywhere")
            sys.stderr.flush()
            os._exit(door.LOST)  # nothing else ends threads that wait for a collective

    def judge(self) -> None:
        """Waits for the verdict: whether somebody is lost."""
        time.sleep(SILENCE_S + BEAT_S)

    def end(self) -> None:
        """Says that this process is done."""
        self._over.set()
        self._send(_DONE)
