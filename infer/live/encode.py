"""Frames and their sound to fragmented MP4, a fragment a frame: H.264 or VP9, with Opus.

With AAC, Media Source Extensions in Chromium show half of the frames of such a stream, and say nothing; with Opus all.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from avatar_jax.io.video import SOUND_BITS, add_pictures, enlarge, to_picture, upscale_factor
from infer.live import boxes

SOUND_HZ = 48_000  # Chromium plays no Opus in MP4 that was given at another rate
PACKET = 960  # samples of an Opus packet, 20 ms
OPTIONS = {  # by video codec; a thread a call: many calls
    "libx264": {"preset": "veryfast", "tune": "zerolatency", "crf": "21", "threads": "1"},
    "libvpx-vp9": {
        "deadline": "realtime",
        "cpu-used": "8",
        "lag-in-frames": "0",
        "crf": "24",
        "b": "0",
        "threads": "1",
    },
}
MUXER = {"movflags": "frag_every_frame+delay_moov+default_base_moof"}  # describes the tracks, no more
FRAME_UNITS = 512  # of a frame in its track's time
PICTURES, SOUND = 1, 2  # numbers of the tracks
DISPLAY_SIZE = 384  # pixels of the shorter side up to which small frames are enlarged
Retouch = Callable[[np.ndarray, int], np.ndarray]


class Fragment(NamedTuple):
    """A frame of the stream with its sound, which a player takes whole."""

    data: bytes
    key: bool  # a player that has the initialisation segment can begin here
    runs: Sequence[boxes.Run] = ()  # what is in it


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a call's stream, whose frames are enlarged by a whole factor where they are small."""
    factor = upscale_factor(height, width, DISPLAY_SIZE)
    return height * factor, width * factor


class _Sink:
    """What the muxer writes into."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        """Takes bytes."""
        self.data += data
        return len(data)


class Encoder:
    """One call's stream, from its first frame to its last.

    Attributes:
      init: the initialisation segment; empty before the second frame.

    Args:
      height: rows of the frames.
      width: columns of them.
      fps: frames a second.
      audio_hz: of the sound.
      retouch: what a frame uint8 [H, W, 3] of the shown size and its number become before they are encoded.
      vcodec: one of OPTIONS.
      display_size: small frames are enlarged by a whole factor up to this shorter side.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        fps: int,
        audio_hz: int,
        retouch: Retouch | None = None,
        vcodec: str = "libx264",
        display_size: int = DISPLAY_SIZE,
    ):
        import av
        from av.video.frame import PictureType

        self._fps, self._hz, self._factor = fps, audio_hz, upscale_factor(height, width, display_size)
        self._retouch = retouch or (lambda frame, number: frame)
        self.size = height * self._factor, width * self._factor
        self._sink = _Sink()
        self._container: Any = av.open(
            self._sink, "w", format="mp4", options=MUXER | {"video_track_timescale": str(FRAME_UNITS * fps)}
        )
        self._video: Any = add_pictures(self._container, vcodec, self.size, fps=fps, options=OPTIONS[vcodec])
        self._sample = boxes.avc_sample if vcodec == "libx264" else bytes
        self._audio: Any = self._container.add_stream("libopus", rate=SOUND_HZ, layout="mono")
        self._audio.bit_rate = SOUND_BITS // 2  # 16 kHz of band
        self._audio.options = {"application": "audio", "frame_duration": "20"}
        self._resample: Any = av.AudioResampler(format="flt", layout="mono", rate=SOUND_HZ)
        self._sound_type, self._intra = av.AudioFrame, PictureType.I
        self.init, self._wants_key = b"", False
        self._held: list[list[boxes.Run]] = []  # frames before it is known
        self.frames, self.samples, self._packets = 0, 0, 0

    @property
    def mime(self) -> str:
        """What Media Source Extensions are told; known with `init`."""
        return f'video/mp4; codecs="{boxes.codec(self.init)}, opus"'

    def want_key(self) -> None:
        """Makes the next frame one that a player can begin with."""
        self._wants_key = True

    def encode(self, frame: np.ndarray, sound: np.ndarray) -> list[Fragment]:
        """Takes a frame uint8 [H, W, 3] and the sound under it, float32 [audio_hz / fps].

        Returns:
          its fragment; of the first frame only with the second one's, when `init` is there.
        """
        heard, seen = self._hear(sound), self._see(frame)
        self._held.append(self._runs(seen, heard))
        self.frames += 1
        if not self.init:
            self._begin([*seen, *heard])
        held, self._held = (self._held, []) if self.init else ([], self._held)
        first = self.frames - len(held)
        return [
            Fragment(boxes.fragment(first + k + 1, runs), runs[0].flags == boxes.KEY, runs)
            for k, runs in enumerate(held)
        ]

    def _see(self, frame: np.ndarray) -> list[Any]:
        picture = to_picture(self._retouch(enlarge(frame, self._factor), self.frames))
        picture.pts, picture.time_base = self.frames, Fraction(1, self._fps)
        if self._wants_key:
            picture.pict_type, self._wants_key = self._intra, False
        return self._video.encode(picture)

    def _hear(self, sound: np.ndarray) -> list[Any]:
        heard = self._sound_type.from_ndarray(np.ascontiguousarray(sound[None]), format="flt", layout="mono")
        heard.sample_rate, heard.time_base, heard.pts = self._hz, Fraction(1, self._hz), self.samples
        self.samples += sound.size
        return [packet for piece in self._resample.resample(heard) for packet in self._audio.encode(piece)]

    def _runs(self, seen: list[Any], heard: list[Any]) -> list[boxes.Run]:
        """A frame's packets for its fragment, their times counted."""
        flags = boxes.KEY if seen[0].is_keyframe else boxes.NO_KEY
        samples = [self._sample(bytes(packet)) for packet in seen]
        runs = [boxes.Run(PICTURES, self.frames * FRAME_UNITS, FRAME_UNITS, samples, flags)]
        if heard:
            runs.append(boxes.Run(SOUND, self._packets * PACKET, PACKET, [bytes(packet) for packet in heard]))
            self._packets += len(heard)
        return runs

    def _begin(self, packets: list[Any]) -> None:
        """Lets the muxer describe the tracks, which it does as soon as it has seen both."""
        for packet in packets:
            self._container.mux(packet)
        data = bytes(self._sink.data)
        header = [box for box in boxes.boxes(data) if box.name in (b"ftyp", b"moov")]
        if len(header) == 2:
            self.init = data[: header[1].end]

    def close(self) -> None:
        """Ends the stream; Opus keeps the last 6 ms of sound. What a call held of codecs goes, as ended calls stay."""
        if self._container is not None:
            self._container.close()
        self._container = self._video = self._audio = self._resample = None
        self._held, self._retouch = [], lambda frame, number: frame
