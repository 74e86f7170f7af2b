"""Real video files for tests: any frame times, codecs, rotation; talking heads of the drawn world at any rate."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avatar_jax.data import controls, source, world

HZ = 16_000
TICKS = 30_000  # of the pictures' clock, a second: 24, 25, 29.97, 30, 50 and 120 frames divide it


def write(
    path: Path,
    frames: np.ndarray,  # uint8 [T, H, W, 3]
    times: np.ndarray,  # [T] seconds
    waveform: np.ndarray | None,  # float32 [n]
    *,
    hz: int = HZ,
    ticks: int = TICKS,
    vcodec: str = "libx264",
    acodec: str = "aac",
    rotation: int = 0,
    sound_start: float = 0.0,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a film whose name tells its container."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(vcodec, rate=Fraction(25))
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt, video.options = pix_fmt, options or {}
        video.codec_context.time_base = Fraction(1, ticks)
        if rotation:
            video.set_display_rotation(rotation)
        audio: Any = None if waveform is None else container.add_stream(acodec, rate=hz, layout="mono")
        for frame, time in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = round(time * ticks), Fraction(1, ticks)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if waveform is not None:
            for at in range(0, len(waveform), 1024):
                sound = av.AudioFrame.from_ndarray(waveform[None, at : at + 1024], format="fltp", layout="mono")
                sound.sample_rate, sound.time_base = hz, Fraction(1, hz)
                sound.pts = at + round(sound_start * hz)
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def steady(count: int, fps: float) -> np.ndarray:
    """Times of `count` frames."""
    return np.arange(count) / fps


def variable(seconds: float, seed: int = 0) -> np.ndarray:
    """Times of a phone's frames: 17 to 60 ms apart."""
    steps = np.random.default_rng(seed).uniform(1 / 60, 0.06, round(seconds * 60))
    times = np.concatenate([[0.0], np.cumsum(steps)])
    return times[times < seconds]


def talking(index: int, times: np.ndarray, *, seconds: float, size: int = 96) -> tuple[np.ndarray, dict[str, Any]]:
    """The drawn clip `index` as a camera sees it that takes frames at `times`, and the clip at 25 frames a second."""
    made = source.clip(7, index, video_frames=round(seconds * 25), size=size)
    durations = np.diff(times, append=2 * times[-1] - times[-2])
    middles = times + durations / 2
    known = (np.arange(len(made["controls"])) + 0.5) / 25
    tracks = np.stack([np.interp(middles, known, track) for track in made["controls"].T], -1)
    return world.render_clip(source.identity_of(7, index), controls.Controls.from_array(tracks), size), made
