"""The drawing shows what its controls say: the mouth's inside, the lids, the turn of the head, and who it is."""

import numpy as np
import pytest

from avatar_jax.data import face, identity, world
from avatar_jax.data.controls import CONTROL_NAMES, NEUTRAL, Controls, sample_motion


def people(count: int) -> list[identity.Identity]:
    return [identity.sample_identity(np.random.default_rng([5, index])) for index in range(count)]


def poses(steps: int, **tracks: np.ndarray) -> Controls:
    array = np.tile(np.asarray(NEUTRAL, np.float32), (steps, 1))
    for name, track in tracks.items():
        array[:, CONTROL_NAMES.index(name)] = track
    return Controls.from_array(array)


def inside(frames: np.ndarray) -> np.ndarray:
    """Pixels of the colour of the mouth's inside about a frontal mouth of a 96-pixel frame. [T]"""
    place = frames[:, 58:86, 32:64].astype(float)  # clear of hair and background, which may be as dark
    gap = np.abs(place - np.asarray(face.INSIDE) * 255).max(-1)
    return (gap < 15).sum((1, 2))  # the seam of closed lips is a line of a colour about 20 away


def mouth_box(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Width and height in pixels of what differs between each frame and the first. [T - 1] each"""
    changed = np.abs(frames[1:].astype(int) - frames[:1]).sum(-1) > 60
    return changed.any(1).sum(-1), changed.any(2).sum(-1)


@pytest.mark.parametrize("kind", identity.KINDS)
def test_the_inside_of_the_mouth_grows_with_the_opening(kind: str):
    who = next(person for person in people(200) if person.kind == kind)
    area = inside(world.render_clip(who, poses(6, mouth_open=np.linspace(0, 1, 6))))
    assert area[0] <= 2 and (np.diff(area) > 0).all()


def test_the_mouth_is_large_enough_to_read():
    for who in people(6):
        width, height = mouth_box(world.render_clip(who, poses(2, mouth_open=np.array([0.0, 1.0]))))
        assert width[0] >= 16 and height[0] >= 12  # pixels of 96


def test_the_width_control_spreads_and_rounds():
    who = people(1)[0]
    spans = []
    for width in (-1.0, 0.0, 1.0):
        area = world.render_clip(who, poses(1, mouth_open=np.array([0.6]), mouth_width=np.array([width])))
        gap = np.abs(area[0].astype(float) - np.asarray(face.INSIDE) * 255).max(-1)
        spans.append((gap < 40).any(0).sum())
    assert spans[0] + 3 < spans[1] < spans[2]


def test_a_small_turn_changes_little_and_a_large_one_more():
    who = people(2)[1]
    shown = world.render_clip(who, poses(3, yaw=np.array([0.0, 0.004, 0.2]))).astype(int)
    small, large = (np.abs(frame - shown[0]).mean() for frame in shown[1:])
    assert 0.0 < small < 1.5 and large > 5 * small


def test_a_blink_hides_the_eyes_only():
    who = next(person for person in people(50) if person.kind == "cartoon")
    shown = world.render_clip(who, poses(2, blink=np.array([0.0, 1.0]))).astype(int)
    changed = np.abs(shown[1] - shown[0]).sum(-1) > 60
    assert changed.sum() > 60 and not changed[56:].any()


def test_identities_differ_as_vectors_and_as_pictures():
    vectors = np.stack([who.vector() for who in people(20)])
    assert vectors.dtype == np.float32 and vectors.min() >= 0.0 and vectors.max() <= 1.0
    apart = np.abs(vectors[:, None] - vectors[None]).max(-1) + np.eye(20)
    assert apart.min() > 0.05
    first, second = (world.portrait(who, 64).astype(int) for who in people(2))
    assert np.abs(first - second).mean() > 5.0


@pytest.mark.parametrize("size", [32, 96, 250])
def test_a_reference_is_a_calm_face_at_any_size(size: int):
    who = people(1)[0]
    shown = world.reference(who, np.random.default_rng(0), size)
    again = world.reference(who, np.random.default_rng(0), size)
    assert shown.shape == (size, size, 3) and shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, again)


def test_motion_is_natural():
    quiet = np.zeros(1000, np.float32)
    moved = sample_motion(np.random.default_rng(1), 1000, quiet, mouth_open=quiet, mouth_width=quiet)
    track = moved.as_array()
    assert track.shape == (1000, len(CONTROL_NAMES)) and np.isfinite(track).all()
    assert np.abs(np.diff(moved.yaw)).max() < 0.03 and 0.02 < np.std(moved.yaw) < 0.2  # radians
    blinks = np.sum((moved.blink[1:] > 0.5) & (moved.blink[:-1] <= 0.5))
    assert 6 <= blinks <= 20  # in 40 s
    np.testing.assert_array_equal(Controls.from_array(track).as_array(), track)
