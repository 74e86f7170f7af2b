"""From sound as it comes to the features of one block after another: what a session listens with.

Log-mel features are causal: a block is heard as soon as its sound is there. wav2vec2 looks both ways: a block is heard
inside a window of sound around it, `audio_past` video frames before and `audio_ahead` after it, so it waits for the
latter. A window as long as the recording gives the published features.

A knot is drawn before its sound is shown: with one, a block's features go on as far as the knot does, and the next
block's start with the same sound again (`clock.waits`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.models import mel, wav2vec
from avatar_jax.stream import clock, saved

Features = list[jax.Array]  # of each block, [T, layers, width], T = cfg.heard_frames; perhaps not yet computed


class Ear(Protocol):
    """Takes sound of any length, gives blocks of features as soon as they can be had."""

    @property
    def rest(self) -> np.ndarray | None:
        """Features of the silence before a stream, [layers, width]; None: as its first frame."""
        ...

    def push(self, samples: np.ndarray) -> Features:
        """Takes mono float32 samples [n]."""
        ...

    def finish(self) -> Features:
        """What is left, the last block and its knot filled up with silence."""
        ...

    def state(self) -> Any:
        """What later blocks need of the sound that came, a tree of arrays."""
        ...

    def restore(self, found: saved.Found) -> None:
        """Goes on from a `state` that was saved."""
        ...


Hearing = Callable[[], Ear]


@functools.lru_cache(maxsize=8)
def make_mel(cfg: configs.MelConfig):
    """`mel.step` compiled for `cfg`: (state, samples) -> (state, features)."""
    return jax.jit(lambda state, samples: mel.step(state, samples, cfg))


class MelEar:
    """Log-mel features of each block as its sound is complete."""

    def __init__(self, cfg: configs.Config):
        self._size, self._step = cfg.block_samples, make_mel(cfg.mel)
        self._ahead = clock.waits(cfg)
        self._lead = self._ahead * cfg.samples_per_frame  # samples beyond its own that a block waits for
        self._state, self._pending = mel.empty(cfg.mel), np.zeros(0, np.float32)
        self._rest = mel.silence(cfg.mel)[None]
        self._known: jax.Array | None = None  # the next block's first features, which the last one's knot has heard

    @property
    def rest(self) -> np.ndarray | None:
        """Features of silence, [1, width]."""
        return self._rest

    def push(self, samples: np.ndarray) -> Features:
        """Takes mono float32 samples [n]."""
        self._pending, blocks = np.concatenate([self._pending, samples]), []
        if self._known is None and len(self._pending) >= self._lead:
            self._known = self._hear(self._lead)
        while self._known is not None and len(self._pending) >= self._size:
            features = jnp.concatenate([self._known, self._hear(self._size)])
            self._known = features[len(features) - self._ahead :]
            blocks.append(features)
        return blocks

    def finish(self) -> Features:
        """What is left, the last block and its knot filled up with silence."""
        left = len(self._pending) + (0 if self._known is None else self._lead)  # samples that no block has shown
        blocks = self.push(np.zeros(-left % self._size + self._lead, np.float32)) if left else []
        self._known = None  # it was silence
        return blocks

    def state(self) -> Any:
        """The front end's state, the sound that waits, and what a knot has heard already."""
        return {"mel": self._state, "pending": self._pending, "known": self._known}

    def restore(self, found: saved.Found) -> None:
        """Goes on from a `state` that was saved."""
        self._state, self._pending = saved.fill(self._state, found["mel"]), found["pending"]
        self._known = jnp.asarray(found["known"]) if "known" in found else None

    def _hear(self, samples: int) -> jax.Array:
        """Features of the next samples, which are whole video frames, [T, 1, width]."""
        if not samples:
            return jnp.zeros((0, *self._rest.shape), jnp.float32)
        sound, self._pending = self._pending[:samples], self._pending[samples:]
        self._state, features = self._step(self._state, sound)
        return features[:, None]


@functools.lru_cache(maxsize=8)
def make_wav2vec(cfg: configs.Wav2Vec2Config):
    """wav2vec2 read at places, compiled: (weights, sound [n], steps, places) -> [T, layers, width]."""

    def hear(p: dict, sound: jax.Array, steps: jax.Array, at: wav2vec.Places) -> jax.Array:
        states = wav2vec.apply(p, sound[None], steps, cfg=cfg)[:, 0]
        return jnp.moveaxis(wav2vec.read(states, at), 0, 1)

    return jax.jit(hear)


@dataclasses.dataclass
class _Window:
    """The sound that is still needed, and where it starts in the stream."""

    samples: np.ndarray
    start: int = 0  # video frames

    def forget(self, frame: int, hop: int) -> None:
        """Drops what lies before a video frame."""
        if frame > self.start:
            self.samples, self.start = self.samples[(frame - self.start) * hop :], frame


class Wav2VecEar:
    """wav2vec2 features of each block, from a window of sound around it."""

    def __init__(self, cfg: configs.Config, weights: Any):
        assert isinstance(cfg.sound, configs.Wav2Vec2Config)
        self._cfg, self._net, self._p = cfg, cfg.sound, weights
        self._hear = make_wav2vec(cfg.sound)
        self._window, self._blocks = _Window(np.zeros(0, np.float32)), 0

    @property
    def rest(self) -> np.ndarray | None:
        """Nobody knows: the published models repeat the first frame."""
        return None

    def push(self, samples: np.ndarray) -> Features:
        """Takes mono float32 samples [n]."""
        window, size = self._window, self._cfg.block_frames
        window.samples, blocks = np.concatenate([window.samples, samples]), []
        while self._known >= (self._blocks + 1) * size + clock.waits(self._cfg):
            blocks.append(self._draw())
        return blocks

    def finish(self) -> Features:
        """What is left, the last block and its knot filled up with silence."""
        blocks = []
        while self._known > self._blocks * self._cfg.block_frames:
            blocks.append(self._draw())
        return blocks

    def state(self) -> Any:
        """The sound that is still needed, and where in the stream it stands."""
        return {"samples": self._window.samples, "start": self._window.start, "blocks": self._blocks}

    def restore(self, found: saved.Found) -> None:
        """Goes on from a `state` that was saved."""
        self._window, self._blocks = _Window(found["samples"], int(found["start"])), int(found["blocks"])

    @property
    def _known(self) -> float:
        """Video frames whose sound has come."""
        return self._window.start + len(self._window.samples) / self._cfg.samples_per_frame

    def _draw(self) -> jax.Array:
        cfg, stream, hop = self._cfg, self._cfg.stream, self._cfg.samples_per_frame
        first, size = self._blocks * cfg.block_frames, cfg.heard_frames
        window = self._window
        window.forget(first - stream.audio_past, hop)
        length = (stream.audio_past + size + stream.audio_ahead) * hop
        end = (first + size + stream.audio_ahead - window.start) * hop
        sound = wav2vec.normalise(window.samples[:end])
        steps = max(wav2vec.steps_of(len(sound), self._net), 1)
        indices = wav2vec.frame_indices(first - window.start, size, fps=cfg.video.fps)
        padded = np.pad(sound, (0, length - len(sound)))
        self._blocks += 1
        return self._hear(self._p, padded, np.int32(steps), wav2vec.places(indices, steps))


def make_hearing(cfg: configs.Config, weights: Any = None) -> Hearing:
    """What gives every session of `cfg` an ear of its own; weights: of wav2vec2, if that listens."""
    if isinstance(cfg.sound, configs.MelConfig):
        return functools.partial(MelEar, cfg)
    return functools.partial(Wav2VecEar, cfg, weights)
