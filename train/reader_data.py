"""What the reader learns from: drawn faces with their truth, and the faults that it must see through."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from avatar_jax.data import canvas, controls, phoneme, speech, world
from avatar_jax.data.controls import CONTROL_NAMES, Controls, sample_motion
from avatar_jax.data.identity import sample_identity
from avatar_jax.data.source import clip
from avatar_jax.metrics.reader import POSE, SIZE

_STRIDE = 20  # motion frames between two frames of the pool, so that they differ
_FPS = 25
_TRAIN, _AUGMENT = 1, 2  # streams of randomness
_TEST_SEED = 1_000_000  # clips that no training draws
# Ranges of a pose that is not natural: beyond what a clip shows, and blinks as often as not.
_REACH = {
    "yaw": (-0.35, 0.35),
    "pitch": (-0.22, 0.22),
    "roll": (-0.14, 0.14),
    "x": (-0.04, 0.04),
    "y": (-0.04, 0.04),
    "scale": (0.95, 1.05),
    "blink": (-0.6, 1.2),
    "brow": (-1.0, 1.0),
    "smile": (-1.0, 1.0),
    "gaze_x": (-0.9, 0.9),
    "gaze_y": (-0.6, 0.6),
}


Batch = tuple[np.ndarray, dict[str, np.ndarray]]  # frames, and the truth by tower


@dataclasses.dataclass
class Pool:
    """Frames with their truth."""

    frames: np.ndarray  # uint8 [I, N, 96, 96, 3]
    mouth: np.ndarray  # [I, N, 2]
    identity: np.ndarray  # [I, V]
    pose: np.ndarray  # [I, N, 11] in the order of POSE


def _pool(frames: np.ndarray, moved: np.ndarray, identity: np.ndarray) -> Pool:
    """The pool of frames whose controls are `moved` [I, N, 13]."""
    signals = controls.signals(moved.reshape(-1, moved.shape[-1]))
    mouth, pose = (
        np.concatenate([signals[name] for name in names], -1).reshape(*moved.shape[:2], -1)
        for names in (("mouth",), ("head", "gaze", "expression"))
    )
    return Pool(frames, mouth, identity, pose)


def _spread(rng: np.random.Generator, frames: int) -> Controls:
    """Controls [N] far apart in time; half the mouths speak, the others take any opening and width.

    Apart from that, half the poses are natural and the others anything in `_REACH`.
    """
    length = frames * _STRIDE
    score = phoneme.compose(rng, length / _FPS, syllables_per_second=4.5, long_pauses=0.0)
    opening, width = speech.mouth(score, video_frames=length, fps=_FPS)
    moving = sample_motion(rng, length, opening, mouth_open=opening, mouth_width=width)
    motion = moving.as_array()[::_STRIDE]
    free = rng.random(frames) < 0.5
    motion[free, 0] = rng.uniform(0, 1, size=free.sum()) ** 1.5
    motion[free, 1] = rng.uniform(-1, 1, size=free.sum())
    free = rng.random(frames) < 0.5
    for name, reach in _REACH.items():
        motion[free, CONTROL_NAMES.index(name)] = rng.uniform(*reach, size=free.sum())
    blink = CONTROL_NAMES.index("blink")
    motion[:, blink] = np.clip(motion[:, blink], 0, 1)
    return Controls.from_array(motion)


def render_pool(seed: int, identities: int, frames: int) -> Pool:
    """Training faces: `identities` of them, `frames` poses each."""
    images = np.zeros((identities, frames, SIZE, SIZE, 3), np.uint8)
    moved, vectors = np.zeros((identities, frames, len(CONTROL_NAMES)), np.float32), []
    for i in range(identities):
        rng = np.random.default_rng((seed, _TRAIN, i))
        who = sample_identity(rng)
        spread = _spread(rng, frames)
        images[i], moved[i] = world.render_clip(who, spread, SIZE), spread.as_array()
        vectors.append(who.vector())
    return _pool(images, moved, np.stack(vectors))


def render_test(seed: int, identities: int, frames: int) -> tuple[Pool, np.ndarray]:
    """Unseen faces that speak unseen words, and their reference portraits [I, 96, 96, 3]."""
    clips = [clip(_TEST_SEED + seed, i, video_frames=frames, size=SIZE) for i in range(identities)]
    images, moved, references, vectors = (
        np.stack([each[name] for each in clips]) for name in ("frames", "controls", "reference", "identity")
    )
    return _pool(images, moved, vectors), references


def spoil(rng: np.random.Generator, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frame with random faults of a generator and a codec, uint8 RGB [96, 96, 3], and how it was moved, [2, 3]."""
    side = frame.shape[0]
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.normal(0, 1.5), rng.uniform(0.96, 1.04))
    turn[:, 2] += rng.uniform(-1.5, 1.5, size=2)
    frame = cv2.warpAffine(frame, turn, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if rng.random() < 0.4:
        frame = cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.3, 1.3))
    if rng.random() < 0.3:
        small = int(side * rng.uniform(0.5, 1))
        frame = cv2.resize(cv2.resize(frame, (small, small), interpolation=cv2.INTER_AREA), (side, side))
    values = frame * rng.uniform(0.94, 1.06, size=3) + rng.uniform(-6, 6, size=3)
    if rng.random() < 0.5:
        coarse = rng.normal(0, rng.uniform(0, 6), size=(side // 4, side // 4, 3))
        fine = rng.normal(0, rng.uniform(0, 3), size=frame.shape)
        values = values + cv2.resize(coarse, (side, side)) + fine
    frame = np.clip(values, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 95))])
        frame = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return frame, turn


def turned(pose: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Poses [..., 11] in pictures that were moved: pixel p became turn [..., 2, 3] times (p, 1).

    Only the head's roll, place and size change: it is drawn by turning, scaling and shifting about `canvas.PIVOT`.
    """
    pose, index = pose.copy(), POSE.index
    place = [index("x"), index("y")]
    pivot = canvas.PIVOT[:2] * canvas.UNIT + 0.5
    pixel = (pose[..., place] + pivot) * SIZE - 0.5
    pixel = (turn[..., :2] @ pixel[..., None])[..., 0] + turn[..., 2]
    pose[..., place] = (pixel + 0.5) / SIZE - pivot
    cosine, sine = turn[..., 0, 0], turn[..., 1, 0]
    pose[..., index("roll")] += np.arctan2(sine, cosine)
    pose[..., index("scale")] = (1 + pose[..., index("scale")]) * np.hypot(cosine, sine) - 1
    return pose


def spoil_pool(pool: Pool) -> Pool:
    """The pool with faults of their own in every frame."""
    rng = np.random.default_rng(0)
    spoiled = [spoil(rng, frame) for clip in pool.frames for frame in clip]
    frames, turns = (
        np.stack(parts).reshape(*pool.frames.shape[:2], *parts[0].shape) for parts in zip(*spoiled, strict=True)
    )
    return dataclasses.replace(pool, frames=frames, pose=turned(pool.pose, turns))


def _batch(pool: Pool, seed: int, step: int, size: int) -> Batch:
    rng = np.random.default_rng((seed, _AUGMENT, step))
    who = rng.integers(pool.frames.shape[0], size=size)
    when = rng.integers(pool.frames.shape[1], size=size)
    frames, turns = zip(*(spoil(rng, pool.frames[i, t]) for i, t in zip(who, when, strict=True)), strict=True)
    pose = turned(pool.pose[who, when], np.stack(turns)).astype(np.float32)
    truth = {"mouth": pool.mouth[who, when], "face": pool.identity[who], "pose": pose}
    return np.stack(frames).astype(np.float32) / 255, truth


def batches(pool: Pool, cfg: Any) -> Iterator[Batch]:
    """Frames [B, 96, 96, 3] and what each tower should read from them, every step; made a step ahead in a thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        make = functools.partial(_batch, pool, cfg.seed, size=cfg.batch)
        ahead = executor.submit(make, step=0)
        for step in range(cfg.steps):
            ready, ahead = ahead, executor.submit(make, step=step + 1)
            yield ready.result()
