"""Raw videos: upright, on one clock with their sound, refused by name where they are not whole."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avatar_jax.io.footage import REASONS, Pictures, Sound, Unusable
from tests.data import films

CLOCKWISE = (0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)  # what a phone held upright writes (ISO 14496-12)
MATRIX = 44  # bytes from the word tkhd of a version 0 box to its matrix


def scene(rows: int = 48, columns: int = 64, count: int = 5) -> np.ndarray:
    """A picture that no turn or flip leaves as it is."""
    frame = np.zeros((rows, columns, 3), np.uint8)
    frame[: rows // 2, : columns // 2] = 255, 40, 40
    frame[rows // 2 :, : columns // 4] = 40, 255, 40
    return np.repeat(frame[None], count, 0)


def film(path: Path, frames: np.ndarray | None = None, waveform: np.ndarray | None = None, **how) -> Path:
    frames = scene() if frames is None else frames
    return films.write(path, frames, films.steady(len(frames), 25), waveform, **how)


def first(path: Path, shorter: int = 1000) -> np.ndarray:
    with Pictures(path) as pictures:
        return pictures.upright(next(iter(pictures))[1], shorter).astype(int)


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_turned_videos_are_shown_upright(tmp_path: Path, turn: int) -> None:
    stored = np.rot90(scene(), -turn // 90, (1, 2))
    seen = first(film(tmp_path / "a.mp4", stored, rotation=turn))
    assert seen.shape == (48, 64, 3) and np.abs(seen - scene()[0]).mean() < 12


def test_a_phones_matrix_turns_clockwise(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", np.rot90(scene(), 1, (1, 2)))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + MATRIX
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, *CLOCKWISE)
    path.write_bytes(data)
    assert np.abs(first(path) - scene()[0]).mean() < 12


def test_an_odd_angle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="45 degrees"):
        first(film(tmp_path / "a.mp4", rotation=45))


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    assert first(film(tmp_path / "a.mp4"), 24).shape == (24, 32, 3)


@pytest.mark.parametrize("start", [-0.2, 0.0, 0.3])
def test_sound_stands_where_it_stood(tmp_path: Path, start: float) -> None:
    tone = np.zeros(48_000, np.float32)
    tone[24_000:] = 0.5 * np.sin(np.arange(24_000) * 0.2)  # from half a second of the sound on
    frames = scene(count=25)
    shift = max(0.0, -start)  # containers have no time before zero: then the picture comes late
    at = films.steady(25, 25) + shift
    path = films.write(tmp_path / "a.mkv", frames, at, tone, hz=48_000, acodec="pcm_s16le", sound_start=max(0.0, start))
    with Pictures(path) as pictures, Sound(path, audio_hz=16_000, start=pictures.start) as sound:
        parts = [sound.read(at, 640, missing=640) for at in range(0, 16_000 - round(16_000 * shift), 640)]
    heard = np.concatenate(parts)
    assert abs(int(np.argmax(np.abs(heard) > 0.05)) - round((0.5 + start) * 16_000)) <= 16  # a millisecond
    with Pictures(path) as pictures, Sound(path, audio_hz=16_000, start=pictures.start) as sound:
        np.testing.assert_array_equal(sound.read(3 * 640, 1280, missing=0), heard[3 * 640 : 5 * 640])


def reason(path: Path) -> str | None:
    """Why a file, read to its end, is not whole."""
    try:
        with Pictures(path) as pictures, Sound(path, audio_hz=16_000, start=pictures.start) as sound:
            for k, (_, frame) in enumerate(pictures):
                pictures.upright(frame, 100)
                sound.read(k * 640, 640, missing=320)
    except Unusable as error:
        assert str(error) and "\n" not in str(error)
        return error.reason
    return None


def voice(seconds: float = 1.0) -> np.ndarray:
    return (0.1 * np.sin(np.arange(round(seconds * films.HZ)) * 0.1)).astype(np.float32)


def test_what_is_not_whole_says_why(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", scene(count=25), voice())
    data, nan = whole.read_bytes(), np.full_like(voice(), np.nan)
    found = {}

    def put(name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        found[name] = reason(tmp_path / name)

    put("empty.mp4", b"")
    put("text.mp4", b"no video at all")
    put("playlist.mp4", b"#EXTM3U\nfile:///etc/hostname\n")
    put("half.mp4", data[: len(data) // 2])
    found["whole"] = reason(whole)
    found["folder"] = reason(tmp_path)
    found["mute"] = reason(film(tmp_path / "mute.mp4", scene(count=25)))
    found["sound only"] = reason(films.write(tmp_path / "none.mkv", scene(count=0), np.zeros(0), voice()))
    found["nan"] = reason(film(tmp_path / "nan.mkv", scene(count=25), nan, acodec="pcm_f32le"))
    found["ended"] = reason(film(tmp_path / "ended.mp4", scene(count=50), voice()))
    assert found == {
        "empty.mp4": "empty",
        "text.mp4": "not_video",
        "playlist.mp4": "not_video",
        "half.mp4": "not_video",
        "whole": None,
        "folder": "unreadable",
        "mute": "no_sound",
        "sound only": "no_video",
        "nan": "damaged",
        "ended": "sound_ended",
    }
    assert set(filter(None, found.values())) <= set(REASONS)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("streams")
    made = [film(folder / "a.mp4", scene(count=25), voice())]
    made.append(film(folder / "a.ts", scene(count=25), voice(), acodec="mp2", hz=48_000))
    made.append(film(folder / "a.mkv", scene(count=25), voice()))
    return [path.read_bytes() for path in made]


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 2), start=st.floats(0, 1), stop=st.floats(0, 1), byte=st.integers(0, 255))
def test_any_piece_ends_by_name(
    streams: list[bytes], tmp_path_factory: pytest.TempPathFactory, which: int, start: float, stop: float, byte: int
) -> None:
    """A piece cut out, its first byte changed: nothing else than Unusable comes."""
    data = bytearray(streams[which])
    low, high = sorted((int(start * len(data)), int(stop * len(data))))
    del data[low:high]
    data[low : low + 1] = bytes([byte])
    path = tmp_path_factory.getbasetemp() / "piece"
    path.write_bytes(data)
    assert reason(path) in {None, *REASONS}
