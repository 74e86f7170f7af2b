"""Recordings as streams: formats, exact lengths, splits, constant memory, one clear line for bad input."""

import os
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avatar_jax.io.audio import aligned, mix, open_audio, verify_audio
from avatar_jax.io.errors import InputError
from tests.io import sounds

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_all(path: Path, *, block: int = 7680, audio_hz: int = 16000) -> np.ndarray:
    with open_audio(path, audio_hz=audio_hz) as stream:
        return np.concatenate(list(stream.blocks(block)))


def refusal(path: object) -> str:
    with pytest.raises(InputError) as caught:
        verify_audio(path)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    assert os.path.basename(str(path))[:20] in line
    return line


def test_recordings_are_heard_together_within_full_scale() -> None:
    loud, short, none = np.full(4, 0.75, np.float32), np.array([0.5, -0.25], np.float32), np.zeros(0, np.float32)
    np.testing.assert_array_equal(aligned([short, loud, none]), [[0.5, -0.25, 0, 0], loud, np.zeros(4)])
    np.testing.assert_array_equal(mix([short, loud, none]), np.array([1.0, 0.5, 0.75, 0.75], np.float32))
    assert mix([none, none]).size == 0


@pytest.mark.parametrize("name", sounds.CONTAINERS)
def test_every_container_gives_the_same_sound_at_its_exact_length(name: str, tmp_path: Path) -> None:
    path = sounds.write_recording(tmp_path, name)
    samples = read_all(path)
    expected = sounds.chirp(16000)
    assert samples.dtype == np.float32
    assert abs(samples.size - expected.size) <= 1
    n = min(samples.size, expected.size)
    assert np.corrcoef(samples[:n], expected[:n])[0, 1] > 0.99
    assert verify_audio(path) == pytest.approx(sounds.SECONDS, abs=1e-3)


def test_vorbis_written_by_soundfile(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", sounds.chirp(44100), 44100)
    assert read_all(tmp_path / "a.ogg").size == 16000 * sounds.SECONDS


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_sample_types_keep_their_scale(subtype: str, tmp_path: Path) -> None:
    expected = sounds.chirp(16000, 1)
    soundfile.write(tmp_path / "a.wav", expected, 16000, subtype=subtype)
    np.testing.assert_allclose(read_all(tmp_path / "a.wav"), expected, atol=0.03 if subtype == "ULAW" else 0.009)


def test_only_libsndfile_knows_this_format(tmp_path: Path) -> None:
    expected = sounds.chirp(16000, 1)
    soundfile.write(tmp_path / "a.wav", expected, 16000, format="PAF", subtype="PCM_16")
    np.testing.assert_allclose(read_all(tmp_path / "a.wav"), expected, atol=1e-4)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sounds.chirp(16000, 1), np.full(16000, 0.25, np.float32)
    soundfile.write(tmp_path / "a.flac", np.stack([left, right], axis=1), 16000)
    np.testing.assert_allclose(read_all(tmp_path / "a.flac"), (left + right) / 2, atol=1e-4)


def test_the_name_decides_nothing(tmp_path: Path) -> None:
    path = sounds.write_recording(tmp_path, "speech.webm")
    assert read_all(path.rename(tmp_path / "speech.wav")).size == 16000 * sounds.SECONDS


def test_loud_floats_are_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(1000, -1e30, np.float32), 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_all(tmp_path / "a.wav"), np.full(1000, -1, np.float32))


def test_no_network_and_no_other_file_is_opened(tmp_path: Path) -> None:
    secret = sounds.write_recording(tmp_path, "speech.wav")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    (tmp_path / "upload.m3u8").write_text(playlist)
    assert "is not a recording" in refusal(tmp_path / "upload.m3u8")
    (tmp_path / "list.txt").write_text(f"ffconcat version 1.0\nfile {secret}\n")
    assert "is not a recording" in refusal(tmp_path / "list.txt")


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([8000, 11025, 22050, 24000, 44100, 48000, 96000]),
    st.integers(1, 60_000),
    st.lists(st.integers(1, 9000), min_size=1, max_size=5),
)
def test_any_split_gives_the_same_samples_and_the_exact_length(
    tmp_path_factory: pytest.TempPathFactory, audio_hz: int, n: int, reads: list[int]
) -> None:
    path = tmp_path_factory.mktemp("split") / "a.wav"
    source = np.random.default_rng(n).uniform(-0.5, 0.5, n).astype(np.float32)
    soundfile.write(path, source, audio_hz, subtype="FLOAT")
    try:
        whole = read_all(path, block=1_000_000)
    except InputError:
        assert n * 16000 / audio_hz < 1  # less than one sample at 16 kHz
        return
    assert abs(whole.size - n * 16000 / audio_hz) <= 1.5
    parts = []
    with open_audio(path) as stream:
        for count in reads:
            parts.append(stream.read(count))
            assert parts[-1].size <= count
        parts += list(stream.blocks(4096))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_resampling_matches_one_shot(tmp_path: Path) -> None:
    source = np.random.default_rng(0).uniform(-0.5, 0.5, 44100).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", source, 44100, subtype="FLOAT")
    np.testing.assert_allclose(read_all(tmp_path / "a.wav"), soxr.resample(source, 44100, 16000), atol=1e-5)


def test_own_rate_and_header_duration(tmp_path: Path) -> None:
    path = sounds.write_recording(tmp_path, "speech.flac")
    with open_audio(path, audio_hz=None) as stream:
        assert (stream.audio_hz, stream.source_hz) == (44100, 44100)
        assert stream.duration_s == pytest.approx(sounds.SECONDS, abs=1e-3)
        assert sum(block.size for block in stream.blocks(1000)) == 44100 * sounds.SECONDS


def _sparse_wav(path: Path, seconds: int) -> Path:
    """A silent 44.1 kHz stereo recording that takes no room on the disk."""
    size = seconds * 44100 * 4
    soundfile.write(path, np.zeros((0, 2), np.float32), 44100, subtype="PCM_16")
    header = bytearray(path.read_bytes()[:44])
    header[4:8], header[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(44 + size)
    return path


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    def peak(seconds: int, minutes_read: float) -> int:
        with open_audio(_sparse_wav(tmp_path / f"{seconds}.wav", seconds)) as stream:
            assert stream.duration_s == seconds
            tracemalloc.start()
            for _, block in zip(range(int(minutes_read * 125)), stream.blocks(7680), strict=False):
                assert block.size
            _, top = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return top

    peak(10, 1)  # first use of the resampler
    short, long = peak(10, 0.15), peak(5 * 3600, 2)
    assert long < short + 200_000


def test_missing_unreadable_or_odd_files(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing.wav")
    assert "is a directory" in refusal(tmp_path)
    assert "not a regular file" in refusal(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe.wav")
    assert "not a regular file" in refusal(tmp_path / "pipe.wav")
    (tmp_path / "empty.wav").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.wav")
    assert "cannot be opened" in refusal("x" * 5000)
    with pytest.raises(InputError, match="is not a file name"):
        verify_audio("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permission_denied(tmp_path: Path) -> None:
    path = sounds.write_recording(tmp_path, "speech.wav")
    path.chmod(0)
    assert "permission denied" in refusal(path)


def test_a_text_file_named_wav(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("These are my notes.\n" * 200)
    assert "is not a recording; give a wav" in refusal(tmp_path / "notes.wav")


def test_no_samples_and_no_audio_track(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16000)
    assert "0 samples" in refusal(tmp_path / "none.wav")
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert "no audio track" in refusal(silent)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_non_finite_samples_are_named_with_their_time(bad: float, subtype: str, tmp_path: Path) -> None:
    samples = sounds.chirp(44100, 2)
    samples[66150] = bad
    soundfile.write(tmp_path / "bad.wav", np.stack([samples, samples], 1), 44100, subtype=subtype)
    assert "NaN or infinite sample at 1.500 s" in refusal(tmp_path / "bad.wav")


@pytest.mark.parametrize(
    "name", ["speech.wav", "speech.flac", "speech.mp3", "speech.m4a", "speech.webm", "speech.aiff"]
)
def test_half_a_file_is_refused(name: str, tmp_path: Path) -> None:
    path = sounds.write_recording(tmp_path, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in refusal(path) or name == "speech.m4a"  # its index is at the end: nothing can be read


def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = sounds.write_recording(tmp_path, "speech.wav")
    data = path.read_bytes()
    at = data.index(b"data") + 4
    path.write_bytes(data[:4] + b"\xff\xff\xff\xff" + data[8:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    assert abs(read_all(path).size - 16000 * sounds.SECONDS) <= 1


def test_junk_at_the_end_of_an_mp3_is_ignored(tmp_path: Path) -> None:
    path = sounds.write_recording(tmp_path, "speech.mp3")
    path.write_bytes(path.read_bytes() + b"TAG" + b"some title" * 12)
    assert verify_audio(path) == pytest.approx(sounds.SECONDS, abs=0.06)


@RELAXED
@given(
    st.binary(min_size=1, max_size=4000),
    st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"]),
)
def test_random_bytes_never_raise_anything_else(tmp_path: Path, data: bytes, magic: bytes) -> None:
    (tmp_path / "garbage.wav").write_bytes(magic + data)
    try:
        verify_audio(tmp_path / "garbage.wav")
    except InputError as error:
        assert "garbage.wav: " in str(error)


@RELAXED
@given(st.data())
@pytest.mark.parametrize(
    "name", ["speech.wav", "speech.flac", "speech.mp3", "speech.opus", "speech.m4a", "speech.webm"]
)
def test_mutated_recordings_never_raise_anything_else(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = tmp_path / name
    if not path.exists():
        sounds.write_recording(tmp_path, name, 0.3)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 12))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "mutated").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert verify_audio(tmp_path / "mutated") > 0
    except InputError as error:
        assert "mutated: " in str(error)
