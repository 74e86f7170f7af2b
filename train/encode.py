"""Clips to training records: latents, features as a stream hears them, and text, by the networks of a checkpoint."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.core import tree
from avatar_jax.data import latents
from avatar_jax.io import checkpoint
from avatar_jax.io.errors import InputError
from avatar_jax.io.tokenizer import Tokenizer
from avatar_jax.models import umt5, vae
from avatar_jax.stream import hear


@functools.lru_cache(maxsize=2)
def make_encode(cfg: configs.VaeConfig):
    """The encoder compiled: (weights, frame) -> (latent, tail), and (weights, tail, frames after) -> (latents, tail).

    Frames are uint8 [n, H, W, 3], latents float16 [n, h, w, C].
    """

    def first(p: dict, frames: jax.Array) -> tuple[jax.Array, vae.Tail]:
        z, tail = vae.encode_first(p, vae.from_uint8(frames[None]), cfg=cfg)
        return z[0].astype(jnp.float16), tail

    def more(p: dict, tail: vae.Tail, frames: jax.Array) -> tuple[jax.Array, vae.Tail]:
        z, tail = vae.encode_step(p, tail, vae.from_uint8(frames[None]), cfg=cfg)
        return z[0].astype(jnp.float16), tail

    return jax.jit(first), jax.jit(more)


@functools.lru_cache(maxsize=2)
def make_read(cfg: configs.Umt5Config):
    """The text encoder compiled: (weights, ids, mask) -> rows [1, n, D]."""
    return jax.jit(functools.partial(umt5.apply, cfg=cfg))


def digest(weights: Mapping[str, Any]) -> str:
    """A digest of weights, whatever holds them: equal weights have equal ones."""
    total = hashlib.sha256()
    for name, leaf in sorted(tree.flatten(weights).items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


class Encoder:
    """What turns clips into records.

    Attributes:
        digests: of the weights of each network, by name.
    """

    def __init__(self, cfg: configs.Config, folder: pathlib.Path):
        """Loads the networks that `cfg` needs, but for the transformer. Raises ValueError if one is not there."""
        parts = {name: part for name, part in checkpoint.parts(cfg) if name != "dit"}
        weights = {name: checkpoint.load(folder, name, part) for name, part in parts.items()}
        self.digests = {name: digest(p) for name, p in weights.items()}
        self._cfg, self._p = cfg, {name: jax.tree.map(jnp.asarray, p) for name, p in weights.items()}
        self._p["vae"] = vae.lay_out(self._p["vae"], jax.default_backend())
        self._hearing = hear.make_hearing(cfg, self._p.get("wav2vec"))
        self._tokenizer: Tokenizer | None = None
        self._tokenizer: Tokenizer | None = None
        if cfg.text:
            if not (folder / checkpoint.TOKENIZER).is_file():
                raise InputError(f"--checkpoint={folder}: {checkpoint.TOKENIZER} is missing; copy it there")
            self._tokenizer = Tokenizer(folder / checkpoint.TOKENIZER)

    @property
    def reads(self) -> bool:
        """Whether the model reads text."""
        return self._tokenizer is not None

    def _latent(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [1 + T, H, W, 3] to float16 [1 + T / 4, h, w, C], a block at a time."""
        first, more = make_encode(self._cfg.vae)
        p, size = self._p["vae"], self._cfg.block_frames
        z, tail = first(p, frames[:1])
        parts = [z]
        for at in range(1, len(frames), size):
            z, tail = more(p, tail, frames[at : at + size])
            parts.append(z)
        return np.concatenate([np.asarray(part) for part in parts])

    def _features(self, waveform: np.ndarray) -> np.ndarray:
        """Sound to float16 [T, width], or [T, layers, width] where a network listens that has layers."""
        ear = self._hearing()
        blocks = [*ear.push(waveform), *ear.finish()]
        rows = np.concatenate([np.asarray(block)[: self._cfg.block_frames] for block in blocks]).astype(np.float16)
        rows = rows[: len(waveform) // self._cfg.samples_per_frame]
        return rows[:, 0] if rows.shape[1] == 1 else rows

    def text(self, caption: str) -> np.ndarray:
        """Rows of the caption, float16 [n, D], n its tokens."""
        cfg, text = self._cfg, self._cfg.text
        assert text is not None and self._tokenizer is not None
        ids, mask = self._tokenizer.encode(caption, cfg.dit.text_tokens)
        rows = make_read(text)(self._p["umt5"], ids, mask)
        return np.asarray(rows, np.float16)[0, : int(mask.sum())]

    def record(self, frames: np.ndarray, waveform: np.ndarray, text: np.ndarray | None) -> latents.Record:
        """One clip's record: of signals nothing is known, which rows of NaN say.

        Args:
          frames: uint8 [1 + T, H, W, 3], the reference first.
          waveform: float32 [T samples_per_frame].
          text: from `text`, or None.
        """
        unknown = {
            latents.SIGNAL + signal.name: np.full((len(frames) - 1, signal.width), np.nan, np.float32)
            for signal in self._cfg.dit.signals
        }
        said = {} if text is None else {"text": text}
        return {"latent": self._latent(frames), "features": self._features(waveform)} | unknown | said
