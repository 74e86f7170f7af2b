"""The live engine: push sound, get blocks of video. The file command is this engine fed from a file."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.io import checkpoint
from avatar_jax.models import dit, vae
from avatar_jax.stream import chain, clock, engine, hear, pipeline, pool, prompt, rollout
from avatar_jax.stream.state import BlockInput, Scene, Weights

Blocks = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Avatar:
    """A portrait ready to speak: what listens and draws for every session of it."""

    cfg: configs.Config
    hearing: hear.Hearing
    engine: engine.Engines


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


def devices_of(cfg: configs.Config) -> tuple[list[Any], list[Any]]:
    """The devices that denoise for `cfg`, and those that decode, one a row: spare ones, where there are any.

    Raises:
      ValueError: fewer devices than data x stages x context x tensor.
    """
    mesh, found, processes = cfg.mesh, jax.devices(), jax.process_count()
    if mesh.devices > len(found):
        inside = f"{mesh.context} context x {mesh.tensor} tensor"
        shape = f"config.mesh: {mesh.data} data x {mesh.stages} stages x {inside} need {mesh.devices} devices"
        raise ValueError(f"{shape}, {len(found)} {found[0].platform} found; lower one of config.mesh")
    drawing, spare = found[: mesh.devices], found[mesh.devices :]
    if processes > 1 and mesh.driver == "chain":
        raise ValueError(f"config.mesh.driver='chain': runs in one process, not in {processes}; take 'spmd'")
    if len({device.process_index for device in drawing}) < processes:
        raise ValueError(f"config.mesh: {mesh.devices} devices leave some of {processes} processes without one")
    homes = drawing[:: mesh.devices // mesh.data]
    near = [[device for device in spare if device.process_index == home.process_index] for home in homes]
    return drawing, [mine[row % len(mine)] if mine else homes[row] for row, mine in enumerate(near)]


def make_engines(weights: Weights, scene: Scene, cfg: configs.Config) -> engine.Engines:
    """What draws for every session of a scene, as `cfg.mesh` says."""
    devices, decoders = devices_of(cfg)
    if cfg.mesh.devices == cfg.mesh.streams == 1:
        return functools.partial(engine.Sequential, weights, scene, rollout.make_start(cfg)(weights, scene), cfg)
    if cfg.mesh.driver == "chain":
        begin = rollout.make_start(cfg)(weights, scene)
        return functools.partial(chain.Chained, weights, scene, begin, [*devices, *decoders], cfg)
    mesh = pipeline.make_mesh_of(devices, cfg)
    seats = pool.Pool(engine.place(weights, mesh, cfg), mesh, decoders, cfg)
    return functools.partial(seats.join, seats.act(scene))


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
    avatar = Avatar(cfg, hearing or hear.make_hearing(cfg), make_engines(weights, scene, cfg))
    warm_up = Session(avatar)
    warm_up.push_audio(
        np.zeros((max(cfg.stream.adapt_blocks, cfg.mesh.share_first) + 1) * cfg.block_samples, np.float32)
    )
    warm_up.finish()
    return avatar


class Session:
    """One stream of one avatar. Feed sound of any length; blocks come out as soon as their sound is heard."""

    def __init__(self, avatar: Avatar):
        self._cfg, self._ear, self._engine = avatar.cfg, avatar.hearing(), avatar.engine()
        self._context: np.ndarray | None = None
        self._blocks, self._samples = 0, 0
        self._key = jax.random.key(self._cfg.stream.seed)

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
        return self._draw(self._ear.push(np.asarray(samples, np.float32)))

    def finish(self) -> Blocks:
        """Shows what is left, the last block cut so that the frames cover the sound exactly."""
        blocks = self._draw(self._ear.finish()) + self._show(self._engine.drain())
        over = self._blocks * self._cfg.block_frames - clock.frames_of(self._samples, self._cfg)
        if blocks and over > 0:
            blocks[-1] = blocks[-1][:-over]
        self.close()
        return blocks

    def close(self) -> None:
        """Ends the stream at once, without what is left; `finish` ends with it."""
        self._engine.close()

    def _heard(self, features: np.ndarray) -> np.ndarray:
        """A block's features behind their left context, [context + T, layers, width]."""
        cfg, rest = self._cfg.stream, self._ear.rest
        if self._context is None or cfg.audio_history == "repeated":
            before = features[0] if rest is None or cfg.audio_history == "repeated" else rest
            self._context = np.tile(before, (cfg.audio_context, 1, 1))
        heard = np.concatenate([self._context, features])
        self._context = heard[-cfg.audio_context :]
        return heard

    def _input(self, features: np.ndarray) -> BlockInput:
        cfg = self._cfg
        shape = (1, cfg.stream.block_latents, *cfg.latent_size, cfg.vae.latent_channels)
        return BlockInput(
            features=jnp.asarray(self._heard(features))[None],
            noise=jax.random.normal(jax.random.fold_in(self._key, self._blocks), shape),
            place=clock.place(self._blocks, cfg),
        )

    def _draw(self, heard: hear.Features) -> Blocks:
        blocks = []
        for features in heard:
            blocks += self._show(self._engine.feed(self._input(features)))
            self._blocks += 1
            if self._blocks == self._cfg.stream.adapt_blocks:  # the adaptive sink (live_avatar.md section 6.5)
                self._engine.adapt()
        return blocks

    def _show(self, drawn: list[engine.Drawn]) -> Blocks:
        return [np.asarray(block.frames[0]) for block in drawn if block.frames is not None]
