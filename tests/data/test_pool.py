"""A worker may hang, grow, die or raise over a file: the file is named, the next one is read."""

from pathlib import Path

import numpy as np
import pytest

from avatar_jax.data import cut
from avatar_jax.data.pool import REASONS, Limits, Lost, Worker
from avatar_jax.io.footage import Unusable
from tests.data import films


def cut_of(detector: str, **changes) -> cut.Cut:
    return cut.Cut(**{
        "height": 32,
        "width": 32,
        "video_frames": 24,
        "fps": 25,
        "audio_hz": films.HZ,
        "detector": f"tests.data.faulty:{detector}",
        "faceless": "drop",
        **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    times = films.steady(50, 25)
    frames, made = films.talking(0, times, seconds=2.0, size=64)
    return films.write(tmp_path_factory.mktemp("films") / "a.mp4", frames, times, made["waveform"])


@pytest.mark.parametrize(
    ("detector", "limits", "reason"),
    [
        ("hang", Limits(1.0, 500), "time"),
        ("grow", Limits(60.0, 300), "memory"),
        ("die", Limits(60.0, 500), "crash"),
        ("fail", Limits(60.0, 500), "failed"),
    ],
)
def test_a_lost_file_is_named_and_the_next_one_read(
    film: Path, tmp_path: Path, detector: str, limits: Limits, reason: str
) -> None:
    (tmp_path / "empty.mp4").touch()
    with Worker(cut_of(detector), limits) as worker:
        for _ in range(2):
            with pytest.raises(Lost) as lost:
                list(worker.clips(film))
            assert lost.value.reason == reason and reason in REASONS and "\n" not in str(lost.value)
            with pytest.raises(Unusable) as broken:
                list(worker.clips(tmp_path / "empty.mp4"))
            assert broken.value.reason == "empty" and not isinstance(broken.value, Lost)


def test_a_worker_gives_what_the_cut_gives(film: Path) -> None:
    how = cut_of("everywhere")
    with Worker(how, Limits(60.0, 500)) as worker:
        for _ in range(2):
            given = list(worker.clips(film))
            expected = list(cut.clips(film, how, cut.detect.make(how.detector)))
            assert [clip.number for clip in given] == [0, 1]
            for one, other in zip(given, expected, strict=True):
                np.testing.assert_array_equal(one.frames, other.frames)
                np.testing.assert_array_equal(one.waveform, other.waveform)
                assert (one.start, one.crop, one.reference) == (other.start, other.crop, other.reference)
