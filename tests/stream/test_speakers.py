"""Signals and speakers of a live stream: however they arrive the same, never waited for, each in its own place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core.check import validate
from avatar_jax.core.config import Signal, TrainingConfig
from avatar_jax.stream import chain, engine, rollout, speaker
from avatar_jax.stream.session import Avatar, Session, make_avatar
from avatar_jax.stream.state import BlockInput, Speaker, Weights
from tests.stream.test_pipeline import begin, block_of, mesh_of, play, seat_of
from tests.stream.test_session import small, sound, weights_of

SIGNALS = (Signal("head", (0.1, 0.05)), Signal("smile", (0.3,)))
HALVES = np.repeat(np.eye(2, dtype=np.float32), 16, 1)[:, None].repeat(32, 1)  # left and right of 32 x 32


def driven(history: str = "clean") -> TrainingConfig:
    cfg = small(history)
    return validate(dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, signals=SIGNALS)))


def avatar_of(masks: np.ndarray | None) -> Avatar:
    cfg = driven()
    portrait = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return make_avatar(cfg, weights_of(cfg), portrait, masks=masks)


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    return avatar_of(None)


@pytest.fixture(scope="module")
def pair() -> Avatar:
    return avatar_of(HALVES)


def rows(frames: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, width]).standard_normal((frames, width)).astype(np.float32) * 0.2


Events = list[tuple[str, int, np.ndarray]]  # kind (a signal or "audio"), speaker, data


def perform(avatar: Avatar, events: Events) -> np.ndarray:
    session, blocks = Session(avatar), []
    for kind, who, data in events:
        if kind == "audio":
            blocks += session.push_audio(data, who)
        else:
            session.push_signals(kind, data, who)
    return np.concatenate(blocks + session.finish())


def in_pieces(events: Events, sizes: dict[str, list[int]]) -> Events:
    """Every event cut at the given sizes, whichever remains last; the order of the kinds is kept."""
    cut: Events = []
    for kind, who, data in events:
        ends = np.cumsum(sizes[kind])
        cut += [(kind, who, part) for part in np.split(data, ends[ends < len(data)])]
    return cut


def difference(one: np.ndarray, two: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - two.astype(int)).max())


def test_however_signals_and_voices_arrive_the_stream_is_the_same(pair):
    one, two = sound(30_000), sound(25_000)[::-1]
    events = [
        ("head", 0, rows(40, 2)),
        ("smile", 1, rows(30, 1)),
        ("head", 1, rows(47, 2, seed=1)),
        ("audio", 0, one),
        ("audio", 1, two),
    ]
    whole = perform(pair, events)
    assert len(whole) == 47  # the longer recording
    sizes = {"head": [1, 12, 3], "smile": [7, 7], "audio": [1, 639, 9000, 7]}
    np.testing.assert_array_equal(perform(pair, in_pieces(events, sizes)), whole)
    voices_first = [*events[:3], events[4], events[3]]
    np.testing.assert_array_equal(perform(pair, voices_first), whole)
    stepped: Events = []
    for block in range(4):  # live: the rows of each block just before its sound
        frames, samples = slice(12 * block, 12 * (block + 1)), slice(7680 * block, 7680 * (block + 1))
        stepped += [(kind, who, data[samples if kind == "audio" else frames]) for kind, who, data in events]
    np.testing.assert_array_equal(perform(pair, stepped), whole)
    assert rollout.make_denoise(pair.cfg)._cache_size() == 1  # type: ignore[attr-defined]


def test_signals_drive_the_picture_and_are_never_waited_for(avatar):
    heard: Events = [("audio", 0, sound(7680 * 3))]
    plain, head = perform(avatar, heard), rows(36, 2)
    led = perform(avatar, [("head", 0, head), *heard])
    assert difference(led[:12], plain[:12]) > 0 and difference(led[24:], plain[24:]) > 0
    absent = [("head", 0, np.full((36, 2), np.nan)), *heard]
    np.testing.assert_array_equal(perform(avatar, absent), plain)
    late = [("audio", 0, sound(7680 * 3)[:7680]), ("head", 0, head), ("audio", 0, sound(7680 * 3)[7680:])]
    gone = [("head", 0, np.concatenate([np.full((12, 2), np.nan), head[12:]])), *heard]
    np.testing.assert_array_equal(perform(avatar, late), perform(avatar, gone))
    np.testing.assert_array_equal(perform(avatar, late)[:12], plain[:12])
    short = perform(avatar, [("head", 0, head[:12]), *heard])
    np.testing.assert_array_equal(short[:12], led[:12])


def test_a_row_may_name_its_frame(avatar):
    head, session = rows(24, 2), Session(avatar)
    session.push_signals("head", head[12:], frame=12)
    reused = head[:12].copy()
    session.push_signals("head", reused, frame=0)
    reused[:] = 0.0
    named = np.concatenate(session.push_audio(sound(7680 * 2)))
    np.testing.assert_array_equal(named, perform(avatar, [("head", 0, head), ("audio", 0, sound(7680 * 2))]))


def test_two_halves_with_one_voice_are_one_speaker(avatar, pair):
    """Masks that add up to one, the same sound and signals in each: the picture of a single speaker."""
    head, heard = rows(24, 2), sound(7680 * 2)
    single = perform(avatar, [("head", 0, head), ("audio", 0, heard)])
    both = [(kind, who, data) for who in (0, 1) for kind, data in (("head", head), ("audio", heard))]
    assert difference(perform(pair, both), single) <= 1
    other = [*both[:3], ("audio", 1, heard[::-1])]
    assert difference(perform(pair, other), single) > 1


def test_masks_of_tokens_are_means_of_pixels():
    cfg = small("clean")
    odd = np.zeros((1, 32, 32), np.float32)
    odd[:, :, :20] = 1.0  # a token and a quarter, of 16 pixels
    masks = speaker.token_masks(odd, cfg)
    assert masks.shape == (1, 1, cfg.stream.block_latents, cfg.tokens_per_frame)
    np.testing.assert_array_equal(masks.reshape(-1, *cfg.grid), np.tile([1.0, 0.25], (3, 2, 1)))


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (np.ones((2, 8, 8)), r"masks of shape \(2, 8, 8\): must be \(speakers, 32, 32\)"),
        (np.ones((32, 32)), r"masks of shape \(32, 32\)"),
        (np.full((1, 32, 32), 255), r"values must lie in 0\.\.1"),
        (np.full((1, 32, 32), np.nan), r"values must lie in 0\.\.1"),
    ],
)
def test_wrong_masks_are_refused(masks: np.ndarray, words: str):
    with pytest.raises(ValueError, match=words):
        speaker.token_masks(masks, small("clean"))


def test_wrong_signals_and_speakers_are_refused(avatar):
    session = Session(avatar)
    with pytest.raises(ValueError, match="signal 'hed': must be one of head, smile"):
        session.push_signals("hed", rows(1, 2))
    with pytest.raises(ValueError, match=r"signal 'head' of shape \(1, 3\): must be \(frames, 2\)"):
        session.push_signals("head", rows(1, 3))
    with pytest.raises(ValueError, match="speaker 1: the avatar has 1, counted from 0"):
        session.push_audio(sound(1), 1)


def driven_block(number: int, cfg: TrainingConfig) -> BlockInput:
    """Two speakers with masks and signals, the second one's absent from the second block on."""
    block, masks = block_of(number, cfg), speaker.token_masks(HALVES, cfg)
    (first,) = block.speakers
    led = {name: jnp.asarray(rows(12, width, seed=number))[None] for name, width in (("head", 2), ("smile", 1))}
    left = {name: row if number == 0 else jnp.full_like(row, jnp.nan) for name, row in led.items()}
    pair = (Speaker(first.features, led, masks[0]), Speaker(first.features[:, ::-1], left, masks[1]))
    return dataclasses.replace(block, speakers=pair)


def test_every_engine_draws_the_same(monkeypatch: pytest.MonkeyPatch):
    """Tokens and masks of two speakers move from stage to stage with their block."""
    cfg = driven("timestep")
    weights: Weights = weights_of(cfg)
    scene, state = begin(weights, cfg)
    expected = play(engine.Sequential(weights, scene, state, cfg), cfg, {})
    monkeypatch.setattr("tests.stream.test_pipeline.block_of", driven_block)
    led = play(engine.Sequential(weights, scene, state, cfg), cfg, {})
    assert min(np.abs(one - two).max() for one, two in zip(expected, led, strict=True)) > 1e-3
    piped = seat_of(weights, scene, mesh_of(stages=2), cfg)
    for drawer in (piped, chain.Chained(weights, scene, state, jax.devices()[:3], cfg)):
        np.testing.assert_allclose(np.stack(play(drawer, cfg, {})), np.stack(led), atol=1e-6)
