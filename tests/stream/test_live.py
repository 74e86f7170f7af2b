"""The mesh waits for nobody: late sound becomes silence, a slow viewer's seat pauses, the others never notice."""

import dataclasses

import numpy as np
import pytest

from avatar_jax.core.check import validate
from avatar_jax.stream import pool, session
from avatar_jax.stream.live import Guest, Live, Shown
from avatar_jax.stream.session import Avatar, make_avatar, make_pool
from tests.stream.test_pipeline import run
from tests.stream.test_session import sound, weights_of

PATIENCE_S, AHEAD = 0.1, 6


@pytest.fixture(scope="module")
def house() -> tuple[pool.Pool, Avatar, Avatar]:
    """A pool of three seats over two stages; and an avatar alone on one device."""
    cfg = run(4)
    many = validate(dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, streams=3, stages=2)))
    weights, portrait = weights_of(cfg), np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    seats = make_pool(weights, many)
    return seats, make_avatar(many, weights, portrait, seats=seats), make_avatar(cfg, weights, portrait)


def alone(avatar: Avatar, samples: np.ndarray) -> np.ndarray:
    return np.concatenate(session.Session(avatar).push_audio(samples))


def joined(shown: list[Shown]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([block.frames for block in shown]), np.concatenate([block.sound for block in shown])


def rest(guest: Guest, blocks: int) -> list[Shown]:
    """What is still to come, once it is computed."""
    shown = []
    while len(shown) < blocks:
        shown += guest.fetch()
    return shown


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # rounding


def test_nobody_waits_for_late_sound_or_a_slow_viewer(house):
    seats, avatar, single = house
    cfg, hall = avatar.cfg, Live(seats, patience_s=PATIENCE_S, ahead=AHEAD)
    good, late, slow = (hall.join(avatar) for _ in range(3))
    size, step_s, turns = cfg.block_samples, cfg.block_samples / cfg.sound.audio_hz, 10
    samples = sound(turns * size)
    fault = slice(3 * size + size // 2, 4 * size)  # comes with the block after
    shown: dict[Guest, list[Shown]] = {good: [], late: []}
    for turn in range(turns):
        piece = slice(turn * size, (turn + 1) * size)
        came = {3: slice(piece.start, fault.start), 4: slice(fault.start, piece.stop)}.get(turn, piece)
        good.push_audio(samples[piece], turn * step_s)
        slow.push_audio(samples[piece], turn * step_s)
        late.push_audio(samples[came], turn * step_s)
        hall.beat((turn + 1) * step_s)
        hall.beat((turn + 1) * step_s + PATIENCE_S)
        for guest, seen in shown.items():
            seen += guest.fetch()
        assert slow.outstanding <= AHEAD
    hall.beat(turns * step_s)
    for guest, seen in shown.items():
        seen += rest(guest, turns - len(seen))
    broken = samples.copy()
    broken[fault] = 0.0
    for guest, expected in ((good, samples), (late, broken)):
        frames, heard = joined(shown[guest])
        np.testing.assert_array_equal(heard, expected)
        assert close(frames, alone(single, expected))
    assert (late.late, late.silent, good.silent, slow.silent) == (size // 2, size // 2, 0, 0)
    held = rest(slow, AHEAD)
    assert slow.outstanding == 0  # what it left unread stopped its seat, and nothing else
    for _ in range(turns - AHEAD + 2):
        hall.beat(turns * step_s)
        held += slow.fetch()
    held += rest(slow, turns - len(held))
    assert close(joined(held)[0], alone(single, samples))
    for guest in (good, late, slow):
        hall.leave(guest)


def test_a_pool_with_nothing_to_do_does_not_tick(house):
    seats, avatar, _ = house
    hall = Live(seats, patience_s=PATIENCE_S, ahead=AHEAD)
    guest, before = hall.join(avatar), seats._ticks
    for second in range(5):
        hall.beat(float(second))
    assert seats._ticks == before and guest.fetch() == []
    hall.leave(guest)
