"""The live engine: push sound, get blocks of video. The file command is this engine fed from a file."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.io import weights as weight_files
from avatar_jax.models import dit, mel, vae
from avatar_jax.stream import clock, rollout
from avatar_jax.stream.state import BlockInput, StreamState, Weights

Blocks = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Avatar:
    """A portrait ready to speak: weights, the compiled programs and the state before block 0."""

    cfg: configs.Config
    weights: Weights
    begin: StreamState
    block: Callable[[Weights, StreamState, BlockInput], tuple[StreamState, jax.Array]]
    listen: Callable[[mel.MelState, np.ndarray], tuple[mel.MelState, jax.Array]]


def load_weights(cfg: configs.Config, checkpoint: pathlib.Path) -> Weights:
    """Reads `dit.safetensors` and `vae.safetensors` from a folder; ValueError if either does not fit `cfg`."""
    transformer = weight_files.load(checkpoint / "dit.safetensors", dit.spec(cfg.dit))
    autoencoder = weight_files.load(checkpoint / "vae.safetensors", vae.spec(cfg.vae))
    return Weights(dit.lay_out(transformer, cfg.dit), autoencoder)


@functools.lru_cache(maxsize=8)
def make_listen(cfg: configs.MelConfig):
    """`mel.step` compiled for `cfg`: (state, samples) -> (state, features)."""
    return jax.jit(lambda state, samples: mel.step(state, samples, cfg))


def make_avatar(cfg: configs.Config, weights: Weights, portrait: np.ndarray) -> Avatar:
    """Prepares a portrait uint8 [H, W, 3] of the configured size: encodes it, fills the reference memory, warms up.

    Every program a session runs is compiled here, so the first block is as fast as the others.
    """
    wanted = (cfg.video.height, cfg.video.width, 3)
    if portrait.shape != wanted:
        raise ValueError(f"portrait of shape {portrait.shape}: must be {wanted}")
    pixels = vae.from_uint8(portrait)[None, None]
    begin = rollout.make_start(cfg)(weights, pixels)
    avatar = Avatar(cfg, weights, begin, rollout.make_block(cfg), make_listen(cfg.mel))
    warm_up = Session(avatar)
    warm_up.push_audio(np.zeros(cfg.block_samples, np.float32))
    return avatar


class Session:
    """One stream of one avatar. Feed sound of any length; blocks come out as soon as their sound is complete."""

    def __init__(self, avatar: Avatar):
        self._avatar, self._cfg = avatar, avatar.cfg
        self._state = jax.tree.map(jnp.copy, avatar.begin)  # each block donates its state
        self._mel = mel.empty(self._cfg.mel)
        silence = mel.silence(self._cfg.mel)
        self._context = np.tile(silence, (self._cfg.stream.audio_context, 1))
        self._pending = np.zeros(0, np.float32)
        self._blocks, self._samples = 0, 0
        self._key = jax.random.key(self._cfg.stream.seed)

    @property
    def samples(self) -> int:
        """Audio samples taken so far."""
        return self._samples

    def push_audio(self, samples: np.ndarray) -> Blocks:
        """Takes mono float32 samples at `mel.audio_hz`, any number of them.

        Returns:
          the blocks they complete, each uint8 [T, H, W, 3].
        """
        self._samples += len(samples)
        self._pending = np.concatenate([self._pending, np.asarray(samples, np.float32)])
        size, blocks = self._cfg.block_samples, []
        while len(self._pending) >= size:
            sound, self._pending = self._pending[:size], self._pending[size:]
            blocks.append(self._draw(sound))
        return blocks

    def finish(self) -> Blocks:
        """Shows what is left, the last block cut so that the frames cover the sound exactly."""
        left = len(self._pending)
        if not left:
            return []
        sound = np.pad(self._pending, (0, self._cfg.block_samples - left))
        self._pending = self._pending[:0]
        return [self._draw(sound)[: clock.frames_of(left, self._cfg)]]

    def _draw(self, sound: np.ndarray) -> np.ndarray:
        cfg = self._cfg
        self._mel, features = self._avatar.listen(self._mel, sound)
        heard = np.concatenate([self._context, np.asarray(features)])
        self._context = heard[-cfg.stream.audio_context :]
        phase, reference_phase = clock.phases(self._blocks, cfg)
        slots, filled = clock.place(self._blocks, cfg)
        shape = (1, cfg.stream.block_latents, *cfg.latent_size, cfg.vae.latent_channels)
        inputs = BlockInput(
            features=jnp.asarray(heard)[None, :, None],
            noise=jax.random.normal(jax.random.fold_in(self._key, self._blocks), shape),
            phase=phase,
            reference_phase=reference_phase,
            slots=jnp.asarray(slots),
            filled=jnp.asarray(filled),
        )
        self._state, frames = self._avatar.block(self._avatar.weights, self._state, inputs)
        self._blocks += 1
        return np.asarray(frames[0])
