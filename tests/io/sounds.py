"""Recordings made for the tests: a known sound in any container that PyAV writes."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SECONDS = 3
CONTAINERS = {  # name -> (muxer, codec, rate)
    "speech.wav": ("wav", "pcm_s16le", 22050),
    "speech.flac": ("flac", "flac", 44100),
    "speech.mp3": ("mp3", "libmp3lame", 44100),
    "speech.opus": ("ogg", "libopus", 48000),
    "speech.m4a": ("ipod", "aac", 44100),
    "speech.webm": ("webm", "libopus", 48000),
    "speech.mkv": ("matroska", "flac", 32000),
    "speech.aiff": ("aiff", "pcm_s16be", 16000),
    "speech.au": ("au", "pcm_s16be", 8000),
    "speech.caf": ("caf", "pcm_s24le", 48000),
    "speech.w64": ("w64", "pcm_s16le", 16000),
}


def chirp(audio_hz: int, seconds: float = SECONDS) -> np.ndarray:
    """A tone of 300 Hz with a beat that makes every moment different, float32 [n]."""
    t = np.arange(round(audio_hz * seconds)) / audio_hz
    return (0.4 * np.sin(2 * np.pi * 300 * t) * (0.6 + 0.4 * np.sin(2 * np.pi * (1 + t) * t))).astype(np.float32)


def write_sound(
    path: Path, muxer: str, codec: str, audio_hz: int, samples: np.ndarray, *, layout: str = "mono"
) -> Path:
    """Encodes samples [channels, n] or [n]; returns the path."""
    planes = np.atleast_2d(samples).astype(np.float32)
    with av.open(str(path), "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=audio_hz, layout=layout)
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=audio_hz)
        for at in range(0, planes.shape[1], audio_hz):
            part = np.ascontiguousarray(planes[:, at : at + audio_hz])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = audio_hz, at, Fraction(1, audio_hz)
            for converted in resampler.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


def write_recording(folder: Path, name: str, seconds: float = SECONDS) -> Path:
    """The known sound as `name`, a key of CONTAINERS."""
    muxer, codec, audio_hz = CONTAINERS[name]
    return write_sound(folder / name, muxer, codec, audio_hz, chirp(audio_hz, seconds))
