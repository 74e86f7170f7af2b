"""Frames and their sound to fragmented MP4, a fragment a frame: H.264 with Opus.

With AAC, Media Source Extensions in Chromium show half of the frames of such a stream, and say nothing; with Opus all.
The muxer knows how long a frame lasts when the next one comes, so a fragment comes out a frame late. It writes the
packets of the sound as fragments of their own; those of a frame travel together.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from avatar_jax.io.video import SOUND_BITS, add_pictures, enlarge, to_picture, upscale_factor
from infer.live import boxes

SOUND_HZ = 48_000  # Opus in MP4 counts in it, whatever it was given
OPTIONS = {"preset": "veryfast", "tune": "zerolatency", "crf": "21", "threads": "1"}  # a thread a call: many calls
PICTURES = 1  # number of the first track
FLAGS = "frag_every_frame+delay_moov+default_base_moof"


Retouch = Callable[[np.ndarray, int], np.ndarray]


class Fragment(NamedTuple):
    """A frame of the stream with its sound, which a player takes whole."""

    data: bytes
    key: bool  # a player that has the initialisation segment can begin here
    pictures: int  # frames in it


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
      init: the initialisation segment; empty until the first fragment.

    Args:
      height: rows of the frames.
      width: columns of them.
      fps: frames a second.
      audio_hz: of the sound: 8, 12, 16, 24 or 48 kHz, which Opus takes as they are.
      retouch: what a frame uint8 [H, W, 3] of the shown size and its number become before they are encoded.
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
        display_size: int = 384,
    ):
        import av

        self._fps, self._hz, self._factor = fps, audio_hz, upscale_factor(height, width, display_size)
        self._retouch = retouch or (lambda frame, number: frame)
        self.size = height * self._factor, width * self._factor
        self._sink = _Sink()
        self._container: Any = av.open(self._sink, "w", format="mp4", options={"movflags": FLAGS})
        self._video = add_pictures(self._container, "libx264", self.size, fps=fps, options=OPTIONS)
        self._audio: Any = self._container.add_stream("libopus", rate=audio_hz, layout="mono")
        self._audio.bit_rate = SOUND_BITS // 2  # 16 kHz of band
        self._audio.options = {"application": "audio", "frame_duration": "20"}
        self._sound_type, self._intra = av.AudioFrame, av.video.frame.PictureType.I
        self.init, self._wants_key = b"", False
        self.frames, self.samples = 0, 0

    @property
    def mime(self) -> str:
        """What Media Source Extensions are told; known with `init`."""
        return f'video/mp4; codecs="{boxes.avc_codec(self.init)}, opus"'

    def want_key(self) -> None:
        """Makes the next frame one that a player can begin with."""
        self._wants_key = True

    def encode(self, frame: np.ndarray, sound: np.ndarray) -> list[Fragment]:
        """Takes a frame uint8 [H, W, 3] and the sound under it, float32 [audio_hz / fps]; returns what is complete."""
        picture = to_picture(self._retouch(enlarge(frame, self._factor), self.frames))
        picture.pts, picture.time_base = self.frames, Fraction(1, self._fps)
        if self._wants_key:
            picture.pict_type, self._wants_key = self._intra, False
        self._container.mux(self._video.encode(picture))
        self.frames += 1
        heard = self._sound_type.from_ndarray(np.ascontiguousarray(sound[None]), format="flt", layout="mono")
        heard.sample_rate, heard.time_base, heard.pts = self._hz, Fraction(1, self._hz), self.samples
        self._container.mux(self._audio.encode(heard))
        self.samples += sound.size
        return self._fragments()

    def close(self) -> list[Fragment]:
        """Ends the stream; returns the rest of it, but for the 6 ms of sound that Opus holds back.

        Asked for those, it returns a packet that is shorter than all others, to which the muxer gives the time of the
        one before.
        """
        if self.frames:
            self._container.mux(self._video.encode(None))
        self._container.close()
        return self._fragments()

    def _fragments(self) -> list[Fragment]:
        """The whole fragments among the bytes; the initialisation segment goes where it belongs."""
        data, start, done, found = bytes(self._sink.data), 0, 0, []
        for box in boxes.boxes(data):
            done = box.end
            if box.name in (b"ftyp", b"moov"):
                self.init += data[box.start : box.end]
                start = box.end
            elif box.name == b"mdat":
                piece, start = data[start : box.end], box.end
                pictures = int(boxes.has_track(piece, PICTURES))
                found.append(Fragment(piece, bool(pictures) and boxes.is_key(piece, PICTURES), pictures))
            elif box.name != b"moof":  # the index that ends a file
                start = box.end
        del self._sink.data[: start if start < done else done]
        return _joined(found)


def _joined(found: list[Fragment]) -> list[Fragment]:
    """Fragments of one call together; a new one begins with every key frame."""
    joined: list[Fragment] = []
    for piece in found:
        if joined and not piece.key:
            last = joined[-1]
            joined[-1] = Fragment(last.data + piece.data, last.key, last.pictures + piece.pictures)
        else:
            joined.append(piece)
    return joined
