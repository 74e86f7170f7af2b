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
from avatar_jax.stream import chain, clock, engine, hear, pool, prompt, rollout, saved, speaker
from avatar_jax.stream import mesh as meshes
from avatar_jax.stream.state import BlockInput, Scene, Speaker, Weights

Blocks = list[jax.Array]  # uint8 [T, H, W, 3], perhaps still being computed: reading one waits for it


@dataclasses.dataclass(frozen=True)
class Avatar:
    """A portrait ready to speak: what listens and draws for every session of it."""

    cfg: configs.Config
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


def make_pool(weights: Weights, cfg: configs.Config) -> pool.Pool:
    """Seats for `cfg.mesh.streams` streams, of one avatar or of several."""
    devices, decoders = devices_of(cfg)
    mesh = meshes.make_mesh_of(devices, cfg)
    return pool.Pool(engine.place(weights, mesh, cfg), mesh, decoders, cfg)


def make_engines(weights: Weights, scene: Scene, cfg: configs.Config) -> engine.Engines:
    """What draws for every session of a scene, as `cfg.mesh` says."""
    if cfg.mesh.driver == "spmd" and max(cfg.mesh.devices, cfg.mesh.streams) > 1:
        seats = make_pool(weights, cfg)
        return functools.partial(seats.join, seats.act(scene))
    begin = engine.start(weights, scene, cfg)
    if cfg.mesh.driver == "spmd":
        return functools.partial(engine.Sequential, weights, scene, begin, cfg)
    devices, decoders = devices_of(cfg)
    return functools.partial(chain.Chained, weights, scene, begin, [*devices, *decoders], cfg)


def make_scene(cfg: configs.Config, weights: Weights, portrait: np.ndarray, text: jax.Array | None = None) -> Scene:
    """What a portrait and a prompt look like to the model.

    Args:
      cfg: the run.
      weights: from `load_weights`.
      portrait: uint8 [H, W, 3], of the configured size.
      text: rows of the prompt, from `prompt.encode`, if the model reads one.

    Raises:
      ValueError: a portrait of another size.
    """
    wanted = (cfg.video.height, cfg.video.width, 3)
    if portrait.shape != wanted:
        raise ValueError(f"portrait of shape {portrait.shape}: must be {wanted}")
    scene = rollout.make_view(cfg)(weights.vae, vae.from_uint8(portrait)[None, None])
    if text is None:
        return scene
    return dataclasses.replace(scene, cross=prompt.remember(weights.dit, text, cfg=cfg.dit))


def make_avatar(
    cfg: configs.Config,
    weights: Weights,
    portrait: np.ndarray,
    *,
    text: jax.Array | None = None,
    hearing: hear.Hearing | None = None,
    masks: np.ndarray | None = None,
    seats: pool.Pool | None = None,
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
      seats: a pool that it shares with other avatars; by default it has devices of its own.
    """
    scene, driven = make_scene(cfg, weights, portrait, text), None
    if masks is not None:
        driven = speaker.token_masks(masks, cfg)
    engines = functools.partial(seats.join, seats.act(scene)) if seats else make_engines(weights, scene, cfg)
    avatar = Avatar(cfg, hearing or hear.make_hearing(cfg), engines, driven)
    if seats and seats.busy:
        return avatar  # its programs are those of the others
    warm_up = Session(avatar)
    blocks = max(cfg.stream.adapt_blocks, cfg.mesh.share_first) + 1  # so that every program has run
    drawn = warm_up.push_audio(np.zeros(blocks * cfg.block_samples, np.float32))
    jax.block_until_ready(drawn + warm_up.finish())  # the other speakers are silent as long
    return avatar


class Session:
    """One stream of one avatar. Feed sound of any length; blocks come out as soon as their sound is heard."""

    def __init__(self, avatar: Avatar, drawer: engine.Engine | None = None):
        self._cfg = avatar.cfg
        self._masks: Any = [None] if avatar.masks is None else avatar.masks
        self._tracks = [speaker.Track(avatar.hearing(), avatar.cfg) for _ in self._masks]
        self._engine, self._blocks, self._over = drawer or avatar.engine(), 0, False
        self._key = jax.random.key(self._cfg.stream.seed)

    @classmethod
    def resume(cls, avatar: Avatar, folder: pathlib.Path) -> "Session":
        """The stream that `save` wrote, as it stood then: what it draws from here on is equal to the bit.

        Raises:
          ValueError: nothing was saved there, or the stream of another configuration or avatar.
        """
        found, session = saved.read(folder, avatar.cfg), cls(avatar)
        try:
            session._restore(found)
        except ValueError:
            session.close()
            raise
        return session

    @property
    def samples(self) -> int:
        """Audio samples taken so far, of the speaker who is furthest."""
        return max(track.samples for track in self._tracks)

    def push_audio(self, samples: np.ndarray, speaker: int = 0) -> Blocks:
        """Takes mono float32 samples at the model's rate, any number of them.

        A block is drawn when the sound of every speaker is there; one who says nothing needs zeros.

        Returns:
          the blocks that are drawn by now, or under way.
        """
        self._track(speaker).push(np.asarray(samples, np.float32))
        return self._draw()

    def poll(self) -> Blocks:
        """What others' beats of a shared pool have drawn since the last call; never waits."""
        return self._show(self._engine.collect())

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

    def show(self, scene: Scene) -> None:
        """Another portrait or prompt, from `make_scene`: taken up by the next block, on every device in its turn."""
        self._engine.show(scene)

    def finish(self) -> Blocks:
        """Shows what is left, the last block cut so that the frames cover the sound exactly."""
        samples = self.samples
        for track in self._tracks:
            track.finish(samples)
        blocks = self._draw() + self._show(self._engine.drain())
        over = self._blocks * self._cfg.block_frames - clock.frames_of(samples, self._cfg)
        if blocks and over > 0:
            blocks[-1] = blocks[-1][:-over]
        self.close()
        return blocks

    def close(self) -> None:
        """Ends the stream at once, without what is left; `finish` ends with it."""
        self._over = True
        self._engine.close()

    def save(self, folder: pathlib.Path) -> None:
        """Writes the stream as it stands into a folder of its own, whole or not at all; it goes on unchanged.

        With it are the sound and the signals that no block has used. Blocks that were handed out are not. A former
        save in the folder stays until the new one is there.

        Raises:
          ValueError: the stream is over, is spread over several devices, or the folder cannot be written.
        """
        if self._over:
            raise ValueError("the stream is over: save it before it is finished or closed")
        tracks = [track.state() for track in self._tracks]
        state = {"blocks": self._blocks, "masks": list(self._masks), "tracks": tracks, "engine": self._engine.state()}
        saved.write(folder, state, self._cfg)

    def _restore(self, found: saved.Found) -> None:
        tracks = saved.items(found, "tracks")
        if len(tracks) != len(self._tracks):
            raise ValueError(f"saved stream: of {len(tracks)} speakers, where this avatar has {len(self._tracks)}")
        masks: Any = saved.items(found, "masks") or [None]
        if not np.array_equal(masks, self._masks):
            raise ValueError("saved stream: its speakers have other masks; resume it with the avatar it was of")
        self._engine.restore(found["engine"])
        for track, state in zip(self._tracks, tracks, strict=True):
            track.restore(state)
        self._blocks = int(found["blocks"])

    def _track(self, number: int) -> speaker.Track:
        if not 0 <= number < len(self._tracks):
            raise ValueError(f"speaker {number}: the avatar has {len(self._tracks)}, counted from 0")
        return self._tracks[number]

    def _speaker(self, track: speaker.Track, mask: np.ndarray | None) -> Speaker:
        features = track.take()
        frames = len(features) - self._cfg.stream.audio_context
        signals = track.signals.take(self._blocks * self._cfg.block_frames, frames)
        return Speaker(
            features=features[None],
            signals={name: jnp.asarray(rows)[None] for name, rows in signals.items()},
            mask=None if mask is None else jnp.asarray(mask),
        )

    def _input(self) -> BlockInput:
        cfg = self._cfg
        shape = (1, cfg.stream.noise_latents, *cfg.latent_size, cfg.vae.latent_channels)
        return BlockInput(
            speakers=tuple(map(self._speaker, self._tracks, self._masks)),
            noise=jax.random.normal(jax.random.fold_in(self._key, self._blocks), shape),
            place=clock.place(self._blocks, cfg),
        )

    def _draw(self) -> Blocks:
        blocks = []
        while all(track.ready for track in self._tracks):
            blocks += self._show(self._engine.feed(self._input()))
            self._blocks += 1
            if self._blocks == self._cfg.stream.adapt_blocks:  # the adaptive sink (live_avatar.md section 6.5)
                self._engine.adapt()
        return blocks

    def _show(self, drawn: list[engine.Drawn]) -> Blocks:
        blocks = [block.frames[0] for block in drawn if block.frames is not None]
        for frames in blocks:
            frames.copy_to_host_async()
        return blocks
