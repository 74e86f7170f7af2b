"""What ships with the package works: the embedded avatar, its weights and its recording."""

import numpy as np
import pytest

from avatar_jax.core import check
from avatar_jax.io.audio import open_audio
from avatar_jax.io.image import load_portrait
from avatar_jax.stream import session
from configs import tiny, tiny_driven, tiny_knot
from infer import door

LIMIT_MB = 40


@pytest.fixture(scope="module", params=[tiny, tiny_driven, tiny_knot], ids=lambda given: given.__name__)
def performance(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """The embedded portrait, and the frames in which it says three seconds of the embedded recording."""
    cfg = check.validate(request.param.get_config())
    portrait = load_portrait(door.embedded("portrait.png"), height=cfg.video.height, width=cfg.video.width)
    with open_audio(door.embedded("speech.wav"), audio_hz=cfg.mel.audio_hz) as sound:
        samples = sound.read(3 * cfg.mel.audio_hz)
    avatar = session.make_avatar(cfg, session.load_weights(cfg, door.embedded(cfg.name)), portrait)
    live = session.Session(avatar)
    return portrait, np.concatenate(live.push_audio(samples) + live.finish())


@pytest.mark.parametrize("name", ["tiny", "tiny_driven", "tiny_knot"])
def test_the_embedded_checkpoints_are_small(name: str):
    size = sum(path.stat().st_size for path in door.embedded(name).iterdir())
    assert 0 < size <= LIMIT_MB * 1e6


def test_the_embedded_avatar_keeps_its_face_and_moves(performance):
    portrait, frames = performance
    assert frames.shape == (75, 96, 96, 3)
    corner = frames[:, :12, :12].astype(float).mean((0, 1, 2))
    assert np.abs(corner - portrait[:12, :12].mean((0, 1))).max() < 25  # the backdrop stays its own colour
    mouth = frames[:, 56:84, 32:64].astype(float)
    assert mouth.std(0).mean() > 3.0  # and the lower face does not stand still
