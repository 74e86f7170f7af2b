"""Algorithm 1 of Knot Forcing written down literally: lists of frames, all computed anew in every network call."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.check import validate
from avatar_jax.core.config import Config, DitConfig, KnotConfig, TrainingConfig
from avatar_jax.models import audio, condition, dit
from avatar_jax.stream import clock, rollout
from avatar_jax.stream.state import Scene, Weights
from configs.tiny_knot import get_config
from tests.stream.test_session import weights_of

STEPS = 2


def small(c: int = 3, window: int = 6, k: int = 1, steps: int = STEPS) -> TrainingConfig:
    cfg = get_config()
    cfg.dit = dataclasses.replace(cfg.dit, width=48, heads=2, layers=2, ffn=64, audio_inject=(0,), freq=32, signals=())
    cfg.vae = dataclasses.replace(cfg.vae, width=8, mult=(1, 2, 2))
    cfg.video = dataclasses.replace(cfg.video, height=32, width=32)
    lengths = KnotConfig(latents=k, window=window, reference_start=8, reference_jump=4)
    cfg.stream = dataclasses.replace(cfg.stream, steps=steps, block_latents=c, knot=lengths)
    return validate(cfg)


@functools.lru_cache
def weights() -> Weights:
    return weights_of(small())


def scene_of(cfg: Config, seed: int = 3) -> Scene:
    latent = jax.random.normal(jax.random.key(seed), (1, 1, *cfg.latent_size, 16))
    return Scene(latent, latent)


def inputs(chunk: int, cfg: Config) -> tuple[jax.Array, jax.Array]:
    """Noise and features of a chunk; features of a video frame are the same in every chunk that hears it."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(4), chunk), (1, cfg.stream.noise_latents, 4, 4, 16))
    first, length = chunk * cfg.block_frames, cfg.stream.audio_context + cfg.heard_frames
    rows = [
        np.random.default_rng(frame).standard_normal((1, cfg.dit.audio_width)) for frame in range(first, first + length)
    ]
    return noise, jnp.asarray(np.stack(rows), jnp.float32)[None]


@dataclasses.dataclass
class Frame:
    """One latent frame of the literal Algorithm 1."""

    time: int
    chunk: int  # whose reference it sees
    latent: jax.Array  # [1, 4, 4, 16]
    sigma: float
    known: jax.Array  # [1, 4, 4, 20]
    voice: tuple[jax.Array, jax.Array]
    sees: list[int] = dataclasses.field(default_factory=list)  # clean frames, by time


@functools.lru_cache
def make_network(cfg: DitConfig):
    """`dit.apply` compiled."""
    return jax.jit(functools.partial(dit.apply, cfg=cfg))


class Literal:
    """Algorithm 1 over lists. A network call gets every clean frame so far, and a mask that says who saw whom.

    Frames that nobody sees, before the first, make all calls equally long: one program for all.
    """

    def __init__(self, cfg: Config, chunks: int):
        self.cfg, self.chunks, self.archive, self.ahead = cfg, chunks, [], []
        tokens = condition.embed_reference(weights().dit, scene_of(cfg).reference, cfg.dit)
        self.reference = dit.prefill(weights().dit, tokens, clock.grid_phase(np.array([17]), cfg), cfg=cfg.dit)

    def call(self, noisy: list[Frame]) -> jax.Array:
        """x0 of the noisy frames, [1, F, 4, 4, 16]."""
        cfg, size = self.cfg, self.cfg.tokens_per_frame
        unseen = dataclasses.replace(noisy[0], time=-1, chunk=-1, sigma=0.0, sees=[])
        short = self.chunks * cfg.stream.block_latents - len(self.archive)
        every = [*[unseen] * short, *self.archive, *noisy]
        seen = np.zeros((len(every), self.chunks + len(every)), bool)
        for row, frame in enumerate(every):
            seen[row, frame.chunk] = True
            for column, other in enumerate(every, self.chunks):
                together = (frame.chunk, frame.sigma) == (other.chunk, other.sigma)
                seen[row, column] = together or (other.sigma == 0.0 and other.time in frame.sees)
        ahead = np.pad(self.ahead, (0, self.chunks - len(self.ahead)))
        v = make_network(cfg.dit)(
            weights().dit,
            jnp.stack([frame.latent for frame in every], 1),
            jnp.asarray([[frame.sigma for frame in every]], jnp.float32),
            self.reference,
            phase=clock.grid_phase(np.array([frame.time for frame in every]), cfg),
            reference_phases=clock.grid_phase(ahead, cfg),
            mask=np.repeat(np.repeat(seen, size, 0), size, 1),
            voices=(audio.Voice(*(jnp.stack(side, 1) for side in zip(*(f.voice for f in every), strict=True))),),
            given=condition.Given(known=jnp.stack([frame.known for frame in every], 1)),
        )
        sigma = jnp.asarray([frame.sigma for frame in noisy])[None, :, None, None, None]
        return jnp.stack([frame.latent for frame in noisy], 1) - sigma * v[:, -len(noisy) :]

    def run(self) -> Iterator[np.ndarray]:
        """The emitted latents of each chunk."""
        cfg, steps = self.cfg, self.cfg.stream.steps
        lengths = cfg.stream.knot
        assert lengths is not None
        c, k, window = cfg.stream.block_latents, lengths.latents, lengths.window
        sigmas, n, i, tie, before = rollout.levels(cfg.stream), lengths.reference_start, 0, None, []
        for chunk in range(self.chunks):
            if i + c + k > n:
                n += lengths.reference_jump
            self.ahead.append(n)
            noise, features = inputs(chunk, cfg)
            fresh = noise.reshape(1, steps, c + k, 4, 4, 16)
            heard = audio.encode(weights().dit["audio"]["encoder"], features, context=5, cfg=cfg.dit)
            voice = [(heard.local[:, j], heard.whole[:, j]) for j in range(c + k)]
            blank, ones = jnp.zeros((1, 4, 4, 20)), jnp.ones((1, 4, 4, 4))
            known = [blank] * (c + k)
            if tie is not None:
                known[:k] = [jnp.concatenate([ones, latent], -1) for latent in tie]
            x = [fresh[:, 0, j] for j in range(c + k)]
            for step in range(steps):
                sees = [frame.time for frame in before]
                noisy = [Frame(i + j, chunk, x[j], sigmas[step], known[j], voice[j], sees) for j in range(c + k)]
                x0 = self.call(noisy)
                if step < steps - 1:
                    s = sigmas[step + 1]
                    x = [(1 - s) * x0[:, j] + s * fresh[:, step + 1, j] for j in range(c + k)]
            out = [x0[:, j] for j in range(c + k)]
            if tie is not None:
                out[:k] = [(old + new) / 2 for old, new in zip(tie, out[:k], strict=True)]
            tie = out[c:]
            shown = [jnp.concatenate([ones, latent], -1) for latent in out[:c]]
            times = [frame.time for frame in before] + [i + j for j in range(c)]
            own = [Frame(i + j, chunk, out[j], 0.0, shown[j], voice[j], times) for j in range(c)]
            self.archive += own
            before = [*before, *own][c - window :] if window > c else []
            yield np.stack(out[:c], 1)
            i += c
