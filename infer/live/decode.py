"""Uploads to arrays: the one place where bytes of strangers meet a decoder, which runs in a limited child process."""

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable

import numpy as np

from avatar_jax.io import guard
from avatar_jax.io.errors import InputError

WORKERS = 4  # files that are decoded at a time: one that takes all of its time leaves room for others
WAITING = 16  # files that may wait for that


class Crowded(Exception):
    """More uploads than may wait."""


class Uploads:
    """Decodes files on threads that wait for the children; they, and the process that forks them, end with `close`.

    Args:
      decoder: what forks the children; one of its own if left out.
    """

    def __init__(self, decoder: guard.Guard | None = None):
        self._guard = decoder or guard.Guard(workers=WORKERS)
        self._pool = concurrent.futures.ThreadPoolExecutor(WORKERS, "decode")
        self._taken = 0

    def start(self) -> None:
        """Starts the process that forks, so that the first upload does not wait for it. Raises RuntimeError."""
        self._guard.start()

    async def portrait(self, data: bytes, *, height: int, width: int) -> np.ndarray:
        """A PNG, JPEG or WebP as uint8 [H, W, 3]. Raises guard.Refused, Crowded."""
        return await self._decode("portrait", functools.partial(self._guard.picture, data, height=height, width=width))

    async def sound(self, data: bytes, *, audio_hz: int, seconds: float) -> np.ndarray:
        """A recording as float32 [n] at `audio_hz`, of at most so many seconds. Raises guard.Refused, Crowded."""
        job = functools.partial(self._guard.sound, data, audio_hz=audio_hz, seconds=seconds)
        return await self._decode("speech", job)

    async def _decode(self, what: str, job: Callable[[], np.ndarray]) -> np.ndarray:
        if self._taken >= WORKERS + WAITING:
            raise Crowded("uploads: too many wait to be read")
        self._taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, job)
        except guard.Refused as refusal:
            raise guard.Refused(refusal.name, f"{what}: {refusal}") from refusal
        finally:
            self._taken -= 1

    def close(self) -> None:
        """Ends every process and thread; files under way are given up."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._guard.close()
        self._pool.shutdown()
        self._guard.close()  # a thread that was about to hand a file over may have started it once more


def pcm16(data: bytes) -> np.ndarray:
    """Little-endian PCM16 as float32 [n] in [-1, 1]. Raises InputError."""
    if len(data) % 2:
        raise InputError(f"sound: {len(data)} bytes are no whole 16-bit samples")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0
