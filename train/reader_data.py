"""What the reader learns from: drawn faces with their truth, and the faults that it must see through."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from avatar_jax.data import phoneme, speech, world
from avatar_jax.data.controls import Controls, sample_motion
from avatar_jax.data.identity import sample_identity
from avatar_jax.data.source import clip
from avatar_jax.metrics.reader import SIZE

_STRIDE = 20  # motion frames between two frames of the pool, so that they differ
_FPS = 25
_TRAIN, _AUGMENT = 1, 2  # streams of randomness
_TEST_SEED = 1_000_000  # clips that no training draws


@dataclasses.dataclass
class Pool:
    """Frames with their truth."""

    frames: np.ndarray  # uint8 [I, N, 96, 96, 3]
    mouth: np.ndarray  # [I, N, 2]
    identity: np.ndarray  # [I, V]


def _spread(rng: np.random.Generator, frames: int) -> Controls:
    """Controls [N] far apart in time; half the mouths speak, the others take any opening and width."""
    length = frames * _STRIDE
    score = phoneme.compose(rng, length / _FPS, syllables_per_second=4.5, long_pauses=0.0)
    opening, width = speech.mouth(score, video_frames=length, fps=_FPS)
    moving = sample_motion(rng, length, opening, mouth_open=opening, mouth_width=width)
    motion = moving.as_array()[::_STRIDE]
    free = rng.random(frames) < 0.5
    motion[free, 0] = rng.uniform(0, 1, size=free.sum()) ** 1.5
    motion[free, 1] = rng.uniform(-1, 1, size=free.sum())
    return Controls.from_array(motion)


def render_pool(seed: int, identities: int, frames: int) -> Pool:
    """Training faces: `identities` of them, `frames` poses each."""
    images = np.zeros((identities, frames, SIZE, SIZE, 3), np.uint8)
    mouths, vectors = np.zeros((identities, frames, 2), np.float32), []
    for i in range(identities):
        rng = np.random.default_rng((seed, _TRAIN, i))
        who = sample_identity(rng)
        controls = _spread(rng, frames)
        images[i] = world.render_clip(who, controls, SIZE)
        mouths[i] = controls.as_array()[:, :2]
        vectors.append(who.vector())
    return Pool(images, mouths, np.stack(vectors))


def render_test(seed: int, identities: int, frames: int) -> tuple[Pool, np.ndarray]:
    """Unseen faces that speak unseen words, and their reference portraits [I, 96, 96, 3]."""
    clips = [clip(_TEST_SEED + seed, i, video_frames=frames, size=SIZE) for i in range(identities)]
    images, controls, references, vectors = (
        np.stack([each[name] for each in clips]) for name in ("frames", "controls", "reference", "identity")
    )
    return Pool(images, controls[..., :2], vectors), references


def spoil(rng: np.random.Generator, frame: np.ndarray) -> np.ndarray:
    """The frame with random faults of a generator and a codec: uint8 RGB [96, 96, 3]."""
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
    return frame


def spoil_clips(clips: np.ndarray) -> np.ndarray:
    """Clips [I, T, 96, 96, 3] with faults of their own in every frame."""
    rng = np.random.default_rng(0)
    return np.stack([[spoil(rng, frame) for frame in clip] for clip in clips])


def _batch(pool: Pool, seed: int, step: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng((seed, _AUGMENT, step))
    who = rng.integers(pool.frames.shape[0], size=size)
    when = rng.integers(pool.frames.shape[1], size=size)
    frames = np.stack([spoil(rng, pool.frames[i, t]) for i, t in zip(who, when, strict=True)])
    return frames.astype(np.float32) / 255, pool.mouth[who, when], pool.identity[who]


def batches(pool: Pool, cfg: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Frames [B, 96, 96, 3], mouths [B, 2], identities [B, V] of each step, made a step ahead in a thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        make = functools.partial(_batch, pool, cfg.seed, size=cfg.batch)
        ahead = executor.submit(make, step=0)
        for step in range(cfg.steps):
            ready, ahead = ahead, executor.submit(make, step=step + 1)
            yield ready.result()
