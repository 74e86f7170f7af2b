"""Videos: sound and picture exact to the sample, playable after a kill, nothing half-written."""

import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avatar_jax.io import video
from avatar_jax.io.errors import InputError
from avatar_jax.io.video import VideoWriter, check_output, read_video

FPS, HZ = 25, 48000
HOP = HZ // FPS
SLOW_WRITER = """
import sys, time, numpy as np
from avatar_jax.io.video import VideoWriter
with VideoWriter(sys.argv[1], height=96, width=96, fps=25, audio_hz=48000, overwrite=True) as writer:
    for k in range(1000):
        writer.write(np.full((12, 96, 96, 3), 5 * k % 255, np.uint8), np.zeros(12 * 1920, np.float32))
        print(writer.video_frames, flush=True)
        time.sleep(0.02)
"""


def open_writer(path: Path, **options: object) -> VideoWriter:
    settings = {"height": 96, "width": 96, "fps": FPS, "audio_hz": HZ, "overwrite": False, **options}
    return VideoWriter(path, **settings)  # type: ignore[arg-type]


def grey(frames: int, level: int = 90) -> np.ndarray:
    return np.full((frames, 96, 96, 3), level, np.uint8)


def noise(frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (frames, 96, 96, 3), np.uint8)


def quiet(frames: int) -> np.ndarray:
    return np.zeros(frames * HOP, np.float32)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("vcodec", video.CODECS)
@pytest.mark.parametrize("audio_hz", [16000, 48000])
def test_flash_and_beep_stay_together(vcodec: str, audio_hz: int, tmp_path: Path) -> None:
    hop, total = audio_hz // FPS, 60
    frames, samples = grey(total, 0), np.zeros(total * hop, np.float32)
    for k in (10, 35):
        frames[k] = 255
        samples[k * hop : (k + 1) * hop] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(hop) / audio_hz)
    with open_writer(tmp_path / "talk.mp4", vcodec=vcodec, audio_hz=audio_hz) as writer:
        for at in range(0, total, 12):
            writer.write(frames[at : at + 12], samples[at * hop : (at + 12) * hop])
    shown, heard, fps = read_video(tmp_path / "talk.mp4", audio_hz=48000)
    assert shown.shape == (total, 384, 384, 3)
    assert (fps, heard.size) == (25, total * 1920)
    np.testing.assert_array_equal(np.flatnonzero(shown.mean((1, 2, 3)) > 128), [10, 35])
    beep = np.abs(heard) > 0.1
    for k in (10, 35):
        near = beep[(k - 5) * 1920 : (k + 5) * 1920]
        assert abs(np.argmax(near) - 5 * 1920) < 48  # a millisecond; one frame is 40
        assert abs(np.argmax(near[::-1]) - 4 * 1920) < 240  # the codec's ringing


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.array(
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 120), (255, 255, 255), (30, 80, 160)], np.uint8
    )
    frame = np.repeat(np.repeat(colours[None], 16, axis=1), 96, axis=0)
    with open_writer(tmp_path / "talk.mp4") as writer:
        writer.write(np.tile(frame, (5, 1, 1, 1)), quiet(5))
    shown = read_video(tmp_path / "talk.mp4")[0][4]
    assert np.abs(shown[192, 32::64].astype(int) - colours).max() <= 6


def test_the_finished_file_starts_at_once_and_stands_alone(tmp_path: Path) -> None:
    with open_writer(tmp_path / "talk.mp4") as writer:
        writer.write(grey(25), quiet(25))
        assert left_in(tmp_path) == {"talk.partial.mp4"}
    assert left_in(tmp_path) == {"talk.mp4"}
    content = (tmp_path / "talk.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert b"moof" not in content


def test_long_videos_stay_fragmented_to_spare_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "FASTSTART_S", 1)
    with open_writer(tmp_path / "talk.mp4") as writer:
        writer.write(grey(30), quiet(30))
    assert left_in(tmp_path) == {"talk.mp4"}
    assert b"moof" in (tmp_path / "talk.mp4").read_bytes()
    assert len(read_video(tmp_path / "talk.mp4")[0]) == 30


def test_the_last_frame_may_be_partly_silent_and_gaps_become_silence(tmp_path: Path) -> None:
    tone = 0.3 * np.sin(np.arange(20 * HOP, dtype=np.float32))
    with open_writer(tmp_path / "talk.mp4") as writer:
        writer.write(grey(10), tone[: 9 * HOP])
        writer.write(grey(10), tone[: 10 * HOP - 100])
    frames, heard, _ = read_video(tmp_path / "talk.mp4", audio_hz=HZ)
    assert len(frames) == 20
    assert abs(heard.size - 20 * HOP) <= HOP
    loud = np.abs(heard[: 19 * HOP]).reshape(-1, HOP).max(axis=1) > 0.1
    np.testing.assert_array_equal(np.flatnonzero(~loud), [9])


def test_small_frames_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    assert [video.upscale_factor(h, w, 384) for h, w in ((96, 96), (128, 96), (100, 100), (480, 832))] == [
        4,
        4,
        3,
        1,
    ]
    with open_writer(tmp_path / "talk.mp4", display_size=96) as writer:
        writer.write(noise(2), quiet(2))
    assert read_video(tmp_path / "talk.mp4")[0].shape == (2, 96, 96, 3)


def test_ctrl_c_keeps_the_video_so_far(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "talk.mp4") as writer:
        writer.write(grey(24), quiet(24))
        raise KeyboardInterrupt
    assert left_in(tmp_path) == {"talk.mp4"}
    assert len(read_video(tmp_path / "talk.mp4")[0]) == 24


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "talk.mp4"):
        raise KeyboardInterrupt
    assert left_in(tmp_path) == set()


def test_an_error_leaves_the_old_video_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "talk.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError), open_writer(tmp_path / "talk.mp4", overwrite=True) as writer:
        writer.write(grey(24), quiet(24))
        raise RuntimeError("the engine failed")
    assert left_in(tmp_path) == {"talk.mp4"}
    assert (tmp_path / "talk.mp4").read_bytes() == b"old"


def test_overwriting_replaces_the_old_video(tmp_path: Path) -> None:
    (tmp_path / "talk.mp4").write_bytes(b"old")
    with open_writer(tmp_path / "talk.mp4", overwrite=True) as writer:
        writer.write(grey(5), quiet(5))
        assert (tmp_path / "talk.mp4").read_bytes() == b"old"
    assert len(read_video(tmp_path / "talk.mp4")[0]) == 5


@pytest.mark.parametrize("room", [150_000, 600_000])
def test_a_full_disk_is_one_line_and_keeps_the_partial_video(room: int, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(InputError) as caught, open_writer(tmp_path / "talk.mp4") as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            for _ in range(100):
                writer.write(noise(12), quiet(12))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the disk is full" in str(caught.value)
    assert "talk.partial.mp4" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path) == {"talk.partial.mp4"}


def test_a_disk_too_full_to_finish_keeps_the_whole_partial_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video, "remux", full)
    with pytest.raises(InputError, match="the disk is full"), open_writer(tmp_path / "talk.mp4") as writer:
        writer.write(grey(24), quiet(24))
    assert left_in(tmp_path) == {"talk.partial.mp4"}
    assert len(read_video(tmp_path / "talk.partial.mp4")[0]) == 24


def test_a_kill_leaves_a_playable_video(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_WRITER, str(tmp_path / "talk.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        written = [int(line) for line, _ in zip(process.stdout, range(12), strict=False)]
        process.send_signal(signal.SIGKILL)
    assert left_in(tmp_path) == {"talk.partial.mp4"}
    frames, heard, _ = read_video(tmp_path / "talk.partial.mp4", audio_hz=HZ)
    assert len(frames) >= written[-1] - 24
    assert heard.size >= (written[-1] - 24) * HOP


def test_a_growing_video_can_be_watched(tmp_path: Path) -> None:
    with open_writer(tmp_path / "talk.mp4") as writer:
        for _ in range(4):
            writer.write(noise(12), quiet(12))
        shutil.copy(tmp_path / "talk.partial.mp4", tmp_path / "look.mp4")
    assert len(read_video(tmp_path / "look.mp4")[0]) >= 24


def test_impossible_outputs_are_refused_before_any_work(tmp_path: Path) -> None:
    def refusal(name: str, *, overwrite: bool = False) -> str:
        with pytest.raises(InputError) as caught:
            check_output(tmp_path / name, overwrite=overwrite)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "old.mp4").write_bytes(b"old")
    (tmp_path / "folder.mp4").mkdir()
    assert "exists already" in refusal("old.mp4")
    assert "--overwrite" in refusal("old.mp4")
    assert "does not exist" in refusal("nowhere/talk.mp4")
    assert "is a directory" in refusal("folder.mp4", overwrite=True)
    assert "not an .mp4 name" in refusal("talk.avi")
    assert "does not exist" in refusal("old.mp4/talk.mp4")
    assert check_output(tmp_path / "old.mp4", overwrite=True) == tmp_path / "old.mp4"


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vcodec='h264'"):
        open_writer(tmp_path / "a.mp4", vcodec="h264")
    with pytest.raises(ValueError, match="multiple of fps"):
        open_writer(tmp_path / "a.mp4", audio_hz=44100, fps=24)
    with pytest.raises(ValueError, match="even sides"):
        open_writer(tmp_path / "a.mp4", height=481, width=832)
    with pytest.raises(RuntimeError), open_writer(tmp_path / "a.mp4") as writer:
        with pytest.raises(ValueError, match="expected uint8"):
            writer.write(grey(2)[:, :64], quiet(2))
        with pytest.raises(ValueError, match="hold at most"):
            writer.write(grey(2), quiet(3))
        raise RuntimeError
    assert left_in(tmp_path) == set()


def test_reading_refuses_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    with pytest.raises(InputError, match="not a video"):
        read_video(tmp_path / "text.mp4")
    with pytest.raises(InputError, match="no such file"):
        read_video(tmp_path / "none.mp4")
