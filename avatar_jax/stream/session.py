"""The live engine: push sound, get blocks of video. The file command is this engine fed from a file."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import axes
from avatar_jax.core import config as configs
from avatar_jax.io import checkpoint
from avatar_jax.models import dit, vae
from avatar_jax.stream import chain, clock, engine, hear, pipeline, prompt, rollout, speaker
from avatar_jax.stream.state import BlockInput, Place, Scene, Speaker, StreamState, Weights

Blocks = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Avatar:
    """A portrait ready to speak: its scene, and what listens and draws for every session of it."""

    cfg: configs.Config
    scene: Scene
    hearing: hear.Hearing
    engine: engine.Engines
    masks: np.ndarray | None = None  # of its speakers, from `speaker.token_masks`; None: one, all of the picture


def load_weights(cfg: configs.Config, folder: pathlib.Path) -> Weights:
    """Reads transformer and VAE from a checkpoint; ValueError if either does not fit `cfg`."""
    transformer = dit.lay_out(
        checkpoint.load(folder, "dit", cfg.dit), cfg.dit
    )  # on the host, so a device holds it once
    autoencoder = jax.tree.map(jnp.asarray, checkpoint.load(folder, "vae", cfg.vae))
    return Weights(jax.tree.map(jnp.asarray, transformer), vae.lay_out(autoencoder, jax.default_backend()))


def load_hearing(cfg: configs.Config, folder: pathlib.Path) -> hear.Hearing:
    """What the sessions of `cfg` listen with, read from a checkpoint where it has weights."""
    if isinstance(cfg.sound, configs.MelConfig):
        return hear.make_hearing(cfg)
    return hear.make_hearing(cfg, jax.tree.map(jnp.asarray, checkpoint.load(folder, "wav2vec", cfg.sound)))


def devices_of(cfg: configs.Config) -> list[Any]:
    """The devices that a session of `cfg` runs on; a chain takes one more for the decoder, where there is one.

    Raises:
      ValueError: fewer devices than stages x tensor.
    """
    mesh, found = cfg.mesh, jax.devices()
    wanted = mesh.stages * mesh.tensor
    if wanted > len(found):
        shape = f"config.mesh: {mesh.stages} stages x {mesh.tensor} need {wanted} devices"
        raise ValueError(f"{shape}, {len(found)} {found[0].platform} found; lower config.mesh.stages or .tensor")
    spare = found[wanted : wanted + 1] or found[wanted - 1 : wanted]
    return found[:wanted] + (spare if mesh.driver == "chain" else [])


def make_engines(
    weights: Weights, scene: Scene, begin: StreamState, devices: list[Any], cfg: configs.Config
) -> engine.Engines:
    """What draws for every session, as `cfg.mesh` says."""
    shape = cfg.mesh
    if shape.stages * shape.tensor == 1:
        return functools.partial(engine.Sequential, weights, scene, begin, cfg)
    if shape.driver == "chain":
        return functools.partial(chain.Chained, weights, scene, begin, devices, cfg)
    split = {axes.TENSOR: shape.tensor} if shape.tensor > 1 else {}
    mesh = axes.make_mesh(devices, {pipeline.STAGE: shape.stages, **split})
    return functools.partial(engine.Pipelined, engine.place(weights, mesh, cfg), scene, begin, mesh, cfg)


def make_avatar(
    cfg: configs.Config,
    weights: Weights,
    portrait: np.ndarray,
    *,
    text: jax.Array | None = None,
    hearing: hear.Hearing | None = None,
    masks: np.ndarray | None = None,
) -> Avatar:
    """Prepares a portrait: encodes it, fills the memories with it, warms up.

    Every program a session runs is compiled here, so the first block is as fast as the others.

    Args:
      cfg: the run.
      weights: from `load_weights`.
      portrait: uint8 [H, W, 3], of the configured size.
      text: rows of the prompt, from `prompt.encode`, if the model reads one.
      hearing: from `load_hearing`; log-mel features need none.
      masks: what of the portrait each of several speakers drives, [speakers, H, W] in 0..1.
    """
    wanted = (cfg.video.height, cfg.video.width, 3)
    if portrait.shape != wanted:
        raise ValueError(f"portrait of shape {portrait.shape}: must be {wanted}")
    driven = None if masks is None else speaker.token_masks(masks, cfg)
    devices = devices_of(cfg)
    scene = rollout.make_view(cfg)(weights.vae, vae.from_uint8(portrait)[None, None])
    if text is not None:
        scene = dataclasses.replace(scene, cross=prompt.remember(weights.dit, text, cfg=cfg.dit))
    begin = rollout.make_start(cfg)(weights, scene)
    engines = make_engines(weights, scene, begin, devices, cfg)
    avatar = Avatar(cfg, scene, hearing or hear.make_hearing(cfg), engines, driven)
    warm_up = Session(avatar)
    warm_up.push_audio(np.zeros((cfg.stream.adapt_blocks + 1) * cfg.block_samples, np.float32))
    warm_up.finish()  # the other speakers are silent as long
    return avatar


class Session:
    """One stream of one avatar. Feed sound of any length; blocks come out as soon as their sound is heard."""

    def __init__(self, avatar: Avatar):
        self._cfg, self._scene = avatar.cfg, avatar.scene
        self._masks: Any = [None] if avatar.masks is None else avatar.masks
        self._tracks = [speaker.Track(avatar.hearing(), avatar.cfg) for _ in self._masks]
        self._engine, self._blocks = avatar.engine(), 0
        self._key = jax.random.key(self._cfg.stream.seed)
        self._first: Any = None  # latent of the stream's first frame, while the scene waits for it

    @property
    def samples(self) -> int:
        """Audio samples taken so far, of the speaker who is furthest."""
        return max(track.samples for track in self._tracks)

    def push_audio(self, samples: np.ndarray, speaker: int = 0) -> Blocks:
        """Takes mono float32 samples at the model's rate, any number of them.

        A block is drawn when the sound of every speaker is there; one who says nothing needs zeros.

        Returns:
          the blocks they complete, each uint8 [T, H, W, 3].
        """
        self._track(speaker).push(np.asarray(samples, np.float32))
        return self._draw()

    def push_signals(self, name: str, rows: np.ndarray, speaker: int = 0, frame: int | None = None) -> None:
        """Takes a driving signal, one row a video frame, as `config.dit.signals` describes it.

        Nothing waits for signals: a block uses the rows that came before the sound that completes it. A frame without
        a row, or with NaN in it, is drawn as the model sees fit.

        Args:
          name: of the signal.
          rows: deviations from rest, [T, width].
          speaker: whom it drives.
          frame: video frame of the first row; by default the one after the last row that came.
        """
        self._track(speaker).signals.push(name, rows, frame)

    def finish(self) -> Blocks:
        """Shows what is left, the last block cut so that the frames cover the sound exactly."""
        samples = self.samples
        for track in self._tracks:
            track.finish(samples)
        blocks = self._draw() + self._show(self._engine.drain())
        over = self._blocks * self._cfg.block_frames - clock.frames_of(samples, self._cfg)
        if blocks and over > 0:
            blocks[-1] = blocks[-1][:-over]
        return blocks

    def _track(self, number: int) -> speaker.Track:
        if not 0 <= number < len(self._tracks):
            raise ValueError(f"speaker {number}: the avatar has {len(self._tracks)}, counted from 0")
        return self._tracks[number]

    def _speaker(self, track: speaker.Track, mask: np.ndarray | None) -> Speaker:
        features = track.take()
        frames = len(features) - self._cfg.stream.audio_context
        signals = track.signals.take(self._blocks * self._cfg.block_frames, frames)
        return Speaker(
            features=jnp.asarray(features)[None],
            signals={name: jnp.asarray(rows)[None] for name, rows in signals.items()},
            mask=None if mask is None else jnp.asarray(mask),
        )

    def _input(self) -> BlockInput:
        cfg = self._cfg
        slots, filled = clock.place(self._blocks, cfg)
        shape = (1, cfg.stream.block_latents, *cfg.latent_size, cfg.vae.latent_channels)
        return BlockInput(
            speakers=tuple(map(self._speaker, self._tracks, self._masks)),
            noise=jax.random.normal(jax.random.fold_in(self._key, self._blocks), shape),
            place=Place(*clock.phases(self._blocks, cfg), jnp.asarray(slots), jnp.asarray(filled)),
        )

    def _draw(self) -> Blocks:
        blocks = []
        while all(track.ready for track in self._tracks):
            drawn = self._engine.feed(self._input())
            self._blocks += 1
            self._adapt(drawn)
            blocks += self._show(drawn)
        return blocks

    def _adapt(self, drawn: list[engine.Drawn]) -> None:
        """The adaptive sink: the stream's own first latent becomes the reference (live_avatar.md section 6.5)."""
        after = self._cfg.stream.adapt_blocks
        if after and self._first is None and drawn:
            self._first = drawn[0].latent[:, :1]
        if self._blocks == after:
            self._scene = dataclasses.replace(self._scene, reference=self._first)
            self._engine.show(self._scene)

    def _show(self, drawn: list[engine.Drawn]) -> Blocks:
        return [np.asarray(block.frames[0]) for block in drawn]
