"""Raw videos as they are found: pictures with their times, upright, and the sound that belongs to them.

Training clips are cut from these, so what is not certain is refused: where a picture is damaged or the sound has a gap,
the video ends there, by an `Unusable` with a named reason. Both tracks are read front to back, a frame in memory.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from avatar_jax.io.decoder import ffmpeg_knows, open_container, to_mono
from avatar_jax.io.errors import InputError, open_input

REASONS = {
    "unreadable": "the file cannot be opened: missing, a folder, a pipe, a link that leads nowhere",
    "empty": "the file has no bytes",
    "not_video": "no container that is read, or one too damaged to open",
    "no_video": "no picture track, or none of its pictures can be decoded",
    "no_sound": "no sound track, or none of it can be decoded",
    "too_large": "more pixels a picture than 8192 x 4320",
    "rotation": "to be shown at an angle that is no quarter turn",
    "damaged": "a picture or a piece of sound cannot be decoded; what comes before it is used",
    "changes": "the picture changes its size, or the sound its rate; what comes before is used",
    "truncated": "the picture ends before its header says; what there is is used",
    "sound_gap": "the sound's times jump; what comes before is used",
    "sound_ended": "the sound ends before the picture; what comes before is used",
}
MAX_PIXELS = 8192 * 4320  # the largest that cameras record: 8K
SOUND_HZ = (4_000, 384_000)
SLACK_S = 0.04  # of the sound's times against its sample count: a video frame; containers round times to milliseconds
MISSING_S = 0.5  # a picture track that ends this much early is truncated


class Unusable(InputError):
    """A video, or the rest of one, that no clip can be cut from.

    Attributes:
        reason: a key of REASONS, or of those of `data.cut`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@contextlib.contextmanager
def _boundary(reason: str, detail: str) -> Iterator[None]:
    """Decoders raise a dozen exception types on damaged bytes: all become Unusable, but want of memory."""
    try:
        yield
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(reason, f"{detail} ({type(error).__name__})") from error


def _open(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """The file, and its container."""
    try:
        file = open_input(path, kind="video")
    except InputError as error:
        empty = os.path.isfile(path) and not os.path.getsize(path)
        raise Unusable("empty" if empty else "unreadable", str(error)) from error
    with contextlib.ExitStack() as opened, _boundary("not_video", "cannot be opened as a video"):
        opened.enter_context(file)
        head = file.read(16)
        file.seek(0)
        if not ffmpeg_knows(head):
            raise Unusable("not_video", "its first bytes are those of no container that is read")
        container = open_container(file)
        opened.pop_all()
    return file, container


def _decoded(container: Any, track: Any) -> Iterator[Any]:
    """Frames of a track; undecodable packets are passed over until the first good one, as in a cut broadcast."""
    from av.error import InvalidDataError

    good = False
    for packet in container.demux(track):
        try:
            frames = packet.decode()
        except InvalidDataError:
            if good:
                raise
            continue
        good = good or bool(frames)
        yield from frames


class _Track:
    """One track of a video file, open; a context manager."""

    def __init__(self, path: str | os.PathLike[str], kind: str, absent: str) -> None:
        self._file, self._container = _open(path)
        self._track = self._container.streams.best(kind)
        if self._track is None or self._track.codec_context is None:
            self.close()
            raise Unusable(absent, f"has no {kind} track that can be decoded")
        self._track.codec_context.thread_count = 1  # files are decoded side by side

    def _time(self, frame: Any) -> float | None:
        """When a frame begins, in seconds."""
        stamp = frame.pts if frame.pts is not None else frame.dts
        base = frame.time_base or self._track.time_base
        return None if stamp is None or not base else float(stamp * base)

    def close(self) -> None:
        """Frees the decoder and the file."""
        self._container.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pictures(_Track):
    """The pictures of a video and when each is shown.

    Attributes:
        size: rows and columns as stored.
        declared: seconds that the header gives the track, 0 where it does not say.
        start: time of the first picture in seconds.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "video", "no_video")
        track = self._track
        self.size = track.height, track.width
        self.declared = float((track.duration or 0) * (track.time_base or 0))
        if math.prod(self.size) > MAX_PIXELS:
            self.close()
            raise Unusable("too_large", f"declares pictures of {track.width} x {track.height}")
        self._rest = self._walk()
        try:
            self._first = next(self._rest)
        except BaseException:
            self.close()
            raise
        self.start = self._first[0]

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        """Time in seconds and frame, once, times rising; a frame out of order is left out. Raises Unusable."""
        yield self._first
        yield from self._rest

    def _walk(self) -> Iterator[tuple[float, Any]]:
        last, seen, rate = -math.inf, 0, float(self._track.average_rate or 0)
        start = None
        with _boundary("damaged", "a picture cannot be decoded"):
            for frame in _decoded(self._container, self._track):
                time = self._time(frame)
                if time is None and rate:
                    time = seen / rate  # containers without times: one picture after the other
                seen += 1
                self._check(frame, time)
                if time is not None and time > last:
                    start = time if start is None else start
                    last = time
                    yield time, frame
        if start is None:
            raise Unusable("no_video", "none of its pictures can be decoded")
        if self.declared - (last - start) > MISSING_S + 1 / max(rate, 1.0):
            raise Unusable("truncated", f"declares {self.declared:.1f} s of pictures and has {last - start:.1f} s")

    def upright(self, frame: Any, shorter: int) -> np.ndarray:  # uint8 [H, W, 3]
        """A frame as it is to be seen: square pixels, turned as its display matrix says, reduced to `shorter` at most.

        Raises Unusable for a turn by other than quarters.
        """
        turn = frame.rotation  # degrees counterclockwise
        if turn % 90:
            raise Unusable("rotation", f"is to be shown turned by {turn} degrees")
        aspect = float(self._track.sample_aspect_ratio or 1)
        wide = frame.width * (aspect if 0.1 < aspect < 10.0 else 1.0)
        scale = min(1.0, shorter / min(wide, frame.height))
        rows, columns = (max(1, round(side * scale)) for side in (frame.height, wide))
        picture = frame.to_ndarray(format="rgb24", width=columns, height=rows)
        return np.ascontiguousarray(np.rot90(picture, turn // 90 % 4))

    def _check(self, frame: Any, time: float | None) -> None:
        at = "" if time is None else f" at {time:.2f} s"
        if frame.is_corrupt:
            raise Unusable("damaged", f"a picture{at} is damaged")
        if self.size != (frame.height, frame.width):
            if any(self.size):
                raise Unusable("changes", f"the picture's size changes{at}")
            self.size = frame.height, frame.width
        if math.prod(self.size) > MAX_PIXELS:
            raise Unusable("too_large", f"has pictures of {frame.width} x {frame.height}")


class Sound(_Track):
    """The sound of a video on the clock of its pictures: mono, in [-1, 1], resampled, read front to back."""

    def __init__(self, path: str | os.PathLike[str], *, audio_hz: int, start: float) -> None:
        """Opens it. `start`: the time of the first picture, which is sample 0. Raises Unusable."""
        super().__init__(path, "audio", "no_sound")
        self.audio_hz, self.source_hz = audio_hz, int(self._track.rate or 0)
        if not SOUND_HZ[0] <= self.source_hz <= SOUND_HZ[1]:
            self.close()
            raise Unusable("no_sound", f"declares sound of {self.source_hz} samples a second")
        self._start, self._at = start, 0  # of the first sample held
        self._held = np.zeros(0, np.float32)
        self._rest = self._resampled()
        try:
            next(self._rest)  # learns where the sound begins
        except BaseException:
            self.close()
            raise

    def _chunks(self) -> Iterator[np.ndarray]:  # each [n] at the file's rate; the first one empty
        total, began = 0, None
        for frame in _decoded(self._container, self._track):
            time = self._time(frame)
            if began is None:
                began = self._start if time is None else time
                self._at = round((began - self._start) * self.audio_hz)
                yield self._held
            if frame.sample_rate != self.source_hz:
                raise Unusable("changes", f"the sound changes its rate to {frame.sample_rate}")
            if time is not None and abs(time - began - total / self.source_hz) > SLACK_S:
                raise Unusable("sound_gap", f"the sound's times jump at {time:.2f} s")
            chunk = to_mono(frame.to_ndarray(), len(frame.layout.channels))
            if not np.isfinite(chunk).all():
                raise Unusable("damaged", f"the sound has a NaN or infinite sample near {total / self.source_hz:.2f} s")
            total += chunk.size
            yield np.clip(chunk, -1, 1)
        if began is None:
            raise Unusable("no_sound", "none of its sound can be decoded")

    def _resampled(self) -> Iterator[np.ndarray]:
        import soxr  # sound at the model's own rate passes unchanged, all else needs it

        resampler = soxr.ResampleStream(self.source_hz, self.audio_hz, 1, dtype="float32", quality="HQ")
        with _boundary("damaged", "the sound cannot be decoded"):
            for chunk in self._chunks():
                yield np.clip(resampler.resample_chunk(chunk), -1, 1)
            yield np.clip(resampler.resample_chunk(np.zeros(0, np.float32), last=True), -1, 1)

    def read(self, first: int, samples: int, *, missing: int) -> np.ndarray:  # [samples] float32
        """Samples from `first` on, never earlier than the call before; silence before the sound begins.

        Args:
            first: the sample, 0 where the first picture begins.
            samples: how many.
            missing: as many may be missing at the end; they become silence.

        Raises:
            Unusable: the sound ends, has a gap, or is damaged.
        """
        while self._at + self._held.size < first + samples:
            chunk = next(self._rest, None)
            if chunk is None:
                break
            self._forget(first)
            self._held = np.concatenate([self._held, chunk])
        self._forget(first)
        out = np.zeros(samples, np.float32)
        lead = max(0, self._at - first)
        part = self._held[: max(0, samples - lead)]
        out[lead : lead + part.size] = part
        if lead + part.size < samples - missing and lead < samples:
            raise Unusable("sound_ended", f"the sound ends {(first + lead + part.size) / self.audio_hz:.2f} s in")
        return out

    def _forget(self, first: int) -> None:
        gone = min(max(0, first - self._at), self._held.size)
        self._held, self._at = self._held[gone:], self._at + gone
