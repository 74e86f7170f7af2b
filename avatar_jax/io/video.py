"""Videos with sound: written so that a kill leaves them playable, finished so that players start at once.

While frames arrive, `NAME.partial.mp4` grows as fragmented MP4 (fragments of 0.4 s, moov written with the
first one so that the edit list is right: `empty_moov` delays the picture by the encoder's 1024 priming
samples). At the end the packets are copied, not encoded again, into an MP4 with its index in front, which
replaces the final name at once. Beyond an hour the fragments stay, so that memory does not grow with length.

H.264 + AAC is the one pair that browsers and desktop players (QuickTime, Windows, televisions) all play. Opus
in MP4 is the better pair for live fragments, but QuickTime and older Windows do not play it; AAC halves the
shown frame rate only in Media Source Extensions with a fragment per frame, which a file never is.
`libvpx-vp9` goes with Opus: the royalty-free pair, for browsers. Colours are BT.709, tagged; sound and
picture share one clock, the sample count.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from avatar_jax.io.audio import open_audio
from avatar_jax.io.decoder import READ_SAMPLES, open_container
from avatar_jax.io.errors import InputError, open_input
from avatar_jax.io.pictures import decodable, pictures

FRAGMENT_US = 400_000  # at most this much of the newest video is lost by a kill
FASTSTART_S = 3600  # an index in front costs 32 MB of memory an hour: longer videos stay fragmented
KEYFRAME_S = 2  # seconds between frames that a player can seek to
SOUND_BITS = 96_000  # a second: transparent for mono speech
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CODECS: dict[str, tuple[str, dict[str, str]]] = {  # video codec -> (sound codec, video options)
    "libx264": ("aac", {"preset": "veryfast", "tune": "zerolatency", "crf": "18"}),
    "libvpx-vp9": (
        "libopus",
        {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "24", "b": "0"},
    ),
}
BT709 = 1  # matrix, primaries and transfer of ITU-R BT.709 share this code point (ITU-T H.273)
LIMITED_RANGE = 1


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Refuses an output that cannot be written, before any work is done; returns its absolute path.

    Raises:
        InputError: not an .mp4 name, an existing file without `overwrite`, a directory, or a folder that is
            missing or not writable.
    """
    final = Path(os.path.abspath(path))
    if final.suffix.lower() != ".mp4":
        raise InputError(f"{path}: is not an .mp4 name; the output is an MP4 video")
    if not final.parent.is_dir():
        raise InputError(f"{path}: the folder {final.parent} does not exist; create it first")
    if not os.access(final.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: the folder {final.parent} is not writable; choose another output")
    if final.is_dir():
        raise InputError(f"{path}: is a directory; name the video file itself")
    if final.exists() and not overwrite:
        raise InputError(f"{path}: exists already; choose another name or pass --overwrite")
    return final


def upscale_factor(height: int, width: int, display_size: int) -> int:
    """The largest whole factor that keeps the shorter side within `display_size` pixels; at least 1."""
    return max(1, display_size // min(height, width))


def add_pictures(container: Any, vcodec: str, size: tuple[int, int], *, fps: int, options: dict[str, str]) -> Any:
    """A video track in an open container: 8-bit 4:2:0 in BT.709, a key frame every KEYFRAME_S.

    Args:
        container: PyAV's.
        vcodec: name of the encoder.
        size: rows and columns.
        fps: frames a second.
        options: of the encoder.
    """
    track = container.add_stream(vcodec, rate=fps)
    track.height, track.width = size
    track.pix_fmt, track.options = "yuv420p", options
    context = track.codec_context
    context.gop_size, context.color_range = KEYFRAME_S * fps, LIMITED_RANGE
    context.colorspace = context.color_primaries = context.color_trc = BT709
    return track


def enlarge(frame: np.ndarray, factor: int) -> np.ndarray:
    """A frame uint8 [H, W, 3] at a whole multiple of its size."""
    if factor == 1:
        return frame
    import cv2  # only small frames are enlarged

    return cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)


def to_picture(frame: np.ndarray) -> Any:
    """A frame uint8 [H, W, 3] as PyAV encodes it in a track of `add_pictures`."""
    import av

    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return picture.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)


class VideoWriter:
    """Writes frames and sound to an MP4; a context manager.

    Left without an error, or by Ctrl-C, the video so far gets the final name. Left by an error, the final
    name stays as it was and nothing is kept, except on a full disk, where the partial file stays and is named
    in the message.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        height: int,
        width: int,
        fps: int,
        audio_hz: int | None,
        overwrite: bool,
        display_size: int = 384,
        vcodec: str = "libx264",
    ) -> None:
        """Opens the partial file.

        Args:
            path: the final name, ending in .mp4.
            height: rows of the frames that will be written.
            width: columns of them.
            fps: video frames a second.
            audio_hz: rate of the sound, a multiple of `fps`; None for a silent video, without a sound track.
            overwrite: whether an existing file may be replaced.
            display_size: small frames are enlarged by a whole factor up to this shorter side.
            vcodec: a key of CODECS.

        Raises:
            InputError: the output cannot be written (see `check_output`).
            ValueError: impossible geometry or an unknown codec.
        """
        if vcodec not in CODECS:
            raise ValueError(f"vcodec={vcodec!r}: choose one of {', '.join(CODECS)}")
        if audio_hz and audio_hz % fps:
            raise ValueError(f"audio_hz={audio_hz}: must be a multiple of fps={fps}")
        self.size, self._factor = (height, width), upscale_factor(height, width, display_size)
        if any(side % 2 for side in self.shown):
            raise ValueError(f"frames of {height} x {width}: H.264 and VP9 need even sides")
        self.path = check_output(path, overwrite=overwrite)
        self.partial = self.path.with_suffix(".partial.mp4")
        self.fps, self.audio_hz = fps, audio_hz
        self.video_frames, self.samples = 0, 0
        self._keep_partial = False
        with self._disk():
            self._open(vcodec)

    def _open(self, vcodec: str) -> None:
        import av

        acodec, options = CODECS[vcodec]
        flags = {"movflags": "delay_moov+default_base_moof", "frag_duration": str(FRAGMENT_US)}
        flags["flush_packets"] = "1"  # else nothing reaches the disk before the end
        self._container: Any = av.open(str(self.partial), "w", format="mp4", options=flags)
        self._video: Any = add_pictures(self._container, vcodec, self.shown, fps=self.fps, options=options)
        self._audio: Any = None  # a silent video has no sound track
        if self.audio_hz:
            self._audio = self._container.add_stream(acodec, rate=self.audio_hz, layout="mono")
            self._audio.bit_rate = SOUND_BITS
        self._sound_type = av.AudioFrame

    @property
    def shown(self) -> tuple[int, int]:
        """Rows and columns of the pictures in the file."""
        return self.size[0] * self._factor, self.size[1] * self._factor

    @property
    def seconds(self) -> float:
        """Length of the video so far."""
        return self.video_frames / self.fps

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """A disk that is full or fails becomes one clear line."""
        try:
            yield
        except OSError as error:
            self._keep_partial = True
            full = "the disk is full, free some space and run again"
            reason = full if error.errno in FULL else f"cannot be written ({error.strerror})"
            kept = f"; what was made before is in {self.partial}" if self.video_frames else ""
            raise InputError(f"{self.path}: {reason}{kept}") from error

    def write(self, frames: np.ndarray, samples: np.ndarray) -> None:
        """Appends video frames and the sound under them: frame k covers samples [k, k + 1) * audio_hz / fps.

        Args:
            frames: uint8 [T, H, W, 3] RGB.
            samples: float32 [n], at most T frames' worth; a shortfall becomes silence if more frames follow.

        Raises:
            ValueError: shapes that do not fit.
            InputError: the disk is full, or fails.
        """
        hop = (self.audio_hz or 0) // self.fps
        shape = (*self.size, 3)
        if frames.shape[1:] != shape or frames.dtype != np.uint8:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}: expected uint8 [T, *{shape}]")
        if samples.ndim != 1 or samples.size > len(frames) * hop:
            raise ValueError(f"samples are {samples.shape}: {len(frames)} frames hold at most {len(frames) * hop}")
        late = self.video_frames * hop - self.samples
        sound = np.concatenate([np.zeros(late, np.float32), np.asarray(samples, np.float32)])
        with self._disk():
            for k, frame in enumerate(frames):
                self._write_frame(frame)
                start = late + k * hop if k else 0
                self._write_sound(sound[start : late + (k + 1) * hop])

    def _write_frame(self, frame: np.ndarray) -> None:  # [H, W, 3]
        picture = to_picture(enlarge(frame, self._factor))
        picture.pts, picture.time_base = self.video_frames, Fraction(1, self.fps)
        self._container.mux(self._video.encode(picture))
        self.video_frames += 1

    def _write_sound(self, samples: np.ndarray) -> None:  # [n]
        rate = self.audio_hz
        if not samples.size or rate is None:
            return
        sound = self._sound_type.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
        sound.pts = self.samples
        self._container.mux(self._audio.encode(sound))
        self.samples += samples.size

    def close(self) -> None:
        """Finishes the video under its final name, at once. Raises InputError on a full disk."""
        finished = self.path.with_suffix(".finishing.mp4")
        self._keep_partial = True  # until the final file stands
        try:
            with self._disk():
                self._flush()
                if self.seconds <= FASTSTART_S:
                    remux(self.partial, finished)
                    os.replace(finished, self.path)
                else:
                    os.replace(self.partial, self.path)
        finally:
            finished.unlink(missing_ok=True)
        self._keep_partial = False

    def _flush(self) -> None:
        for stream in (self._video, self._audio):
            if stream is not None:
                self._container.mux(stream.encode(None))
        self._container.close()

    def discard(self) -> None:
        """Ends without a video under the final name; removes the partial file unless the disk failed."""
        with contextlib.suppress(OSError, ValueError):
            self._container.close()
        if not (self._keep_partial and self.video_frames):
            self.partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finish = kind is None or issubclass(kind, KeyboardInterrupt)
        try:
            if finish and self.video_frames:
                self.close()
        finally:
            self.discard()


def remux(source: Path, target: Path) -> None:
    """Copies the packets of a fragmented MP4 into one with its index in front."""
    import av

    with (
        av.open(str(source)) as old,
        av.open(str(target), "w", format="mp4", options={"movflags": "faststart"}) as new,
    ):
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:  # not the empty packet that ends each stream
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


def _decode_frames(container: Any, path: str | os.PathLike[str]) -> tuple[np.ndarray, float]:
    """All frames of the best video track, and the time of the first."""
    frames, times = zip(
        *((frame.to_ndarray(format="rgb24"), frame.time) for frame in pictures(container, path)), strict=True
    )
    return np.stack(frames), float(times[0] or 0)


def _sound_start(container: Any) -> float | None:
    """Time of the first audible sample, None without an audio track."""
    track = container.streams.best("audio")
    frame = next(container.decode(track), None) if track else None
    return None if frame is None else float(frame.time or 0)


def read_video(
    path: str | os.PathLike[str], *, audio_hz: int = 16000
) -> tuple[np.ndarray, np.ndarray, float]:  # uint8 [T, H, W, 3], float32 [n], frames a second
    """Reads a whole video for metrics and tests: RGB frames, mono sound from the first frame on, frame rate.

    A video without sound returns no samples.

    Raises:
        InputError: missing, unreadable, or without a video track.
    """
    with decodable(path):
        with open_input(path, kind="video") as file, open_container(file) as container:
            frames, start = _decode_frames(container, path)
            fps = float(container.streams.video[0].average_rate or 0)
        with open_input(path, kind="video") as file, open_container(file) as container:
            sound_start = _sound_start(container)
    if sound_start is None:
        return frames, np.zeros(0, np.float32), fps
    with open_audio(path, audio_hz=audio_hz) as stream:
        samples = np.concatenate(list(stream.blocks(READ_SAMPLES)))
    lead = round((sound_start - start) * audio_hz)
    return frames, np.pad(samples, (lead, 0)) if lead > 0 else samples[-lead:], fps
