"""Sequential block autoregression: the oracle of every faster schedule, and the trainers' rollout."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import platform
from avatar_jax.core.config import Config, PictureConfig, StreamConfig
from avatar_jax.diffusion import flow, schedule
from avatar_jax.models import audio, condition, dit, signal, vae
from avatar_jax.models.level import read_level, sinusoids
from avatar_jax.nn import bands, kv
from avatar_jax.nn.rope import Phase
from avatar_jax.stream import clock
from avatar_jax.stream.state import BlockInput, Flight, Scene, Speaker

LEVELS = {"shifted": schedule.sigmas, "published": schedule.published}


def levels(cfg: StreamConfig) -> np.ndarray:
    """Noise levels of a block's steps, from 1 to 0, float32 [steps + 1]."""
    return LEVELS[cfg.levels](cfg.steps, cfg.shift)


def view(p: dict, portrait: jax.Array, *, cfg: Config) -> Scene:
    """The scene of a portrait: its latent, and its latents as a still video (live_avatar.md section 11.2).

    Args:
      p: weights of the VAE.
      portrait: in [-1, 1], [B, 1, H, W, 3].
      cfg: the run.
    """
    reference, tail = vae.encode_first(p, portrait, cfg=cfg.vae)
    frames = jnp.repeat(portrait, cfg.vae.temporal_stride, 1)

    def stand(tail: vae.Tail, _):
        latent, tail = vae.encode_step(p, tail, frames, cfg=cfg.vae)
        return tail, latent[:, 0]

    more = max(cfg.motion_latents, cfg.stream.warm_latents) - 1
    if not more:
        return Scene(reference, reference)
    _, latents = jax.lax.scan(stand, tail, length=more)
    return Scene(reference, jnp.concatenate([reference, jnp.moveaxis(latents, 0, 1)], 1))


def prefill(p: dict, scene: Scene, *, cfg: Config) -> Any:
    """Keys and values of the scene's condition tokens in every layer, see `dit.prefill`."""
    if cfg.motion_latents:
        tokens = condition.embed_all(p, scene.reference, scene.still, cfg.dit)
    else:
        tokens = condition.embed_reference(p, scene.reference, cfg.dit)
    return dit.prefill(
        p, tokens, clock.condition_phase(clock.time_phase(clock.STILL, cfg), cfg), scene.cross, cfg=cfg.dit
    )


def begin(p: dict, held: Any, count: int | None = None, *, cfg: Config) -> tuple[Any, ...]:
    """A stream's memories, or `count` of them, with nothing but a scene in them; held: from `prefill`."""
    slots = cfg.stream.memory_latents * cfg.tokens_per_frame
    memory = kv.each(p["blocks"], lambda keys_values: kv.empty(*keys_values, slots=slots), held)
    return tuple(jax.tree.map(jnp.copy, memory) for _ in range(count or cfg.stream.memories))


def warm(p: dict, still: jax.Array, *, cfg: Config) -> vae.Tail:
    """A decoder that has seen a portrait stand still. p: weights of the VAE; still: [B, n, h, w, C]."""
    _, tail = vae.decode_first(p, still[:, :1], cfg=cfg.vae)
    if cfg.stream.warm_latents > 1:
        _, tail = vae.decode_step(p, tail, still[:, 1 : cfg.stream.warm_latents], cfg=cfg.vae)
    return tail


def refill(p: dict, caches: tuple[Any, ...], held: Any, stream: int | jax.Array = 0) -> tuple[Any, ...]:
    """Memories with another scene in them from `stream` on, their rings as they are (section 6.5).

    held: from `prefill`.
    """

    def fill(layer: kv.KVCache, keys_values: Any) -> kv.KVCache:
        return kv.refill(layer, *keys_values, stream=stream)

    return tuple(kv.each(p["blocks"], fill, cache, held) for cache in caches)


def voice_of(p: dict, speaker: Speaker, *, cfg: Config) -> audio.Voice:
    """Sound and signals of a speaker as tokens of the block's latent frames, in the transformer's dtype."""
    context, dtype = cfg.stream.audio_context, cfg.dit.compute_dtype
    voice = audio.encode(p["audio"]["encoder"], speaker.features, speaker.mask, context=context, cfg=cfg.dit)
    voice = signal.join(p, voice, speaker.signals, cfg=cfg.dit)
    tokens = jax.tree.map(lambda rows: rows.astype(dtype), voice._replace(mask=None))
    return tokens._replace(mask=voice.mask)


def enter(p: dict, block: BlockInput, *, cfg: Config) -> Flight:
    """A block at its first step: noise, and what drives it as tokens of its latent frames."""
    voices = tuple(voice_of(p, speaker, cfg=cfg) for speaker in block.speakers)
    return Flight(block.noise.astype(cfg.dit.compute_dtype), voices, block.place, block.pose)


def call(
    p: dict,
    memory: Any,
    flight: Flight,
    at: dit.Level,
    number: int | jax.Array,
    heard: dit.Heard,
    cross: Any,
    *,
    band: bands.Axes = None,
    cfg: Config,
) -> tuple[Any, jax.Array]:
    """One network call of a block, whichever schedule makes it.

    Args:
      p: weights of the transformer.
      memory: the one that this call reads and writes.
      flight: the block.
      at: the noise level of its latents.
      number: which of the block's calls this is.
      heard: its sound, from `dit.hear`.
      cross: the prompt, from `dit.remember`, or None.
      band: see `dit.apply_block`.
      cfg: the run.

    Returns:
      the memory with the block in it, and the velocity, float32.
    """
    place = flight.place
    ahead = Phase(*(jnp.asarray(side)[:, number] for side in place.reference_time))
    return dit.apply_block(
        p,
        memory,
        flight.latent,
        at,
        phase=clock.spread(place.time, cfg),
        reference_phase=clock.condition_phase(ahead, cfg),
        slots=place.slots,
        filled=place.filled,
        heard=heard,
        cross=cross,
        given=condition.Given(known=flight.known, pose=flight.pose),
        band=band,
        cfg=cfg.dit,
    )


def at_step(
    p: dict,
    memory: Any,
    flight: Flight,
    number: int | jax.Array,
    heard: dit.Heard,
    cross: Any,
    *,
    band: bands.Axes = None,
    cfg: Config,
) -> tuple[Any, jax.Array]:
    """`call` of a block at the noise level of denoising step `number`."""
    at = read_level(p, sinusoids(levels(cfg.stream)[:-1], cfg=cfg.dit)[number], cfg=cfg.dit)
    return call(p, memory, flight, at, number, heard, cross, band=band, cfg=cfg)


def step(
    p: dict,
    memory: Any,
    flight: Flight,
    number: int | jax.Array,
    heard: dit.Heard,
    cross: Any,
    *,
    band: bands.Axes = None,
    cfg: Config,
) -> tuple[Any, Flight]:
    """One denoising step of a block (section 11.5): the velocity, then the Euler step to the next level."""
    memory, v = at_step(p, memory, flight, number, heard, cross, band=band, cfg=cfg)
    level, below = (jnp.asarray(side)[number] for side in (levels(cfg.stream)[:-1], levels(cfg.stream)[1:]))
    x = flow.euler(flight.latent, v, level, below).astype(flight.latent.dtype)
    return memory, dataclasses.replace(flight, latent=x)


def predict(
    p: dict,
    memory: Any,
    flight: Flight,
    number: int | jax.Array,
    heard: dit.Heard,
    cross: Any,
    *,
    band: bands.Axes = None,
    cfg: Config,
) -> tuple[Any, jax.Array]:
    """G of a denoising step: the memory with the block at this level in it, and the x0 that is predicted, float32."""
    memory, v = at_step(p, memory, flight, number, heard, cross, band=band, cfg=cfg)
    return memory, flow.clean(flight.latent.astype(jnp.float32), v, jnp.asarray(levels(cfg.stream))[number])


def advance(
    p: dict,
    memories: tuple[Any, ...],
    flight: Flight,
    first: int | jax.Array,
    count: int,
    heard: dit.Heard,
    cross: Any,
    *,
    band: bands.Axes = None,
    cfg: Config,
) -> tuple[tuple[Any, ...], Flight]:
    """Steps first to first + count of a block, over one memory a step, or over fewer that take turns."""
    new = list(memories)
    for k in range(count):
        memory = k % len(new)
        new[memory], flight = step(p, new[memory], flight, first + k, heard, cross, band=band, cfg=cfg)
    return tuple(new), flight


def remember(
    p: dict,
    memory: Any,
    flight: Flight,
    noise: jax.Array,
    heard: dit.Heard,
    cross: Any,
    *,
    band: bands.Axes = None,
    cfg: Config,
) -> Any:
    """The memory with a finished block's keys in it: clean, or with `noise` again up to `history_level`."""
    level = np.float32(cfg.stream.history_level)
    past = flow.add_noise(flight.latent, noise, level).astype(noise.dtype) if level else flight.latent
    known, at = dataclasses.replace(flight, latent=past), dit.level(p, level, cfg=cfg.dit)
    return call(p, memory, known, at, cfg.stream.steps, heard, cross, band=band, cfg=cfg)[0]


def denoise(
    p: dict, caches: tuple[Any, ...], block: BlockInput, cross: Any = None, *, band: bands.Axes = None, cfg: Config
) -> tuple[tuple[Any, ...], jax.Array]:
    """Draws one block: noise to latents through `cfg.stream.steps` Euler steps.

    With "timestep" history step k reads and writes memory k, whose keys are all at step k's noise level; else the
    steps overwrite the block's slot of the one memory, and a last pass leaves it the keys of the finished block, clean
    or with the block's own noise again up to `history_level` (section 7.2).

    Returns:
      the memories with this block committed, and its latents [B, F, h, w, C].
    """
    flight = enter(p, block, cfg=cfg)
    heard, steps, noise = dit.hear(p, flight.voices, cfg=cfg.dit), cfg.stream.steps, flight.latent
    memories, flight = advance(p, caches, flight, 0, steps, heard, cross, band=band, cfg=cfg)
    if cfg.stream.history != "timestep":
        memories = (remember(p, memories[0], flight, noise, heard, cross, band=band, cfg=cfg),)
    return memories, flight.latent


def decode(p: dict, tail: vae.Tail, latent: jax.Array, *, cfg: PictureConfig) -> tuple[vae.Tail, jax.Array]:
    """The next latents [B, F, h, w, C] to uint8 frames [B, T, H, W, 3]; p: weights of the VAE."""
    pixels, tail = vae.decode_step(p, tail, latent.astype(jnp.float32), cfg=cfg.vae)
    return tail, vae.to_uint8(pixels)


def make_program(f: Callable[..., Any], name: str, **how: Any) -> Any:
    """`f` compiled with the options that programs of this name want where they run (`platform.compiler_options`)."""
    options: Any = platform.compiler_options(jax.default_backend(), name)
    return jax.jit(f, compiler_options=options or None, **how)


@functools.lru_cache(maxsize=8)
def make_view(cfg: Config):
    """`view` compiled for `cfg`: (weights of the VAE, portrait) -> scene."""
    return make_program(functools.partial(view, cfg=cfg), "decode")


@functools.lru_cache(maxsize=8)
def make_begin(cfg: Config):
    """`begin` compiled for `cfg`: (weights of the transformer, keys and values of a scene) -> memories."""
    return jax.jit(functools.partial(begin, cfg=cfg))


@functools.lru_cache(maxsize=8)
def make_warm(cfg: Config):
    """`warm` compiled for `cfg`: (weights of the VAE, still latents) -> tail."""
    return make_program(functools.partial(warm, cfg=cfg), "decode")


@functools.lru_cache(maxsize=8)
def make_prefill(cfg: Config):
    """`prefill` compiled for `cfg`: (weights of the transformer, scene) -> keys and values."""
    return make_program(functools.partial(prefill, cfg=cfg), "prefill")


@functools.lru_cache(maxsize=1)
def make_refill():
    """`refill` compiled, caches donated: (weights of the transformer, caches, keys and values) -> caches."""
    return jax.jit(refill, donate_argnums=1)


@functools.lru_cache(maxsize=8)
def make_denoise(cfg: Config):
    """`denoise` compiled for `cfg`, caches donated: (weights of the transformer, caches, block, cross) -> both."""
    return make_program(functools.partial(denoise, cfg=cfg), "block", donate_argnums=1)


@functools.lru_cache(maxsize=8)
def make_decode(cfg: PictureConfig):
    """`decode` compiled for `cfg`, tail donated: (weights of the VAE, tail, latents) -> (tail, frames)."""
    return make_program(functools.partial(decode, cfg=cfg), "decode", donate_argnums=1)
