"""Voices: text to sound in pieces, behind three methods."""

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from avatar_jax.io.errors import InputError
from infer.talk.endpoint import Endpoint

AUDIO_HZ = 16_000  # what every voice gives
SPEECH_HZ = 24_000  # raw PCM of OpenAI's speech service
PIECE_BYTES = 4096
MISSING = "the bundled voice is not installed; pip install espeakng-loader, or name a service with --voice"


class Voice(Protocol):
    """What speaks."""

    def say(self, text: str) -> Iterator[np.ndarray]:
        """Mono float32 pieces [n] at 16 kHz, as they are made; ends early after `cancel`."""
        ...

    def cancel(self) -> None:
        """Stops what is being said, from any thread; nothing happens where nothing is."""
        ...

    def close(self) -> None:
        """Frees what the voice holds."""
        ...


def installed() -> bool:
    """Whether the bundled voice is there."""
    return importlib.util.find_spec("espeakng_loader") is not None


def resampled(pieces: Iterable[bytes], audio_hz: int) -> Iterator[np.ndarray]:
    """PCM16 in pieces of any size as mono float32 [n] at 16 kHz."""
    import soxr

    stream = soxr.ResampleStream(audio_hz, AUDIO_HZ, 1, dtype="float32", quality="HQ")
    left = b""
    for piece in pieces:
        whole = left + piece
        even = len(whole) // 2 * 2
        samples = np.frombuffer(whole[:even], "<i2").astype(np.float32) / 32768
        left, ready = whole[even:], stream.resample_chunk(samples)
        if ready.size:
            yield ready
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


class Espeak:
    """The bundled voice: eSpeak NG, small, offline, a hundred languages; a process for every text."""

    def __init__(self, *, voice: str = "en", words_a_minute: int = 160) -> None:
        """Raises InputError if the library is not installed."""
        if not installed():
            raise InputError(MISSING)
        self._command = [sys.executable, "-m", "infer.talk.espeak", voice, str(words_a_minute)]
        self._process: subprocess.Popen[bytes] | None = None

    def say(self, text: str) -> Iterator[np.ndarray]:
        """As `Voice.say`. Raises InputError if the library does not speak."""
        with subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            self._process, out = process, process.stdout
            assert process.stdin and out
            try:
                with contextlib.suppress(BrokenPipeError):  # it has ended already
                    process.stdin.write(text.encode("utf-8", "replace"))
                    process.stdin.close()
                rate = out.readline()
                if rate:
                    yield from resampled(iter(lambda: out.read(PIECE_BYTES), b""), int(rate))
            finally:
                cancelled, self._process = self._process is not process, None
                process.kill()
        if not rate and not cancelled:
            raise InputError("the bundled voice does not speak; its library is damaged, install it again")

    def cancel(self) -> None:
        """As `Voice.cancel`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def close(self) -> None:
        """As `Voice.close`."""
        self.cancel()


class Service:
    """A voice of any OpenAI-compatible speech service."""

    def __init__(self, url: str, *, key: str = "", model: str = "tts-1", voice: str = "alloy") -> None:
        """Raises InputError for what is no address."""
        self._endpoint, self._asked = Endpoint(url, key=key), {"model": model, "voice": voice}

    def say(self, text: str) -> Iterator[np.ndarray]:
        """As `Voice.say`. Raises InputError if the service cannot be reached or answers with an error."""
        body = {**self._asked, "input": text, "response_format": "pcm"}
        return resampled(self._endpoint.post("/audio/speech", body), SPEECH_HZ)

    def cancel(self) -> None:
        """As `Voice.cancel`."""
        self._endpoint.cancel()

    def close(self) -> None:
        """As `Voice.close`."""
        self.cancel()
