"""Clips from films: picture and sound stay together at any rate, crops hold the face, what is useless is left out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avatar_jax.data import cut, detect, source, world
from avatar_jax.data.controls import Controls
from avatar_jax.data.frames import wandering_clip
from avatar_jax.io.footage import Unusable
from avatar_jax.metrics import mouth, sync
from tests.data import films
from tests.data.faulty import everywhere, nobody
from tests.data.test_pool import cut_of

RATES = {
    "25": films.steady(125, 25),
    "29.97": films.steady(149, 30_000 / 1001),
    "30": films.steady(150, 30),
    "50": films.steady(250, 50),
    "variable": films.variable(5.0),
}


def offset(measured: np.ndarray, true: np.ndarray) -> float:
    """How many milliseconds one track of 25 frames a second comes after another."""
    frames, inner = np.arange(len(true)), np.arange(4, len(true) - 4)
    shifts = np.linspace(-3, 3, 121)
    alike = [sync.pearson(measured[inner], np.interp(inner - shift, frames, true)) for shift in shifts]
    assert max(alike) > 0.9
    return 40.0 * shifts[int(np.argmax(alike))]


@pytest.mark.parametrize("rate", RATES)
def test_mouth_and_sound_stay_together(tmp_path: Path, rate: str) -> None:
    """The mouth, as the reader measures it, within half a frame of the source; the sound to the sample."""
    frames, made = films.talking(2, RATES[rate], seconds=5.0)
    path = films.write(tmp_path / "a.mp4", frames, RATES[rate], made["waveform"])
    (clip,) = cut.clips(path, cut_of("", height=96, width=96, video_frames=96), detect.drawn())
    assert clip.frames is not None and clip.waveform is not None and clip.frames.shape == (97, 96, 96, 3)
    opening = mouth.read_frames(clip.frames[1:]).opening
    assert abs(offset(opening, made["controls"][:96, 0])) <= 20.0
    heard, said = clip.waveform, made["waveform"]
    alike = [float(heard[1000 + shift : 60_000 + shift] @ said[1000:60_000]) for shift in range(-80, 81)]
    assert abs(int(np.argmax(alike)) - 80) <= 1


def flashes(times: np.ndarray) -> np.ndarray:
    """Light from 1.0 to 1.4 s; a stripe wanders, so that nothing is still."""
    frames = np.full((len(times), 48, 48, 3), 60, np.uint8)
    frames[(times >= 1.0 - 1e-6) & (times < 1.4 - 1e-6)] = 90
    for frame, time in zip(frames, times, strict=True):
        frame[:, int(time * 20) % 40 :][:, :6] += 20
    return frames


@pytest.mark.parametrize("rate", RATES)
def test_a_flash_stays_with_its_beep(tmp_path: Path, rate: str) -> None:
    """By construction: the lit ticks are those whose middle lies where a lit frame is on screen."""
    times = RATES[rate]
    clock = np.arange(5 * films.HZ) / films.HZ
    beep = np.where((clock >= 1.0) & (clock < 1.4), 0.5, 0.02) * np.sin(clock * 4000)
    path = films.write(tmp_path / "a.mkv", flashes(times), times, beep.astype(np.float32), acodec="pcm_s16le")
    clip = next(cut.clips(path, cut_of("", video_frames=96), everywhere()))
    assert clip.frames is not None and clip.waveform is not None
    lit = np.flatnonzero(clip.frames[1:].mean((1, 2, 3)) > 78)
    middles = (np.arange(96) + 0.5) / 25
    on_screen = times[np.searchsorted(times, middles + 1e-6, side="right") - 1]
    np.testing.assert_array_equal(lit, np.flatnonzero((on_screen >= 1.0 - 1e-6) & (on_screen < 1.4 - 1e-6)))
    loud = np.flatnonzero(np.abs(clip.waveform) > 0.25)
    assert abs(loud[0] - 16_000) <= 8 and abs(loud[-1] - 22_400) <= 8


@settings(deadline=None)
@given(st.lists(st.floats(0.004, 0.4), min_size=1, max_size=60), st.sampled_from([16, 25, 30]), st.floats(-100, 1e6))
def test_ticks_show_what_is_on_screen(steps: list[float], fps: int, start: float) -> None:
    times = start + np.concatenate([[0.0], np.cumsum(steps)])
    ticks = list(cut.ticks(iter((time, k) for k, time in enumerate(times)), fps))
    numbers = [k for k, _ in ticks]
    assert numbers == sorted(set(numbers))
    for k, shown in ticks:
        middle = start + (k + 0.5) / fps
        assert times[shown] <= middle + 1e-4
        assert shown == len(times) - 1 or middle <= times[shown + 1] + 1e-4
    slow = [step > cut.GAP_S for step in steps]
    if not any(slow):
        assert numbers == list(range(len(numbers))) and len(numbers) >= (times[-1] - start) * fps - 1


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.floats(-50, 3000), st.floats(-50, 3000), st.floats(1, 3000),
    st.sampled_from([(96, 96), (480, 832), (400, 720)]),
)  # fmt: skip
def test_crops_lie_within(rows: int, columns: int, x: float, y: float, side: float, shape: tuple[int, int]) -> None:
    how = cut_of("", height=shape[0], width=shape[1])
    left, top, wide, high = cut.square(np.array([x, y, side, side]), rows, columns, how)
    assert left >= 0 and left + wide <= columns and top >= 0 and top + high <= rows and min(wide, high) >= 1
    assert abs(wide / how.width - high / how.height) * min(how.height, how.width) <= 1 or min(wide, high) == 1


def drawn_film(path: Path, frames: np.ndarray, waveform: np.ndarray, **how) -> Path:
    return films.write(path, frames, films.steady(len(frames), 25), waveform, **how)


@pytest.fixture(scope="module")
def talk() -> tuple[np.ndarray, np.ndarray]:
    """Four seconds of a face, and a hum."""
    hum = 0.1 * np.sin(np.arange(64_000) * 0.1)
    return films.talking(1, films.steady(100, 25), seconds=4.0, size=64)[0], hum.astype(np.float32)


def reasons(path: Path, find=None, **how) -> list[str | None]:
    """Of every clip, then of the file."""
    found, end = {}, []
    try:
        for clip in cut.clips(path, cut_of("", **how), find or everywhere()):
            found[clip.number] = clip.reason
    except Unusable as error:
        end = [error.reason]
    return [found[number] for number in range(len(found))] + end


def test_useless_clips_are_left_out_by_name(tmp_path: Path, talk) -> None:
    frames, hum = talk

    def film(name: str, pictures=frames, sound=hum) -> Path:
        return drawn_film(tmp_path / f"{name}.mp4", pictures, sound)

    assert reasons(film("whole")) == [None] * 4
    assert reasons(film("silent", sound=hum * 0.001)) == ["silent"] * 4
    half = np.where(np.arange(len(hum)) < 31_000, hum, 0)
    assert reasons(film("half", sound=half)) == [None, None, "silent", "silent"]
    assert reasons(film("still", np.repeat(frames[:1], 100, 0))) == ["still"] * 4
    assert reasons(film("short", frames[:20])) == ["short"]
    assert reasons(film("faceless"), nobody()) == ["no_face"] * 4
    assert reasons(film("small"), height=200, width=200) == ["small_face"] * 4
    slow = films.write(tmp_path / "slow.mp4", frames[:40], films.steady(40, 10), hum)
    assert reasons(slow) == ["slow"] * 4
    assert set(cut.REASONS) == {"silent", "still", "short", "no_face", "small_face", "slow"}


def test_clips_do_not_cross_a_cut_or_a_gap(tmp_path: Path, talk) -> None:
    """Other scenery from frame 40 on: clips of 24 begin at 0, 40 and 64, and the first is alone in its scene."""
    frames, voice = talk
    two = np.concatenate([frames[:40], 255 - frames[40:]])
    clips = list(cut.clips(drawn_film(tmp_path / "a.mp4", two, voice), cut_of(""), everywhere()))
    assert [clip.start for clip in clips] == [0.0, 1.6, 2.56]
    assert [clip.reference for clip in clips] == ["own", "clip 2", "clip 1"]
    late = np.where(np.arange(100) >= 40, 1.0, 0.0) + films.steady(100, 25)
    path = films.write(tmp_path / "b.mp4", frames, late, np.tile(voice, 2))
    assert [clip.start for clip in cut.clips(path, cut_of(""), everywhere())] == [0.0, 2.6, 3.56]


def test_a_reference_is_a_frame_of_another_clip(tmp_path: Path, talk) -> None:
    one, two, *_ = cut.clips(drawn_film(tmp_path / "a.mp4", *talk), cut_of(""), everywhere())
    assert one.frames is not None and two.frames is not None
    np.testing.assert_array_equal(one.frames[0], two.frames[1 + 12])
    assert np.abs(one.frames[0].astype(int) - one.frames[1:]).mean((1, 2, 3)).min() > 0


def test_a_clip_without_a_face_can_be_kept_and_says_so(tmp_path: Path, talk) -> None:
    path = drawn_film(tmp_path / "a.mp4", talk[0][:, 4:60], talk[1])
    clip = next(cut.clips(path, cut_of("", faceless="centre"), nobody()))
    assert clip.reason is None and clip.crop == {"rule": "centre", "box": [0.0625, 0.0, 0.875, 1.0]}


def test_drawn_faces_are_found_where_they_are() -> None:
    """Forty identities at a moment of their motion, in a corner of a wide picture: recall, place and size."""
    find, near = detect.drawn(), []
    for index in range(40):
        frame = wandering_clip(7, index, video_frames=8, size=96)[7]
        picture = np.full((120, 213, 3), frame[0, 0], np.uint8)
        x, y = index * 3 % 117, index % 24
        picture[y : y + 96, x : x + 96] = frame
        box = find(picture)
        if box is not None:
            middle = box[:2] + box[2:] / 2 - (x, y)
            near.append(np.abs(middle - 96 * np.array([0.5, 0.53])).max() < 12 and 30 < box[2] < 66)
    assert sum(near) >= 37


def test_no_drawn_face_is_seen_in_noise() -> None:
    find, rng = detect.drawn(), np.random.default_rng(0)
    assert not any(find(rng.integers(0, 256, (120, 160, 3), np.uint8)) is not None for _ in range(10))


def test_photographs_of_faces_are_found() -> None:
    data = pytest.importorskip("skimage.data")
    box = detect.faces()(data.astronaut())
    assert box is not None and 150 < box[0] + box[2] / 2 < 290 and 60 < box[1] + box[3] / 2 < 190


def test_a_head_turned_in_a_film_keeps_one_crop(tmp_path: Path) -> None:
    motion = np.array(source.clip(7, 3, video_frames=50, size=32)["controls"])
    frames = world.render_clip(source.identity_of(7, 3), Controls.from_array(motion), 64)
    voice = np.sin(np.arange(50 * 640) * 0.1).astype(np.float32) / 4
    clips = list(cut.clips(drawn_film(tmp_path / "a.mp4", frames, voice), cut_of(""), detect.drawn()))
    assert [clip.crop and clip.crop["rule"] for clip in clips] == ["face", "face"]


def test_detectors_are_named() -> None:
    assert detect.make("tests.data.faulty:nobody")(np.zeros((8, 8, 3), np.uint8)) is None
    for name in ("nowhere", "nowhere:at_all", "tests.data.faulty:nothing", ""):
        with pytest.raises(ValueError, match="give module:function"):
            detect.make(name)
