"""Files of strangers to arrays: bytes in, a picture or sound out, or a refusal with a name.

Nothing is decoded in this process. The size and the first bytes are looked at here; the rest happens in children of a
process kept for it (`jail`), each for one file, with limits on memory, processor and time. No name that a stranger
chose is seen by anything.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.io.errors import InputError

PICTURE_BYTES, SOUND_BYTES = 8 * 2**20, 32 * 2**20
SOUND_S, TEXT_CHARACTERS = 600.0, 2000
WALL_S, START_S = 10.0, 120.0  # of a child; of the process that forks them, on a machine that is busy
MEMORY_MIB = 512  # that a child may take: a transparent picture of 16 megapixels is decoded within it
WORKERS = 2
HEAD_BYTES = 4096  # of the line before an array
PICTURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}
MPEG_LAYERS = (0xE2, 0xE4, 0xE6)  # after 0xFF: the sync of MPEG audio and its layer
ARRAYS = {"uint8": 3 * 2**24, "float32": 2**26}  # what a child may answer with, and the most elements


class Refused(InputError):
    """A file that is not taken; `name` says why in one word, the message in a line.

    Names: empty, too_large, not_allowed (its kind), too_many_pixels, too_long, damaged, out_of_time.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def is_picture(head: bytes) -> bool:
    """Whether a file's first 16 bytes are a PNG's, a JPEG's or a WebP's."""
    return head.startswith(tuple(PICTURES.values())) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def is_recording(head: bytes) -> bool:
    """Whether a file's first 16 bytes are those of wav, flac, ogg, mp3, aac, mp4 or webm."""
    if head[:4] == b"RIFF":
        return head[8:12] == b"WAVE"
    mpeg = len(head) > 1 and head[0] == 0xFF and (head[1] & 0xE6 in MPEG_LAYERS or head[1] & 0xF6 == 0xF0)
    return head.startswith((b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3")) or head[4:8] == b"ftyp" or mpeg


def clean_text(text: str) -> str:
    """A prompt in NFC, without surrounding space. Raises Refused for control characters or more than 2000."""
    text = unicodedata.normalize("NFC", text).strip()
    if len(text) > TEXT_CHARACTERS:
        raise Refused("too_long", f"text of {len(text)} characters; at most {TEXT_CHARACTERS} are read")
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Cn") and letter not in "\n\t" for letter in text):
        raise Refused("not_allowed", "text holds control characters; send plain text")
    return text


class Guard:
    """Decodes uploads; may be called from any thread. A context manager."""

    def __init__(self, *, workers: int = WORKERS, wall_s: float = WALL_S, memory_mib: int = MEMORY_MIB) -> None:
        """Nothing runs until the first file, or `start`.

        Args:
          workers: files that are decoded at a time; others wait.
          wall_s: seconds that one may take.
          memory_mib: memory that one may take.
        """
        self._limits = {"wall_s": wall_s, "memory_mib": memory_mib}
        self._free, self._lock = threading.BoundedSemaphore(workers), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Starts the process that forks, where it does not run. Raises RuntimeError if it cannot."""
        with self._lock:
            self._connect()

    def _connect(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps orders apart
        root = str(Path(__file__).parents[2])
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        paths = os.pathsep.join([root, *filter(None, sys.path)])
        kept |= {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "avatar_jax.io.jail", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=kept,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control = ours
        ours.settimeout(START_S)
        if ours.recv(16) != b"ready":
            self._end()
            raise RuntimeError("the decoding process does not start; run python -m infer.doctor")
        return ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and whatever it has forked
            self._process.wait()
        self._control = self._process = None

    def close(self) -> None:
        """Ends every process."""
        with self._lock:
            self._end()

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def picture(self, data: bytes, *, height: int, width: int) -> np.ndarray:  # uint8 [H, W, 3]
        """A PNG, JPEG or WebP, upright, scaled to cover the frame and cropped at its centre. Raises Refused."""
        _check(data, PICTURE_BYTES, is_picture(data[:16]), "is no PNG, JPEG or WebP picture")
        return self._decode(data, {"kind": "picture", "height": height, "width": width})

    def sound(self, data: bytes, *, audio_hz: int = 16_000, seconds: float = SOUND_S) -> np.ndarray:  # float32 [n]
        """A recording as mono sound in [-1, 1]. Raises Refused."""
        _check(data, SOUND_BYTES, is_recording(data[:16]), "is no wav, flac, mp3, ogg, opus, m4a or webm recording")
        return self._decode(data, {"kind": "recording", "audio_hz": audio_hz, "seconds": seconds})

    def _decode(self, data: bytes, order: dict[str, Any]) -> np.ndarray:
        with self._free:
            file = os.memfd_create("upload")
            try:
                with os.fdopen(os.dup(file), "wb") as out:
                    out.write(data)
                answer = self._send(order | self._limits, file)
            finally:
                os.close(file)
            with os.fdopen(answer, "rb", buffering=0) as pipe:
                return _Answer(pipe, self._limits["wall_s"]).array()

    def _send(self, order: dict[str, Any], file: int) -> int:
        """Hands an order over; returns the end of the pipe at which the answer comes."""
        ours, theirs = os.pipe()
        try:
            with self._lock:
                message = json.dumps(order).encode()
                try:
                    socket.send_fds(self._connect(), [message], [file, theirs])
                except OSError:  # it has just ended: once more with a new one
                    self._end()
                    socket.send_fds(self._connect(), [message], [file, theirs])
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return ours


def _check(data: bytes, most: int, known: bool, unknown: str) -> None:
    """What is refused without a decoder. Raises Refused."""
    if not data:
        raise Refused("empty", "holds 0 bytes; send a file with content")
    if len(data) > most:
        raise Refused("too_large", f"holds {len(data)} bytes; at most {most} are read")
    if not known:
        raise Refused("not_allowed", f"{unknown}; export it as one")


class _Answer:
    """What a child writes into its pipe, until a deadline."""

    def __init__(self, pipe: Any, wall_s: float) -> None:
        self._pipe, self._ends = pipe, time.monotonic() + wall_s
        self._poller = select.poll()
        self._poller.register(pipe, select.POLLIN | select.POLLHUP)

    def _wait(self) -> None:
        left = self._ends + 1.0 - time.monotonic()  # its own alarm comes first
        if left <= 0 or not self._poller.poll(left * 1e3):
            raise Refused("out_of_time", "takes too long to decode; send a smaller file")

    def _died(self) -> Refused:
        late = time.monotonic() > self._ends - 0.2
        name, reason = ("out_of_time", "takes too long to decode") if late else ("damaged", "ends its decoder")
        return Refused(name, f"{reason}; export it again")

    def _head(self) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            self._wait()
            letter = self._pipe.read(1)
            if not letter or len(line) > HEAD_BYTES:
                raise self._died()
            line += letter
        return json.loads(line)

    def _empty(self) -> np.ndarray:
        """Room for the array; whatever a child says that is no answer is its end. Raises Refused."""
        try:
            said = self._head()
            if "name" in said:
                raise Refused(str(said["name"]), " ".join(str(said["reason"]).split()))
            if math.prod(said["shape"]) > ARRAYS[said["dtype"]]:
                raise Refused("too_large", "becomes larger than anything that was asked for")
            return np.empty(said["shape"], said["dtype"])
        except Refused:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise self._died() from error

    def array(self) -> np.ndarray:
        """The array. Raises Refused."""
        found = self._empty()
        left = found.data.cast("B") if found.size else memoryview(b"")
        while left:
            self._wait()
            size = self._pipe.readinto(left)
            if not size:
                raise self._died()
            left = left[size:]
        return found
