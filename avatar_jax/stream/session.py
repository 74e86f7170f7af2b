"""The live engine: push sound, get blocks of video. The file command is this engine fed from a file."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.io import checkpoint
from avatar_jax.models import dit, vae
from avatar_jax.stream import clock, hear, prompt, rollout
from avatar_jax.stream.state import BlockInput, Place, Scene, StreamState, Weights

Blocks = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Avatar:
    """A portrait ready to speak: weights, the compiled programs, the scene and the state before block 0."""

    cfg: configs.Config
    weights: Weights
    scene: Scene
    begin: StreamState
    block: Callable[..., tuple[StreamState, tuple[jax.Array, jax.Array]]]
    hearing: hear.Hearing


def load_weights(cfg: configs.Config, folder: pathlib.Path) -> Weights:
    """Reads transformer and VAE from a checkpoint; ValueError if either does not fit `cfg`."""
    transformer, autoencoder = (
        jax.tree.map(jnp.asarray, checkpoint.load(folder, name, part))
        for name, part in checkpoint.parts(cfg)
        if name in ("dit", "vae")
    )
    return Weights(dit.lay_out(transformer, cfg.dit), vae.lay_out(autoencoder, jax.default_backend()))


def load_hearing(cfg: configs.Config, folder: pathlib.Path) -> hear.Hearing:
    """What the sessions of `cfg` listen with, read from a checkpoint where it has weights."""
    if isinstance(cfg.sound, configs.MelConfig):
        return hear.make_hearing(cfg)
    return hear.make_hearing(cfg, jax.tree.map(jnp.asarray, checkpoint.load(folder, "wav2vec", cfg.sound)))


def make_avatar(
    cfg: configs.Config,
    weights: Weights,
    portrait: np.ndarray,
    *,
    text: jax.Array | None = None,
    hearing: hear.Hearing | None = None,
) -> Avatar:
    """Prepares a portrait: encodes it, fills the memories with it, warms up.

    Every program a session runs is compiled here, so the first block is as fast as the others.

    Args:
      cfg: the run.
      weights: from `load_weights`.
      portrait: uint8 [H, W, 3], of the configured size.
      text: rows of the prompt, from `prompt.encode`, if the model reads one.
      hearing: from `load_hearing`; log-mel features need none.
    """
    wanted = (cfg.video.height, cfg.video.width, 3)
    if portrait.shape != wanted:
        raise ValueError(f"portrait of shape {portrait.shape}: must be {wanted}")
    scene = rollout.make_view(cfg)(weights.vae, vae.from_uint8(portrait)[None, None])
    if text is not None:
        scene = dataclasses.replace(scene, cross=prompt.remember(weights.dit, text, cfg=cfg.dit))
    begin = rollout.make_start(cfg)(weights, scene)
    avatar = Avatar(cfg, weights, scene, begin, rollout.make_block(cfg), hearing or hear.make_hearing(cfg))
    warm_up = Session(avatar)
    warm_up.push_audio(np.zeros(max(1, cfg.stream.adapt_blocks) * cfg.block_samples, np.float32))
    warm_up.finish()
    return avatar


class Session:
    """One stream of one avatar. Feed sound of any length; blocks come out as soon as their sound is heard."""

    def __init__(self, avatar: Avatar):
        self._avatar, self._cfg = avatar, avatar.cfg
        self._state = jax.tree.map(jnp.copy, avatar.begin)  # each block donates its state
        self._ear = avatar.hearing()
        self._context: np.ndarray | None = None
        self._blocks, self._samples = 0, 0
        self._key = jax.random.key(self._cfg.stream.seed)
        self._first: Any = None  # latent of the stream's first frame, while the scene waits for it

    @property
    def samples(self) -> int:
        """Audio samples taken so far."""
        return self._samples

    def push_audio(self, samples: np.ndarray) -> Blocks:
        """Takes mono float32 samples at the model's rate, any number of them.

        Returns:
          the blocks they complete, each uint8 [T, H, W, 3].
        """
        self._samples += len(samples)
        return [self._draw(features) for features in self._ear.push(np.asarray(samples, np.float32))]

    def finish(self) -> Blocks:
        """Shows what is left, the last block cut so that the frames cover the sound exactly."""
        blocks = [self._draw(features) for features in self._ear.finish()]
        over = self._blocks * self._cfg.block_frames - clock.frames_of(self._samples, self._cfg)
        if blocks and over > 0:
            blocks[-1] = blocks[-1][:-over]
        return blocks

    def _heard(self, features: np.ndarray) -> np.ndarray:
        """A block's features behind their left context, [context + T, layers, width]."""
        cfg, rest = self._cfg.stream, self._ear.rest
        if self._context is None or cfg.audio_history == "repeated":
            before = features[0] if rest is None or cfg.audio_history == "repeated" else rest
            self._context = np.tile(before, (cfg.audio_context, 1, 1))
        heard = np.concatenate([self._context, features])
        self._context = heard[-cfg.audio_context :]
        return heard

    def _draw(self, features: np.ndarray) -> np.ndarray:
        cfg = self._cfg
        time, reference_time = clock.phases(self._blocks, cfg)
        slots, filled = clock.place(self._blocks, cfg)
        shape = (1, cfg.stream.block_latents, *cfg.latent_size, cfg.vae.latent_channels)
        inputs = BlockInput(
            features=jnp.asarray(self._heard(features))[None],
            noise=jax.random.normal(jax.random.fold_in(self._key, self._blocks), shape),
            place=Place(time, reference_time, jnp.asarray(slots), jnp.asarray(filled)),
        )
        avatar = self._avatar
        self._state, (latent, frames) = avatar.block(avatar.weights, self._state, inputs, avatar.scene.cross)
        self._blocks += 1
        self._adapt(latent)
        return np.asarray(frames[0])

    def _adapt(self, latent: jax.Array) -> None:
        """The adaptive sink: the stream's own first latent becomes the reference (live_avatar.md section 6.5)."""
        after, avatar = self._cfg.stream.adapt_blocks, self._avatar
        if self._blocks == 1 and after:
            self._first = latent[:, :1]
        if self._blocks == after:
            scene = dataclasses.replace(avatar.scene, reference=self._first)
            self._state = rollout.make_adapt(self._cfg)(avatar.weights, self._state, scene)
