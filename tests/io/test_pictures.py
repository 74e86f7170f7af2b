"""Videos read as they are watched: the right picture at every moment, whatever the video's own rate."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avatar_jax.io.errors import InputError
from avatar_jax.io.pictures import open_frames
from tests.io import sounds

FPS, STEP = 25, 12  # grey levels from one picture to the next


def film(path: Path, times: list[float]) -> Path:
    """A silent video whose picture k is as bright as k is large; picture k comes at times[k] seconds."""
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, time in enumerate(times):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), STEP * k, np.uint8), format="rgb24")
            picture.pts, picture.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def watch(path: Path) -> list[int]:
    """Which picture each video frame shows."""
    with open_frames(path, fps=FPS) as frames:
        return [round(float(frame.mean()) / STEP) for frame in frames]


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([k / 25 for k in range(8)], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([k / 50 for k in range(8)], [1, 3, 5, 7]),
        ([k / 12.5 for k in range(3)], [0, 0, 1, 1, 2, 2]),
        ([0, 0.12, 0.16], [0, 0, 0, 1, 2]),  # no steady rate
        ([7 + k / 25 for k in range(3)], [0, 1, 2]),  # counted from its first picture
    ],
)
def test_every_moment_shows_its_picture(times: list[float], shown: list[int], tmp_path: Path) -> None:
    assert watch(film(tmp_path / "film.mp4", times))[: len(shown)] == shown


def test_a_damaged_video_ends_where_it_is_damaged(tmp_path: Path) -> None:
    whole = film(tmp_path / "film.mp4", [k / 25 for k in range(20)])
    content = bytearray(whole.read_bytes())
    stop = content.index(b"moov") - 4
    content[stop - 60 : stop] = bytes(60)  # the last few pictures
    (tmp_path / "damaged.mp4").write_bytes(bytes(content))
    shown = watch(tmp_path / "damaged.mp4")
    assert shown == list(range(len(shown))) and 0 < len(shown) < 20


def test_only_videos_are_watched(tmp_path: Path) -> None:
    sounds.write_recording(tmp_path, "speech.flac")
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    for name, words in (
        ("nothing.mp4", "no such file"),
        ("speech.flac", "has no video track; give a video"),
        ("text.mp4", "is not a video that can be decoded"),
    ):
        with pytest.raises(InputError, match=words), open_frames(tmp_path / name, fps=FPS):
            pass
