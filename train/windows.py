"""Batches of training windows as the transformer takes them: who speaks, how loud, and what they are left without."""

import dataclasses
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from avatar_jax.core import config as configs
from avatar_jax.data import latents
from avatar_jax.models import dit, mel
from avatar_jax.stream import clock, rollout
from avatar_jax.stream.state import BlockInput, Scene, Speaker
from train import loop
from train import mesh as meshes

Batch = dict[str, Any]
Speakers = tuple[Speaker, ...]
NOTHING = (
    0.0  # what features are where the sound is dropped, as published (live_avatar.md section 16); no silence is it
)


def batches(
    folders: str, batch: int, mesh: Mesh, cfg: configs.TrainingConfig, *, twins: bool = False
) -> grain.DatasetIterator:
    """This process' rows of batches of windows, from folders as `latents.weighted` reads them."""
    share = meshes.share(batch, mesh)
    silence = mel.silence(cfg.sound) if isinstance(cfg.sound, configs.MelConfig) else None
    rows = batch // share.count
    data = latents.window_dataset(latents.weighted(folders), cfg, silence=silence, batch=rows, twins=twins)
    paired = latents.paired(share.of(data), cfg.train.dit_beside)
    return loop.batches(paired, threads=cfg.data.workers, prefetch=8)


def sized(batch: Batch, cfg: configs.TrainingConfig) -> configs.TrainingConfig:
    """The run with pictures of the batch's size: two side by side are twice as wide."""
    rows, columns = batch["latent"].shape[2:4]
    return configs.sized(cfg, rows * cfg.vae.spatial_stride, columns * cfg.vae.spatial_stride)


def part(speaker: int, count: int, batch: int, cfg: configs.Config) -> jax.Array | None:
    """Tokens that one of `count` speakers side by side drives, [B, 1, f]; None for one who has the picture alone."""
    if count == 1:
        return None
    rows, columns = cfg.grid
    mine = jnp.arange(columns) * count // columns == speaker
    return jnp.broadcast_to(mine.astype(jnp.float32), (batch, 1, rows, columns)).reshape(batch, 1, -1)


def speakers_of(batch: Batch, cfg: configs.Config) -> Speakers:
    """Everyone who speaks in a batch, each in a part of the picture; cfg: from `sized`."""
    features = batch["features"].astype(jnp.float32)
    count = features.shape[1]
    return tuple(
        Speaker(
            features[:, number],
            {name: rows[:, number] for name, rows in batch["signals"].items()},
            part(number, count, len(features), cfg),
        )
        for number in range(count)
    )


def prompt(p: dict, text: jax.Array | None, cfg: configs.Config) -> Any:
    """Keys and values of captions [B, n, text_width], or None where there are none. p: as the transformer runs it."""
    return None if text is None else dit.remember(p, text.astype(jnp.float32), cfg=cfg.dit)


def without(speakers: Speakers) -> Speakers:
    """The same speakers with nothing to say: what guidance leads away from."""

    def empty(speaker: Speaker) -> Speaker:
        absent = jax.tree.map(lambda rows: jnp.full_like(rows, jnp.nan), speaker.signals)
        return dataclasses.replace(speaker, features=jnp.full_like(speaker.features, NOTHING), signals=absent)

    return tuple(map(empty, speakers))


def cut(speakers: Speakers, first: int, frames: int, cfg: configs.Config) -> Speakers:
    """What the speakers say in `frames` video frames from `first` on, with the left context."""

    def piece(speaker: Speaker) -> Speaker:
        return dataclasses.replace(
            speaker,
            features=speaker.features[:, first : first + cfg.stream.audio_context + frames],
            signals={name: rows[:, first : first + frames] for name, rows in speaker.signals.items()},
        )

    return tuple(map(piece, speakers))


def dropped_signals(key: jax.Array, signals: dict[str, jax.Array], share: jax.Array | float) -> dict[str, jax.Array]:
    """Signals [B, T, width] by name, some rows absent (NaN): of each, `share` of the windows, whatever the others do.

    Half of those lack it wholly; in the others it ends or begins at some frame, as in a stream it may at any.
    """

    def drop(key: jax.Array, rows: jax.Array) -> jax.Array:
        batch, frames = rows.shape[:2]
        which, how, cut = (jax.random.uniform(part, (batch, 1, 1)) for part in jax.random.split(key, 3))
        frame = jnp.arange(frames)[:, None] / frames
        part = jnp.where(how < 0.75, frame >= cut, frame < cut) | (how < 0.5)
        return jnp.where((which < share) & part, jnp.nan, rows)

    return {name: drop(jax.random.fold_in(key, i), rows) for i, (name, rows) in enumerate(sorted(signals.items()))}


def louder(key: jax.Array, features: jax.Array) -> jax.Array:
    """Log-mel features [B, A, 1, W], each recording louder or quieter. Silence stays silence."""
    gained = features + jax.random.uniform(key, (len(features), 1, 1, 1), minval=-0.3, maxval=0.1)
    return jnp.where(features > mel.SILENCE_VALUE, jnp.maximum(gained, mel.SILENCE_VALUE), mel.SILENCE_VALUE)


def varied(
    key: jax.Array, speakers: Speakers, cfg: configs.TrainingConfig, performed: jax.Array | None = None
) -> Speakers:
    """Log-mel louder or quieter; `dit_drop_audio` of the speakers unheard; signals dropped by themselves.

    performed: bool [B, S], speakers that keep all their signals: without them nobody moves as they do.
    """
    rates, loudness = cfg.train, isinstance(cfg.sound, configs.MelConfig)

    def vary(number: int, speaker: Speaker) -> Speaker:
        gain_key, drop_key, signal_key = jax.random.split(jax.random.fold_in(key, number), 3)
        features = louder(gain_key, speaker.features) if loudness else speaker.features
        unheard = jax.random.uniform(drop_key, (len(features), 1, 1, 1)) < rates.dit_drop_audio
        share = rates.dit_drop_signal
        if performed is not None:
            share = jnp.where(performed[:, number, None, None], 0.0, share)
        rows = dropped_signals(signal_key, dict(speaker.signals), share)
        return dataclasses.replace(speaker, features=jnp.where(unheard, NOTHING, features), signals=rows)

    return tuple(vary(number, speaker) for number, speaker in enumerate(speakers))


def learned(key: jax.Array, batch: Batch, cfg: configs.TrainingConfig) -> Speakers:
    """Everyone who speaks in a batch, `varied` as training has it; cfg: from `sized`."""
    return varied(key, speakers_of(batch, cfg), cfg, batch.get("performed"))


def stacked(speakers: Speakers, noise: jax.Array, cfg: configs.Config) -> BlockInput:
    """The blocks of a stream as one, each leaf with a leading axis of blocks: what is said, and noise [N, ...]."""
    blocks = [
        BlockInput(cut(speakers, number * cfg.block_frames, cfg.heard_frames, cfg), drawn, clock.place(number, cfg))
        for number, drawn in enumerate(noise)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def remembered(p: dict, batch: Batch, cfg: configs.Config) -> tuple[Any, Any]:
    """Keys and values of a batch's portraits, and of its captions (`prompt`), for a stream to begin with."""
    reference, cross = batch["reference"].astype(jnp.float32), prompt(p, batch.get("text"), cfg)
    return rollout.prefill(p, Scene(reference, reference, cross), cfg=cfg), cross
