"""The stage on the real pool: two calls with portraits of their own, and a change of one of them."""

import dataclasses
import time

import numpy as np
import pytest

from avatar_jax.core.check import validate
from avatar_jax.stream import session
from avatar_jax.stream.live import Live
from infer.live import studio
from infer.live.call import Look
from infer.live.line import Line
from infer.live.stage import Part, Stage
from tests.stream.test_pipeline import run
from tests.stream.test_session import sound, weights_of


def drawn(stage: Stage, part: Part, frames: int) -> np.ndarray:
    """So many frames of a part, however long they take."""
    taken = []
    end = time.monotonic() + 120.0
    while len(taken) < frames and time.monotonic() < end:
        stage.turn(time.monotonic())
        while part.reel:
            taken.append(part.reel.popleft().frame)
    return np.stack(taken[:frames])


@pytest.mark.slow
def test_calls_on_the_pool_are_what_sessions_draw(monkeypatch, tmp_path):
    cfg = run(4)
    many = validate(dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, streams=2)))
    weights = weights_of(cfg)
    monkeypatch.setattr(session, "load_weights", lambda cfg, folder: weights)
    rng = np.random.default_rng(0)
    looks = [Look(name, rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for name in ("one", "two")]
    house = studio.Studio(many, tmp_path)
    assert house.rehearse(looks[0]) > 0.0
    assert house.prepare(looks[0]) is house.prepare(looks[0]) is not house.prepare(looks[1])
    stage = Stage(Live(house.seats, patience_s=1e9, ahead=3), beat_s=0.0)
    parts = []
    for look in looks:
        line = Line(audio_hz=house.form.audio_hz, live_s=1.0, speech_s=60.0)
        line.say(sound(4 * house.form.block_samples))
        parts.append(stage.join(house.prepare(look), line, house.form, ahead=2))
    for look, part in zip(looks, parts, strict=True):
        found = drawn(stage, part, 3 * house.form.block_frames)
        alone = session.Session(session.make_avatar(cfg, weights, look.portrait))
        expected = np.concatenate(alone.push_audio(sound(3 * house.form.block_samples)))
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # rounding
    parts[0].guest.show(house.scene(looks[1]))
    assert drawn(stage, parts[0], 2 * house.form.block_frames).shape == (2 * house.form.block_frames, 32, 32, 3)
    for part in parts:
        stage.leave(part)
