"""Recordings as a stream of mono float32 sound, in constant memory whatever the length or format.

`soxr` resamples as a stream with an exact ratio: the length is round(n * audio_hz / source_hz) after hours
too.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from avatar_jax.io.decoder import ADVICE, READ_SAMPLES, FfmpegSource, SndfileSource, ffmpeg_knows
from avatar_jax.io.errors import InputError, open_input


class AudioStream:
    """An open recording; a context manager. Read once, front to back, with `blocks` or `read`.

    Attributes:
        audio_hz: rate of the sound delivered.
        source_hz: rate of the file.
        duration_s: the length that the file's header states, None where it does not; an estimate.
    """

    def __init__(self, path: str | os.PathLike[str], audio_hz: int | None) -> None:
        self.path = path
        self._file = open_input(path, kind="recording")
        self._source: FfmpegSource | SndfileSource | None = None
        head = self._file.read(16)
        self._file.seek(0)
        media = ffmpeg_knows(head)
        advice = "cannot be decoded, it is damaged or incomplete; copy or export it again"
        self._undecodable = advice if media else f"is not a recording; {ADVICE}"
        with self._boundary():
            self._source = FfmpegSource(self._file) if media else SndfileSource(self._file)
            self.source_hz, self.duration_s = self._source.source_hz, self._source.duration_s
            if self.source_hz <= 0:
                raise InputError("states no sample rate; export it again")
        self.audio_hz = audio_hz or self.source_hz
        self._sound = self._resampled(self._source.chunks())
        self._pending = np.zeros(0, np.float32)
        self._fill(1)
        if not self._pending.size:
            self.close()
            raise InputError(f"{path}: holds no sound (0 samples); {ADVICE}")

    @contextlib.contextmanager
    def _boundary(self) -> Iterator[None]:
        """Decoders raise a dozen exception types on damaged bytes: all become InputError."""
        try:
            yield
        except Exception as error:
            self.close()
            reason = error if isinstance(error, InputError) else self._undecodable
            raise InputError(f"{self.path}: {reason}") from error

    def _finite(self, chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The chunks, checked: one NaN would spread through the resampler and the model's whole memory."""
        total = 0
        for chunk in chunks:
            good = np.isfinite(chunk)
            if not good.all():
                time = (total + int(np.argmin(good))) / self.source_hz
                raise InputError(f"has a NaN or infinite sample at {time:.3f} s; export it again as 16-bit PCM")
            total += chunk.size
            yield chunk

    def _resampled(self, chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        if self.source_hz == self.audio_hz:
            yield from (np.clip(chunk, -1, 1) for chunk in self._finite(chunks))
            return
        import soxr  # recordings at the model's own rate never need it

        resampler = soxr.ResampleStream(self.source_hz, self.audio_hz, 1, dtype="float32", quality="HQ")
        for chunk in self._finite(chunks):
            yield np.clip(resampler.resample_chunk(chunk), -1, 1)
        yield np.clip(resampler.resample_chunk(np.zeros(0, np.float32), last=True), -1, 1)

    def _fill(self, samples: int) -> None:
        """Decodes until `samples` are pending or the recording ends."""
        parts, size = [self._pending], self._pending.size
        with self._boundary():
            while size < samples and (chunk := next(self._sound, None)) is not None:
                parts.append(chunk)
                size += chunk.size
        self._pending = np.concatenate(parts)

    def read(self, samples: int) -> np.ndarray:  # [samples] float32, fewer at the end, then none
        """The next `samples` samples. Raises InputError where the recording turns out to be damaged."""
        self._fill(samples)
        block, self._pending = self._pending[:samples].copy(), self._pending[samples:]
        return block

    def blocks(self, samples: int) -> Iterator[np.ndarray]:  # each [samples] float32, the last one shorter
        """The rest of the recording, block by block."""
        while (block := self.read(samples)).size:
            yield block

    def close(self) -> None:
        """Frees the decoder and the file."""
        if self._source is not None:
            self._source.close()
            self._source = None
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def aligned(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pieces of several recordings, each [n], as [recordings, n]: silence where the shorter ones have ended."""
    length = max(map(len, parts))
    return np.stack([np.pad(part, (0, length - len(part))) for part in parts])


def mix(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pieces of several recordings heard together, [n] within [-1, 1]."""
    return np.clip(aligned(parts).sum(0), -1.0, 1.0)


def open_audio(path: str | os.PathLike[str], *, audio_hz: int | None = 16000) -> AudioStream:
    """Opens any recording as a mono float32 stream in [-1, 1] at `audio_hz` (None: the recording's own rate).

    Raises:
        InputError: missing, unreadable, not a recording, without an audio track, empty, or damaged from the
            start; damage further in (NaN, truncation) is raised by the read that meets it.
    """
    return AudioStream(path, audio_hz)


def verify_audio(path: str | os.PathLike[str]) -> float:
    """Decodes a whole recording without keeping it and returns its exact length in seconds.

    Far faster than generating from it, so that damage at the end is found before any work is done. Raises
    InputError as `open_audio` and its reads do.
    """
    with AudioStream(path, audio_hz=None) as stream:
        return sum(block.size for block in stream.blocks(READ_SAMPLES)) / stream.source_hz
