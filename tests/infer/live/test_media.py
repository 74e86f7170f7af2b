"""Frames and sound to fragments, for players and for the recording."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from infer.live import record
from infer.live.encode import Encoder, Fragment
from infer.live.record import Recording
from tests.infer.live.house import FORM, paint, voice


def encoded(frames: int, *, key_at: int | None = None, **given) -> tuple[Encoder, list[Fragment]]:
    encoder = Encoder(height=32, width=32, fps=25, audio_hz=16000, **given)
    beep = voice(frames / 25).reshape(frames, -1) * (np.arange(frames) % 25 == 10)[:, None]
    found = []
    for k, sound in enumerate(beep):
        if k == key_at:
            encoder.want_key()
        found += encoder.encode(paint(sound, 40)[0], sound)
    encoder.close()
    return encoder, found


def played(data: bytes) -> tuple[list[tuple[float, float]], np.ndarray]:
    """Time and grey of every frame, and the sound."""
    with av.open(io.BytesIO(data), "r") as file:
        pictures = [
            (frame.time or 0.0, float(frame.to_ndarray(format="gray").mean())) for frame in file.decode(video=0)
        ]
    with av.open(io.BytesIO(data), "r") as file:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    return pictures, sound


@pytest.mark.parametrize(("vcodec", "name"), [("libx264", "avc1[.]6400.."), ("libvpx-vp9", "vp09[.]00[.][1-6].[.]08")])
def test_a_stream_is_a_fragment_a_frame_with_picture_and_sound_on_one_clock(vcodec: str, name: str):
    encoder, fragments = encoded(60, vcodec=vcodec)
    assert re.fullmatch(f'video/mp4; codecs="{name}, opus"', encoder.mime)
    assert len(fragments) == 60
    pictures, sound = played(encoder.init + b"".join(fragment.data for fragment in fragments))
    flashes = [time for time, grey in pictures if grey > 80]
    loud = np.flatnonzero(np.abs(sound) > 0.1)
    beeps = loud[np.r_[True, np.diff(loud) > 4800]] / 48_000
    assert len(pictures) == 60 and flashes == pytest.approx([0.4, 1.4], abs=1e-6)
    assert np.abs(np.asarray(flashes) - beeps).max() < 0.002


@pytest.mark.parametrize("vcodec", ["libx264", "libvpx-vp9"])
def test_a_player_can_begin_at_a_key_frame_that_was_asked_for(vcodec: str):
    encoder, fragments = encoded(40, key_at=20, vcodec=vcodec)
    start = next(k for k, fragment in enumerate(fragments) if fragment.key and k > 15)
    assert fragments[0].key and start <= 21
    pictures, _ = played(encoder.init + b"".join(fragment.data for fragment in fragments[start:]))
    assert len(pictures) == 20 and pictures[0][0] == pytest.approx(0.8)


def test_retouching_sees_every_frame_at_the_size_that_is_shown():
    seen = []

    def retouch(frame: np.ndarray, number: int) -> np.ndarray:
        seen.append((frame.shape, number))
        return frame

    encoder, _ = encoded(3, retouch=retouch)
    assert seen == [((*encoder.size, 3), k) for k in range(3)] and encoder.size == (384, 384)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_streams_that_have_ended_hold_no_codecs():
    ended = [encoded(3)[0] for _ in range(3)]
    before = resident_mb()
    ended += [encoded(3)[0] for _ in range(12)]
    assert resident_mb() - before < 20 and all(encoder.mime for encoder in ended)  # 5 MB each otherwise


def test_a_call_without_a_frame_ends_without_one():
    encoder = Encoder(height=32, width=32, fps=25, audio_hz=16000)
    encoder.close()
    assert encoder.frames == 0


def test_a_recording_is_finished_with_its_index_in_front(tmp_path):
    encoder, fragments = encoded(50)
    recording = Recording(tmp_path, "call")
    for fragment in fragments:
        recording.write(encoder.init, [fragment])
    recording.close()
    data = (tmp_path / "call.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and b"moof" not in data
    assert len(played(data)[0]) == 50 and os.listdir(tmp_path) == ["call.mp4"]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from infer.live.encode import Encoder
from infer.live.record import Recording
encoder, recording = Encoder(height=32, width=32, fps=25, audio_hz=16000), Recording(Path(sys.argv[1]), "call")
for k in range(100):
    fragments = encoder.encode(np.full((32, 32, 3), k, np.uint8), np.zeros(640, np.float32))
    recording.write(encoder.init, fragments)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_recording_opens_and_is_mended(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(played((tmp_path / "call.live.mp4").read_bytes())[0]) >= 95
    with (tmp_path / "call.live.mp4").open("ab") as file:
        file.write(b"\0\0\1\0moof cut")  # a fragment that the kill cut
    (tmp_path / "empty.live.mp4").touch()
    assert record.mend(tmp_path) == [tmp_path / "call.mp4"]
    assert len(played((tmp_path / "call.mp4").read_bytes())[0]) >= 95
    assert os.listdir(tmp_path) == ["call.mp4"]


def test_old_recordings_go(tmp_path):
    for name, age_s in (("old.mp4", 100), ("new.mp4", 0), ("old.live.mp4", 100)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age_s, 1000 - age_s))
    assert record.expire(tmp_path, 950) == [tmp_path / "old.mp4"]
    assert sorted(os.listdir(tmp_path)) == ["new.mp4", "old.live.mp4"]


def test_form():
    assert (FORM.hop, FORM.block_samples, FORM.block_s) == (640, 7680, 0.48)
