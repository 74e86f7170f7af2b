"""The knot engine against Algorithm 1 written down literally: lists of frames, all computed anew in each call."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avatar_jax.core import spec
from avatar_jax.core.check import validate
from avatar_jax.core.config import Config, KnotConfig
from avatar_jax.models import condition, wav2vec
from avatar_jax.nn import rope
from avatar_jax.stream import clock, engine, hear, knot, rollout
from avatar_jax.stream.session import Avatar, Session, make_avatar
from avatar_jax.stream.state import BlockInput, Speaker, StreamState, Tied
from configs.tiny_knot import get_config
from tests.published import mini_live_avatar
from tests.stream.algorithm_1 import STEPS, Literal, inputs, scene_of, small, weights
from tests.stream.test_session import play, sound

SHAPES = [(3, 6, 1), (2, 5, 2), (3, 3, 1), (1, 4, 1), (2, 7, 1)]  # c, L, k


def block_of(chunk: int, cfg: Config, *, at: int | None = None) -> BlockInput:
    """A chunk's input; at: the number that the clock is told."""
    noise, features = inputs(chunk, cfg)
    number = chunk if at is None else at
    place = dataclasses.replace(clock.place(number, cfg), tied=np.array([chunk > 0]))
    return BlockInput((Speaker(features),), noise, place)


def begin(cfg: Config) -> StreamState:
    return engine.start(weights(), scene_of(cfg), cfg)


def stream(cfg: Config, chunks: int, first: int = 0, *, compiled: bool = True) -> list[np.ndarray]:
    """The latents of each chunk."""
    denoise = knot.make_denoise(cfg) if compiled else functools.partial(knot.denoise, cfg=cfg)
    tied, drawn = begin(cfg).caches, []
    for chunk in range(chunks):
        block = block_of(chunk, cfg, at=first + chunk)
        tied, latent = denoise(weights().dit, tied, block)
        drawn.append(np.asarray(latent))
    return drawn


@pytest.mark.parametrize(("c", "window", "k"), SHAPES)
def test_the_engine_equals_algorithm_1(c: int, window: int, k: int):
    cfg = small(c, window, k)
    expected = list(Literal(cfg, 5).run())
    found = stream(cfg, 5)
    assert min(np.abs(np.diff(chunk, axis=1)).mean() if c > 1 else 1.0 for chunk in expected) > 0.1
    for chunk in range(5):
        np.testing.assert_allclose(found[chunk], expected[chunk], atol=1e-5)


@dataclasses.dataclass
class Seen:
    """What one network call reads."""

    chunk: list[int]  # latent frames that go through the network
    history: list[int]
    known: list[int]
    reference: int


def position(phase: rope.Phase) -> list[int]:
    """Positions 0 to 63 of phases along time, [F, K_time]."""
    cfg = small()
    table = np.stack(clock.time_phase(np.arange(64), cfg), -1)
    rows = np.stack([np.asarray(side) for side in phase], -1)
    return np.abs(rows[:, None] - table[None]).max((-1, -2)).argmin(1).tolist()


def record(monkeypatch: pytest.MonkeyPatch, cfg: Config, chunks: int) -> list[Seen]:
    """Every network call of a stream, read from where its keys are written and how many are read.

    Whatever the network would say, it says zero.
    """
    calls, lying, steps = [], {}, cfg.stream.steps

    def call(p, memory, flight, at, number, heard, cross, *, band=None, cfg):
        place, slots = flight.place, np.ravel(flight.place.slots).tolist()
        times = position(rope.Phase(*(side[0] for side in place.time)))
        lying.update({slot: (time, number) for slot, time in zip(slots, times, strict=True)})
        readable, left = divmod(int(np.ravel(place.filled)[0]), cfg.tokens_per_frame)
        assert left == 0 and set(slots) <= set(range(readable)) <= set(lying)
        others = [lying[slot] for slot in range(readable) if slot not in slots]
        assert all(number == steps for _, number in others)  # finished frames, at level 0: never a knot
        mask = np.asarray(flight.known[0, :, 0, 0, :4])
        assert (mask.min(1) == mask.max(1)).all() and not np.asarray(flight.known)[0][mask[:, 0] == 0].any()
        known = [time for time, row in zip(times, mask, strict=True) if row[0]]
        ahead = position(rope.Phase(*(side[0, number] for side in place.reference_time)))
        calls.append(Seen(times, sorted(time for time, _ in others), known, *ahead))
        return memory, jnp.zeros(flight.latent.shape)

    monkeypatch.setattr(rollout, "call", call)
    stream(cfg, chunks, compiled=False)
    return calls


def index_table() -> list[Seen]:
    """Section 1.4, chunks 0 to 3, two steps and a pass into memory each."""
    rows = [
        ([0, 1, 2, 3], [], [], 8),
        ([3, 4, 5, 6], [0, 1, 2], [3], 8),
        ([6, 7, 8, 9], [3, 4, 5], [6], 12),
        ([9, 10, 11, 12], [6, 7, 8], [9], 16),
    ]
    expected = []
    for drawn, history, known, reference in rows:
        expected += [Seen(drawn, history, known, reference)] * STEPS
        expected.append(Seen(drawn[:3], history, drawn[:3], reference))
    return expected


def test_the_index_table(monkeypatch):
    assert record(monkeypatch, small(), 4) == index_table()


@pytest.mark.parametrize(("c", "window", "k"), SHAPES)
def test_the_history_of_other_lengths(monkeypatch, c: int, window: int, k: int):
    cfg = small(c, window, k)
    for number, seen in enumerate(record(monkeypatch, cfg, 6)):
        chunk, step = divmod(number, STEPS + 1)
        i = chunk * c
        assert seen.chunk == list(range(i, i + c + (k if step < STEPS else 0)))
        assert seen.history == list(range(max(0, i + c - window), i))
        assert seen.reference >= i + c + k


def fusion(monkeypatch: pytest.MonkeyPatch, c: int, window: int, k: int) -> float:
    """How far any border latent of three chunks, shown or remembered, is from the mean of its two predictions."""
    cfg, predictions, remembered, plain = small(c, window, k), [], [], rollout.predict

    def predict(*args, **how):
        memory, x0 = plain(*args, **how)
        predictions.append(np.asarray(x0))
        return memory, x0

    def call(p, memory, flight, at, number, heard, cross, *, band=None, cfg):
        if number == cfg.stream.steps:  # the pass at level 0, all that stays in the memory
            remembered.append(np.asarray(flight.latent))
        return memory, 0.1 * flight.latent

    monkeypatch.setattr(rollout, "predict", predict)
    monkeypatch.setattr(rollout, "call", call)
    drawn = stream(cfg, 3, compiled=False)
    assert len(predictions) == 3 * STEPS
    np.testing.assert_array_equal(remembered, drawn)
    worst = 0.0
    last = predictions[STEPS - 1 :: STEPS]  # of each chunk
    np.testing.assert_array_equal(drawn[0], last[0][:, :c])
    for chunk in (1, 2):
        two = (last[chunk - 1][:, c:] + last[chunk][:, :k]) / 2
        worst = max(worst, float(np.abs(drawn[chunk][:, :k] - two).max()))
        np.testing.assert_array_equal(drawn[chunk][:, k:], last[chunk][:, k:c])
        assert np.abs(two - last[chunk][:, :k]).max() > 1e-3
    return worst


@pytest.mark.parametrize(("c", "window", "k"), SHAPES)
def test_a_knot_is_fused_once(monkeypatch, c: int, window: int, k: int):
    assert fusion(monkeypatch, c, window, k) <= 1e-6


def test_a_reference_is_a_known_frame():
    cfg, p = small(), weights().dit
    scene = scene_of(cfg)
    shown = jnp.concatenate([scene.reference, jnp.ones((1, 1, 4, 4, 4)), scene.reference], -1)
    plain = {key: value for key, value in p.items() if key != "type"}
    given = condition.Given(known=shown[..., 16:])
    expected = condition.embed_noisy(plain, scene.reference, given, cfg.dit) + p["type"][condition.REFERENCE]
    np.testing.assert_allclose(condition.embed_reference(p, scene.reference, cfg.dit), expected, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8), st.data(), st.integers(0, 40), st.integers(0, 12), st.integers(0, 10**7))
def test_the_reference_runs_ahead(c: int, data: st.DataObject, start: int, more: int, chunk: int):
    k = data.draw(st.integers(1, c))
    cfg = dataclasses.replace(
        get_config().stream, block_latents=c, knot=KnotConfig(k, 2 * c, reference_start=start, reference_jump=c + more)
    )
    n, i = clock.running_ahead(chunk, cfg), chunk * c
    assert n >= i + c + k and n >= start and (n - start) % (c + more) == 0
    if n > start:
        assert n - (c + more) < i + c + k  # it jumped because it had to
    before = clock.running_ahead(max(0, chunk - 1), cfg)
    assert n - before in (0, c + more)


def test_the_reference_of_a_stream():
    cfg = small()
    assert [clock.running_ahead(chunk, cfg.stream) for chunk in range(7)] == [8, 8, 12, 16, 16, 20, 24]
    assert clock.times(2, cfg).tolist() == [6, 7, 8, 9] and clock.waits(cfg) == 4


def test_positions_are_exact_at_any_chunk():
    """Distances between a chunk's frames and its reference are the same 2e7 latents later."""
    cfg = small()

    def turned(chunk: int) -> np.ndarray:
        time, ahead = clock.phases(chunk, cfg)
        here, there = (np.asarray(side.cos) + 1j * np.asarray(side.sin) for side in (time, ahead))
        return there[0] / here

    np.testing.assert_allclose(turned(10_000_000), turned(100), atol=1e-6)


def test_a_late_chunk_is_as_exact_as_an_early_one():
    """10^7 and 10^2 are whole turns of window and reference apart: same places, same gaps."""
    cfg = small()
    late, early = stream(cfg, 3, first=10_000_000), stream(cfg, 3, first=100)
    np.testing.assert_allclose(late, early, atol=1e-6)


REFUSED = [
    ("stream.engine", "knots"),
    ("stream.engine", "sink"),
    ("stream.history", "timestep"),
    ("stream.knot", None),
    ("stream.knot.latents", 0),
    ("stream.knot.latents", 4),
    ("stream.knot.window", 2),
    ("stream.knot.reference_jump", 2),
    ("stream.knot.reference_start", -1),
    ("dit.condition_channels", 0),
    ("mesh.stages", 2),
    ("mesh.driver", "chain"),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_the_refusal_names_the_field(field: str, value: object):
    cfg = get_config()
    *parents, name = field.split(".")
    node = functools.reduce(getattr, parents, cfg)
    setattr(node, name, value)
    named = "stream.knot" if (field, value) == ("stream.engine", "sink") else field
    with pytest.raises(ValueError, match=rf"^config\.{named}="):
        validate(cfg)


def test_the_published_lengths():
    cfg = validate(importlib.import_module("configs.knot_1b3").get_config())
    lengths = cfg.stream.knot
    assert (cfg.stream.steps, cfg.stream.block_latents, lengths.window, lengths.latents) == (4, 3, 6, 1)
    assert cfg.tokens_per_frame == 1560 and clock.waits(cfg) == 4 + 3


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    cfg = small()
    portrait = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return make_avatar(cfg, weights(), portrait)


def test_however_sound_arrives_the_stream_is_the_same(avatar):
    samples = sound(4 * avatar.cfg.block_samples + 1000)
    whole = play(avatar, samples, [])
    np.testing.assert_array_equal(play(avatar, samples, [1, 639, 5000, 7, 7681]), whole)
    assert whole.std() > 1.0


@pytest.mark.parametrize("samples", [1, 640, 641, 7680, 7681, 7680 + 2560, 20000, 3 * 7680])
def test_frames_cover_the_sound_exactly(avatar, samples):
    assert len(play(avatar, sound(samples), [])) == -(-samples // 640)


def test_a_chunk_waits_for_the_sound_of_its_knot(avatar):
    """12 frames are shown when 16 have been heard, and they follow the sound of all 16."""
    session, heard = Session(avatar), sound(16 * 640)
    assert session.push_audio(heard[: 16 * 640 - 1]) == []
    first = session.push_audio(heard[-1:])
    assert [len(block) for block in first] == [12] and session.push_audio(heard[: 12 * 640 - 1]) == []
    other = Session(avatar).push_audio(np.concatenate([heard[: 12 * 640], -heard[: 4 * 640]]))
    assert np.abs(first[0].astype(int) - other[0]).max() > 0


def test_silence_alone_makes_no_frames(avatar):
    session = Session(avatar)
    assert session.push_audio(sound(0)) == [] and session.finish() == []


def test_the_session_equals_a_plain_rollout(avatar):
    """Compiled and fed by the session, or uncompiled: the same pixels, and nothing is compiled after the warm-up."""
    samples, compiled = sound(3 * avatar.cfg.block_samples), knot.make_denoise(avatar.cfg)
    programs = compiled._cache_size()  # type: ignore[attr-defined]
    drawn = play(avatar, samples, [])
    assert compiled._cache_size() == programs  # type: ignore[attr-defined]
    session = Session(avatar)
    session._engine._denoise = functools.partial(knot.denoise, cfg=avatar.cfg)  # type: ignore[attr-defined]
    seen = np.concatenate(session.push_audio(samples) + session.finish())
    assert np.abs(seen.astype(int) - drawn.astype(int)).max() <= 1  # rounding to uint8


def test_another_scene_leaves_the_knot():
    cfg = small()
    drawer = engine.Sequential(weights(), scene_of(cfg), begin(cfg), cfg)
    drawer.feed(block_of(0, cfg))
    before = drawer._caches
    assert isinstance(before, Tied)
    tie = np.asarray(before.knot)
    drawer.show(scene_of(cfg, seed=9))
    np.testing.assert_array_equal(drawer._caches.knot, tie)
    (found,), (same,) = drawer.feed(block_of(1, cfg)), stream(cfg, 2)[1:]
    assert np.abs(np.asarray(found.latent) - same).max() > 1e-3


def features(ear: hear.Ear, samples: np.ndarray, pieces: list[int]) -> np.ndarray:
    blocks, at = [], 0
    for size in [*pieces, len(samples)]:
        blocks, at = blocks + ear.push(samples[at : at + size]), at + size
    return np.stack(blocks + ear.finish())


@pytest.mark.parametrize("length", [1, 7680, 7680 + 2560, 20000])
def test_log_mel_features_of_a_knot_come_twice(length: int):
    cfg, plain, samples = small(), validate(importlib.import_module("configs.tiny").get_config()), sound(length)
    tied = features(hear.MelEar(cfg), samples, [300, 9000])
    alone = np.concatenate(features(hear.MelEar(plain), samples, []))
    np.testing.assert_allclose(np.concatenate(tied[:, :12]), alone, atol=1e-5)
    np.testing.assert_array_equal(tied[:-1, 12:], tied[1:, :4])
    assert tied.shape[1] == 16


def test_wav2vec2_waits_for_the_knot():
    cfg = mini_live_avatar.get_config()
    cfg.sound = dataclasses.replace(cfg.sound, layers=1)
    lengths = KnotConfig(latents=1, window=6, reference_start=8, reference_jump=4)
    cfg.stream = dataclasses.replace(cfg.stream, engine="knot", knot=lengths, audio_past=8, audio_ahead=3)
    hearing = hear.make_hearing(cfg, spec.init(wav2vec.spec(cfg.sound), jax.random.key(0)))  # type: ignore[arg-type]
    samples = sound(30 * 640)
    ear = hearing()
    assert ear.push(samples[: 19 * 640 - 1]) == [] and len(ear.push(samples[19 * 640 - 1 : 19 * 640])) == 1
    whole = features(hearing(), samples, [])
    assert whole.shape[:2] == (3, 16)
    np.testing.assert_array_equal(features(hearing(), samples, [77, 12 * 640]), whole)
