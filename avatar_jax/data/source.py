"""Talking clips of the drawn world as a grain source: everything follows from (seed, index)."""

import dataclasses
from typing import Any

import grain
import numpy as np

from avatar_jax.data.controls import perform, sample_motion, twin
from avatar_jax.data.identity import Identity, sample_identity
from avatar_jax.data.speech import utterance
from avatar_jax.data.world import reference, render_clip

WHO, SPEECH, MOTION, PORTRAIT, ACT, TWIN = range(6)  # one independent generator each


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, index, stream]))


def identity_of(seed: int, index: int) -> Identity:
    """Who speaks in clip `index`."""
    return sample_identity(_generator(seed, index, WHO))


def performs(seed: int, index: int, share: float) -> bool:
    """Whether clip `index` is one of the share of clips that are performed."""
    return bool(_generator(seed, index, ACT).random() < share)


def clip(
    seed: int,
    index: int,
    *,
    video_frames: int,
    size: int = 96,
    audio_hz: int = 16_000,
    fps: int = 25,
    performed: bool = False,
    twinned: bool = False,
) -> dict[str, np.ndarray]:
    """One identity says one utterance; `performed`, with head, eyes and brows of `controls.perform`.

    `twinned`, with "twin_frames" and "twin_controls" besides: the same moment but for one control (`controls.twin`).

    Returns:
      "frames" uint8 [T, size, size, 3], "waveform" float32 [T audio_hz / fps], "reference" uint8 [size, size, 3],
      "controls" float32 [T, 13] in the order of `controls.CONTROL_NAMES` (the truth of every frame) and "identity"
      float32 [V].
    """
    who = identity_of(seed, index)
    spoken = utterance(_generator(seed, index, SPEECH), video_frames * audio_hz // fps, audio_hz=audio_hz, fps=fps)
    motion = sample_motion(
        _generator(seed, index, MOTION),
        video_frames,
        spoken.opening,
        mouth_open=spoken.opening,
        mouth_width=spoken.width,
    )
    if performed:
        motion = perform(_generator(seed, index, ACT), motion)
    drawn = {
        "frames": render_clip(who, motion, size),
        "waveform": spoken.waveform,
        "reference": reference(who, _generator(seed, index, PORTRAIT), size),
        "controls": motion.as_array(),
        "identity": who.vector(),
    }
    if not twinned:
        return drawn
    other = twin(_generator(seed, index, TWIN), motion)
    return drawn | {"twin_frames": render_clip(who, other, size), "twin_controls": other.as_array()}


@dataclasses.dataclass(frozen=True)
class WorldSource:
    """`count` clips of `video_frames` frames, random access: a `grain.RandomAccessDataSource`.

    A share of them is performed; `twinned`, each comes with its twin.
    """

    seed: int
    size: int
    video_frames: int
    count: int
    performed: float = 0.0
    twinned: bool = False

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        if not 0 <= index < self.count:
            raise IndexError(f"clip {index} of {self.count}")
        acted = performs(self.seed, int(index), self.performed)
        drawn = clip(
            self.seed,
            int(index),
            video_frames=self.video_frames,
            size=self.size,
            performed=acted,
            twinned=self.twinned,
        )
        return drawn | {"performed": np.array(acted)}


def make_dataset(
    source: WorldSource, *, batch: int, seed: int, shard_index: int, shard_count: int, epochs: int | None
) -> grain.MapDataset:
    """Shuffled batches of this process's share of the clips; `epochs=None` repeats for ever.

    Raises:
      ValueError: a shard outside 0..shard_count - 1.
    """
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index={shard_index}: must be in 0..{shard_count - 1}")
    mine = grain.MapDataset.source(source).seed(seed)[shard_index::shard_count]
    return mine.shuffle().repeat(epochs).batch(batch)
