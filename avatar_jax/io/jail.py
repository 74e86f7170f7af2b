"""The process in which files of strangers are decoded, and what it forks for each of them.

`python -m avatar_jax.io.jail FD` imports the decoders once and waits at a socket. Every order comes with two
descriptors, the file and a pipe for the answer; a child is forked for it, whose limits the kernel keeps: address space,
processor seconds, wall-clock seconds, file sizes and descriptors. What outlives its own alarm, because it was stopped
or took the alarm away, is killed from here. An answer is a line of JSON, then the bytes of an array.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from avatar_jax.io.errors import InputError

MEBIBYTE = 2**20
DESCRIPTORS = 32
CHANNELS, RATES, STREAMS = 2, (4_000, 192_000), 8  # of a recording
CONTAINERS = ("wav", "mp3", "flac", "ogg", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # as FFmpeg names them
MAX_FDS = 2
GRACE_S, LOOK_S = 1.0, 0.25  # that a child may live beyond its alarm; how often that is looked at
READ_SAMPLES, SLACK_S = 65536, 1.0  # decoded at a time; by which a header may be wrong


def picture(path: str, order: dict[str, Any]) -> np.ndarray:
    """A portrait at the size asked for, uint8 [H, W, 3]. Raises InputError."""
    from avatar_jax.io.image import load_portrait

    return load_portrait(path, height=order["height"], width=order["width"])


def _check_recording(path: str, seconds: float) -> float:
    """Refuses by the header what would take long to decode; the seconds it may hold. Raises InputError."""
    from avatar_jax.io.decoder import DECLARED, open_container

    with open(path, "rb") as file, open_container(file) as container:
        if container.format.name not in CONTAINERS:
            raise Refusal("not_allowed", f"is {container.format.name}; send wav, flac, mp3, ogg, opus, m4a or webm")
        if len(container.streams) > STREAMS:
            raise Refusal("not_allowed", f"holds {len(container.streams)} tracks; send one of sound alone")
        track = container.streams.best("audio")
        if track is None:
            raise Refusal("not_allowed", "has no audio track; send a recording")
        if not RATES[0] <= (track.rate or 0) <= RATES[1]:
            raise Refusal("not_allowed", f"has {track.rate} samples a second; {RATES[0]} to {RATES[1]} are read")
        if track.channels > CHANNELS:
            raise Refusal("not_allowed", f"has {track.channels} channels; send mono or stereo")
        states = [track.duration * track.time_base] if track.duration else []
        states += [container.duration / 1e6] if container.duration else []
        stated = float(max(states, default=0.0))
        if stated > seconds:
            raise Refusal("too_long", f"says it lasts {stated:.0f} s; at most {seconds:.0f} s are read")
        return min(seconds, stated + SLACK_S) if stated and container.format.name in DECLARED else seconds


def recording(path: str, order: dict[str, Any]) -> np.ndarray:
    """A recording, float32 [n] mono at the rate asked for. Raises InputError."""
    from avatar_jax.io.audio import open_audio

    seconds = _check_recording(path, order["seconds"])
    found, size = np.empty(round(seconds * order["audio_hz"]), np.float32), 0  # no page is there before it is written
    with open_audio(path, audio_hz=order["audio_hz"]) as stream:
        for block in stream.blocks(READ_SAMPLES):
            if size + block.size > found.size:
                raise Refusal("too_long", f"goes on after {seconds:.0f} s, whatever it says")
            found[size : size + block.size] = block
            size += block.size
    return found[:size]


class Refusal(InputError):
    """A refusal with the name that the outside sees."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def _space() -> int:
    """Bytes of addresses in use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def limit(order: dict[str, Any]) -> None:
    """Takes from this process what an order does not need; the kernel ends it where it goes on all the same."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, order["wall_s"])
    space = _space() + order["memory_mib"] * MEBIBYTE
    limits = {
        resource.RLIMIT_AS: space,
        resource.RLIMIT_CPU: max(1, round(order["wall_s"])),
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def _reason(error: Exception, path: str) -> dict[str, str]:
    """The answer to a file that is refused; messages never carry a path."""
    reason = str(error).removeprefix(f"{path}: ").replace(path, "the file")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return {"name": "too_large", "reason": "needs more memory than a file may; send a smaller one"}
        if isinstance(cause, Refusal):
            return {"name": cause.name, "reason": reason.removeprefix(f"{path}: ")}
        cause = cause.__cause__ or cause.__context__
    if "megapixels" in reason:
        return {"name": "too_many_pixels", "reason": reason}
    if isinstance(error, InputError):
        return {"name": "damaged", "reason": reason}
    return {"name": "damaged", "reason": "cannot be decoded; export it again"}


KINDS: dict[str, Callable[[str, dict[str, Any]], np.ndarray]] = {"picture": picture, "recording": recording}


def serve_one(order: dict[str, Any], file: int, answer: int) -> None:
    """In a child: decodes one file within its limits and answers."""
    limit(order)
    path = f"/proc/self/fd/{file}"
    try:
        array = np.ascontiguousarray(KINDS[order["kind"]](path, order))
        said: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    except Exception as error:
        array, said = np.zeros(0, np.uint8), _reason(error, path)
    with os.fdopen(answer, "wb") as out:
        out.write(json.dumps(said).encode() + b"\n")
        out.write(array.data.cast("B") if array.size else b"")


def warm() -> None:
    """Imports what the children will need, and uses it once: a fork shares it."""
    import av
    import soxr
    from PIL import Image

    for module in ("audio", "decoder", "image"):
        importlib.import_module(f"avatar_jax.io.{module}")
    Image.init()
    soxr.resample(np.zeros(160, np.float32), 16000, 8000)
    av.CodecContext.create("pcm_s16le", "r")


def bury(running: dict[int, float]) -> None:
    """Forgets children that have ended and kills those that should have; `running`: handle and last moment of each."""
    ended = select.select(list(running), [], [], 0.0)[0]
    for handle, last_s in list(running.items()):
        if handle not in ended and time.monotonic() < last_s:
            continue
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
        del running[handle]


def main(control: socket.socket) -> None:
    """Forks a child for every order until the other end closes."""
    warm()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries children at once
    control.sendall(b"ready")
    running: dict[int, float] = {}
    while True:
        asked = select.select([control], [], [], LOOK_S if running else None)[0]
        bury(running)
        if not asked:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, 4096, MAX_FDS)
        if not message:
            return
        order = json.loads(message)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                control.close()
                for handle in running:
                    os.close(handle)
                serve_one(order, *descriptors)
                code = 0
            finally:
                os._exit(code)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            running[os.pidfd_open(child)] = time.monotonic() + order["wall_s"] + GRACE_S


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
