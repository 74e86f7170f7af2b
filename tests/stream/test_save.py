"""A stream is a value: saved anywhere and taken up again, it goes on as if nothing had been."""

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avatar_jax.core import spec, tree
from avatar_jax.core.check import validate
from avatar_jax.core.config import Config, TrainingConfig
from avatar_jax.io import record
from avatar_jax.models import wav2vec
from avatar_jax.stream import engine, hear, saved, speaker
from avatar_jax.stream.session import Avatar, Session, make_avatar
from tests.published import mini_live_avatar
from tests.stream import algorithm_1, test_session, test_speakers
from tests.stream.test_session import sound, weights_of
from tests.stream.test_speakers import HALVES, rows

PORTRAIT = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
KINDS = ("clean", "timestep", "knot", "pair")


def config_of(kind: str) -> TrainingConfig:
    if kind == "knot":
        return algorithm_1.small()
    cfg = test_speakers.driven() if kind == "pair" else test_session.small(kind)
    return validate(dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, adapt_blocks=3)))


@functools.lru_cache
def avatar_of(kind: str) -> Avatar:
    cfg = config_of(kind)
    return make_avatar(cfg, weights_of(cfg), PORTRAIT, masks=HALVES if kind == "pair" else None)


def events_of(kind: str) -> test_speakers.Events:
    """Five blocks and a half: sound of one speaker, or of two with signals, which come early, late or never."""
    length = 5 * 7680 + 3333
    if kind != "pair":
        return [("audio", 0, sound(length))]
    return [
        ("head", 0, rows(40, 2)),
        ("smile", 1, rows(66, 1)),
        ("audio", 0, sound(length)),
        ("head", 1, rows(70, 2, seed=1)),
        ("audio", 1, sound(length - 9000)[::-1]),
    ]


def perform(session: Session, events: test_speakers.Events) -> list[np.ndarray]:
    blocks = []
    for kind, who, data in events:
        if kind == "audio":
            blocks += session.push_audio(data, who)
        else:
            session.push_signals(kind, data, who)
    return [np.asarray(block) for block in blocks]


def split(events: test_speakers.Events, cut: float) -> tuple[test_speakers.Events, test_speakers.Events]:
    """What comes before and after a moment of a performance, the events one after the other, each cut anywhere."""
    at = cut * sum(len(data) for _, _, data in events)
    before, after = [], []
    for kind, who, data in events:
        here = int(np.clip(at, 0, len(data)))
        before.append((kind, who, data[:here]))
        after.append((kind, who, data[here:]))
        at -= here
    return before, after


@functools.lru_cache
def uninterrupted(kind: str) -> np.ndarray:
    session = Session(avatar_of(kind))
    return np.concatenate(perform(session, events_of(kind)) + session.finish())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3).map(sorted))
def test_a_stream_goes_on_from_where_it_was_saved(kind: str, cuts: list[float]):
    session, drawn, left, done = Session(avatar_of(kind)), [], events_of(kind), 0.0
    with tempfile.TemporaryDirectory() as name:
        for cut in cuts:
            now, left = split(left, (cut - done) / max(1 - done, 1e-9))
            drawn, done = drawn + perform(session, now), cut
            session.save(pathlib.Path(name))
            perform(session, left)  # the old one goes on, which the new one does not hear of
            session = Session.resume(avatar_of(kind), pathlib.Path(name))
    drawn += perform(session, left) + session.finish()
    np.testing.assert_array_equal(np.concatenate(drawn), uninterrupted(kind))
    assert len(uninterrupted(kind)) == 66 and uninterrupted(kind).std() > 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_saving_leaves_a_stream_and_its_programs_as_they_are(kind: str, tmp_path: pathlib.Path):
    avatar = avatar_of(kind)
    session, denoise = Session(avatar), engine.kind(avatar.cfg).make_denoise(avatar.cfg)
    before, after = split(events_of(kind), 0.6)
    drawn = perform(session, before)
    session.save(tmp_path)
    drawn += perform(session, after) + session.finish()
    programs = denoise._cache_size()
    np.testing.assert_array_equal(np.concatenate(drawn), uninterrupted(kind))
    perform(Session.resume(avatar, tmp_path), after)
    assert denoise._cache_size() == programs


def test_another_scene_is_saved_with_the_stream(tmp_path: pathlib.Path):
    avatar = avatar_of("clean")
    session, half = Session(avatar), sound(3 * 7680)
    session.push_audio(half)
    other = jax.random.normal(jax.random.key(5), session._engine._scene.reference.shape)  # type: ignore[attr-defined]
    scene = dataclasses.replace(session._engine._scene, reference=other)  # type: ignore[attr-defined]
    session._engine.show(scene)
    session.save(tmp_path)
    resumed = Session.resume(avatar, tmp_path)
    np.testing.assert_array_equal(resumed._engine._scene.reference, other)  # type: ignore[attr-defined]
    drawn, same = (np.concatenate(one.push_audio(half)) for one in (session, resumed))
    np.testing.assert_array_equal(same, drawn)


def wav2vec_hearing() -> tuple[Config, hear.Hearing]:
    cfg = mini_live_avatar.get_config()
    cfg = dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, audio_past=8, audio_ahead=3))
    return cfg, hear.make_hearing(cfg, spec.init(wav2vec.spec(cfg.sound), jax.random.key(0)))  # type: ignore[arg-type]


def mel_hearing(cfg: Config) -> tuple[Config, hear.Hearing]:
    return cfg, hear.make_hearing(cfg)


EARS = {
    "mel": lambda: mel_hearing(config_of("clean")),
    "mel with a knot": lambda: mel_hearing(config_of("knot")),
    "wav2vec2": wav2vec_hearing,
}


@pytest.mark.parametrize("name", EARS)
@pytest.mark.parametrize("cut", [0, 1, 2560, 7680, 20_001])
def test_a_track_hears_on(name: str, cut: int, tmp_path: pathlib.Path):
    """Through the folder: what waits, the ear's own state, and the left context."""
    cfg, hearing = EARS[name]()
    samples, whole = sound(24_000), speaker.Track(hearing(), cfg)
    first, second = (speaker.Track(hearing(), cfg) for _ in range(2))
    for track in (whole, first):
        track.push(samples[:cut])
        if track.ready:
            track.take()
    record.write(tmp_path, saved.leaves(first.state()), {})
    second.restore(tree.unflatten(record.read(tmp_path)[0]))
    for track in (whole, second):
        track.push(samples[cut:])
        track.finish(len(samples))
    assert second.samples == whole.samples
    while whole.ready:
        np.testing.assert_array_equal(second.take(), whole.take())
    assert not second.ready


def test_records_come_back_as_they_were(tmp_path: pathlib.Path):
    arrays = {
        "a/b": np.arange(6, dtype=np.int64).reshape(2, 3) << 40,
        "a/c": np.float32(np.pi) * np.ones(()),
        "half": np.asarray(jnp.ones((2, 2), jnp.bfloat16) / 3),
        "nothing": np.zeros((0, 7), np.float32),
        "flags": np.array([True, False]),
    }
    for number in range(3):
        record.write(tmp_path / "kept", arrays, {"number": number})
    found, about = record.read(tmp_path / "kept")
    assert about == {"number": 2} and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["2"]


def test_a_save_that_was_cut_short_leaves_the_one_before(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    record.write(tmp_path, {"x": np.ones(1)}, {"number": 0})
    with monkeypatch.context() as broken:
        broken.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ValueError, match=r"cannot be written \(No space left on device\)"):
            record.write(tmp_path, {"x": np.zeros(1)}, {"number": 1})
    assert record.read(tmp_path)[1] == {"number": 0}
    record.write(tmp_path, {"x": np.zeros(1)}, {"number": 2})
    assert record.read(tmp_path)[1] == {"number": 2} and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A stream of the clean engine, saved after a block."""
    folder, session = tmp_path_factory.mktemp("saved"), Session(avatar_of("clean"))
    session.push_audio(sound(7680))
    session.save(folder)
    return folder


def changed(section: str, **values: Any) -> Config:
    cfg = config_of("clean")
    part = dataclasses.replace(getattr(cfg, section), **values)
    return validate(dataclasses.replace(cfg, **{section: part}))


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (changed("stream", steps=3), r"config\.stream\.steps=2, where this one has 3; choose the --config it had"),
        (changed("video", height=48), r"config\.video\.height=32, where this one has 48"),
        (dataclasses.replace(config_of("clean"), name="other"), r"config\.name='tiny', where this one has 'other'"),
        (config_of("knot"), r"config\.name='tiny', where this one has 'tiny_knot'"),
    ],
)
def test_another_configuration_is_refused(folder: pathlib.Path, cfg: Config, words: str):
    with pytest.raises(ValueError, match=words):
        saved.read(folder, cfg)


def test_another_avatar_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path):
    cfg, speaking = config_of("clean"), avatar_of("pair")
    weights = weights_of(cfg)
    with pytest.raises(ValueError, match="of another portrait or checkpoint"):
        Session.resume(make_avatar(cfg, weights, 255 - PORTRAIT), folder)
    other = dataclasses.replace(weights, dit=jax.tree.map(lambda leaf: 1.1 * leaf, weights.dit))
    with pytest.raises(ValueError, match="of another portrait or checkpoint"):
        Session.resume(make_avatar(cfg, other, PORTRAIT), folder)
    Session(speaking).save(tmp_path)
    single = dataclasses.replace(speaking, masks=None)
    with pytest.raises(ValueError, match="saved stream: of 2 speakers, where this avatar has 1"):
        Session.resume(single, tmp_path)
    swapped = dataclasses.replace(speaking, masks=speaking.masks[::-1])  # type: ignore[index]
    with pytest.raises(ValueError, match="its speakers have other masks"):
        Session.resume(swapped, tmp_path)


def test_what_cannot_be_saved_or_read_is_refused(tmp_path: pathlib.Path):
    avatar = avatar_of("clean")
    with pytest.raises(ValueError, match=r"nowhere: holds nothing that was saved"):
        Session.resume(avatar, tmp_path / "nowhere")
    (tmp_path / "bad" / "0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"bad/0: cannot be read \(FileNotFoundError\); it is damaged"):
        Session.resume(avatar, tmp_path / "bad")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file: cannot be written \(File exists\)"):
        Session(avatar).save(tmp_path / "file")
    session = Session(avatar)
    session.push_audio(sound(100))
    session.finish()
    with pytest.raises(ValueError, match="the stream is over: save it before"):
        session.save(tmp_path / "over")


@pytest.mark.parametrize(("driver", "where"), [("spmd", "on a pool"), ("chain", "on a chain of devices")])
def test_streams_over_devices_are_refused(driver: str, where: str, tmp_path: pathlib.Path):
    cfg = config_of("timestep")
    cfg = validate(dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, stages=2, driver=driver)))
    avatar = make_avatar(cfg, weights_of(cfg), PORTRAIT)
    session = Session(avatar)
    with pytest.raises(ValueError, match=rf"config\.mesh: a stream {where} is neither saved nor resumed"):
        session.save(tmp_path / "new")
    session.close()
    Session(avatar_of("timestep")).save(tmp_path / "old")
    for _ in range(3):  # a refused one gives its seat back
        with pytest.raises(ValueError, match=f"a stream {where} is neither"):
            Session.resume(avatar, tmp_path / "old")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"x": {"0": np.ones(2, np.float32)}}, "1 arrays are not as in this run, x/1 the first"),
        (
            {"x": {"0": np.ones(2, np.float32), "1": np.ones(3, np.float32)}},
            r"x/1 is float32\[3\], where this run has float32\[2\]",
        ),
    ],
)
def test_a_tree_of_another_form_is_refused(found: dict, words: str):
    with pytest.raises(ValueError, match=words):
        saved.fill({"x": (jnp.ones(2), jnp.zeros(2))}, found)
