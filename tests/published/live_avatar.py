"""Live Avatar's causal form: prefill, same-timestep ring memories, a rolling reference, a second prefill."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig
from avatar_jax.diffusion import flow, schedule
from avatar_jax.models import condition, dit
from avatar_jax.nn import kv, rope
from tests.published.case import Case, Outputs, frames_first, frames_last
from tests.published.probe import probe
from tests.published.s2v import condition_of, voice_of
from tests.published.wan import grid_of, network, phase_of

PROBED = "single_online"  # the run whose intermediates the case holds


@functools.lru_cache
def program(cfg: DitConfig):
    """One step of one block, compiled."""
    return jax.jit(lambda p, *args, **kwargs: dit.apply_block(p, *args, **kwargs, cfg=cfg))


def rolled(block_latent: int, distance: int) -> int:
    """Rotary time of the reference for a block that starts at latent `block_latent` (section 6.4)."""
    return max(block_latent + distance, condition.REFERENCE_TIME)


class Stream:
    """The published schedule over `dit.apply_block`: one memory a denoising step."""

    def __init__(self, case: Case, text: np.ndarray, *, memories: int, window: int, layer_loop: str = "unroll"):
        self.p, self.cfg = network(case, layer_loop=layer_loop)
        self.window, self.memories = window, memories
        self.cross = dit.remember(self.p, jnp.asarray(text)[None], cfg=self.cfg)
        self.caches: list[Any] = []

    def prefill(self, reference: np.ndarray, motion: np.ndarray, *, dropped: bool = False) -> Any:
        """Fills the condition part of every memory, rings untouched. Returns its keys and values."""
        tokens, at = condition_of(self.p, reference, motion, self.cfg)
        self.motion_at = rope.Phase(*(side[tokens_of(reference) :] for side in at))
        if dropped:  # as published: nothing but the type, and zero rotary factors here, but not when the keys are read
            f = tokens_of(reference)
            tokens = tokens.at[:, f:].set(self.p["type"][condition.MOTION])
            at = rope.Phase(*(np.concatenate([side[:f], 0.0 * side[f:]]) for side in at))
        held = dit.prefill(self.p, tokens, at, self.cross, cfg=self.cfg)
        if self.caches:
            self.caches = [
                tuple(kv.refill(layer, k, v) for layer, (k, v) in zip(cache, held, strict=True))
                for cache in self.caches
            ]
        else:
            slots = self.window * 3 * tokens_of(reference)
            self.caches = [tuple(kv.empty(k, v, slots) for k, v in held) for _ in range(self.memories)]
        return held

    def step(
        self,
        x: np.ndarray,
        memory: int,
        t: float,
        block: int,
        distance: int,
        voices: Any,
        pose: np.ndarray,
        filled: int | None = None,
    ) -> np.ndarray:
        """Velocity [C, F, h, w] of one call; `filled`: blocks in the ring before this one, if not all since block 0."""
        latent = frames_last(x)
        frames, rows, columns = latent.shape[1], *grid_of(latent, self.cfg)
        start, tokens = block * frames, frames * rows * columns
        ahead = phase_of(np.array([rolled(start, distance)]), latent, self.cfg)
        self.caches[memory], v = program(self.cfg)(
            self.p,
            self.caches[memory],
            jnp.asarray(latent),
            dit.level(self.p, np.float32(t) / np.float32(dit.TIMESTEPS), cfg=self.cfg),
            phase=phase_of(start + np.arange(frames), latent, self.cfg),
            reference_phase=rope.join(ahead, self.motion_at),
            slots=np.array([[block % self.window]], np.int32),
            filled=np.int32(min((block if filled is None else filled) + 1, self.window) * tokens),
            heard=dit.hear(self.p, voices, cfg=self.cfg),
            cross=self.cross,
            given=condition.Given(pose=jnp.asarray(frames_last(pose))),
        )
        return frames_first(v)[0]


def tokens_of(latent: np.ndarray) -> int:
    """Tokens of one latent frame [B, C, F, h, w]."""
    return latent.shape[-1] * latent.shape[-2] // 4


class Probed(Stream):
    """Also records one call: block 5, step 1, the ring already rolled."""

    probed: Outputs

    def step(
        self, x: np.ndarray, memory: int, t: float, block: int, distance: int, voices: Any, *rest: Any, **more: Any
    ):
        """As the stream's; one call runs unrolled and not compiled."""
        if (block, memory) != (5, 1):
            return super().step(x, memory, t, block, distance, voices, *rest, **more)
        with probe() as inside:
            v = super().step(x, memory, t, block, distance, voices, *rest, **more)
        latent = frames_last(x)
        start, tokens = block * latent.shape[1], latent.shape[1] * tokens_of(x)
        noisy = phase_of(start + np.arange(latent.shape[1]), latent, self.cfg)
        seen = rope.join(phase_of(np.array([rolled(start, distance)]), latent, self.cfg), self.motion_at)
        self.probed = {
            "in": x,
            "flow": v,
            "block0_selfattn_out": inside.of(self.p["blocks"][0]["self"]["o"]),
            "audio_emb_global": voices[0].whole[:, :, None],
            "merged_audio_emb": voices[0].local,
            "rope_noisy_cos": noisy.cos,
            "rope_noisy_sin": noisy.sin,
            "rope_cond_cos": seen.cos,
            "rope_cond_sin": seen.sin,
        }
        for i in range(self.cfg.layers):
            self.probed[f"block{i}_preaudio"] = inside.left(i, tokens)
            self.probed[f"block{i}_out"] = inside.left(i, tokens)
            if i in self.cfg.audio_inject:
                self.probed[f"block{i}_out"] = inside.entered(i + 1, tokens)
        return v


def roll(case: Case, io: dict[str, np.ndarray], kind: type[Stream] = Stream) -> tuple[Outputs, Stream]:
    """A whole run from noise, nothing but the given noise and conditions entering."""
    about = case.about["pipeline"]
    steps, length = about["steps"], about["num_frames_per_block"]
    levels = schedule.published(steps, about["sampler_shift"])
    stream = kind(case, io["context"], memories=steps, window=about["blocks_per_clip"])
    outputs: Outputs = {"sigmas": levels, "timesteps": levels[:-1] * np.float32(dit.TIMESTEPS)}

    def prefill(name: str, reference: np.ndarray):
        held = stream.prefill(reference, io[f"{name}.motion_latents"])
        for layer in (0, len(held) - 1):
            k, v = held[layer]
            outputs.update({f"{name}.cond_k.layer{layer}": k[0], f"{name}.cond_v.layer{layer}": v[0]})

    prefill("prefill0", io["prefill0.ref_latents"])
    ins, flows, cleans = [], [], []
    for block in range(about["blocks"]):
        clip, inside = divmod(block, about["blocks_per_clip"])
        if block == about["blocks_per_clip"] and "prefill1.motion_latents" in io:
            outputs["prefill1.ref_latents"] = cleans[0][None, :, :1]  # the adaptive sink: frame 0 of block 0
            prefill("prefill1", cleans[0][None, :, :1])
        frames = slice(inside * length, (inside + 1) * length)
        x, pose = io["noise"][clip][:, frames], io["cond_states"][clip][:, frames]
        sound = io["audio"][..., 4 * length * block : 4 * length * (block + 1)]
        voices = (voice_of(stream.p, sound, stream.cfg),)
        for k in range(steps):
            ins.append(x)
            t = levels[k] * dit.TIMESTEPS
            flows.append(stream.step(x, k, t, block, int(io["relative_dist"][block, k]), voices, pose))
            x = np.asarray(flow.euler(jnp.asarray(x), flows[-1], levels[k], levels[k + 1]))
        cleans.append(x)
    shape = (about["blocks"], steps)
    outputs |= {"step_in": np.reshape(ins, (*shape, *ins[0].shape)), "clean": np.stack(cleans)}
    outputs["step_flow"] = np.reshape(flows, (*shape, *flows[0].shape))
    for k in (0, steps - 1):
        for layer in (0, len(stream.caches[k]) - 1):
            ring = stream.caches[k][layer]
            held = ring.reference_k.shape[1]
            outputs[f"final_ring_k.step{k}.layer{layer}"] = ring.k[0, held:]
            outputs[f"final_ring_v.step{k}.layer{layer}"] = ring.v[0, held:]
    return outputs, stream


def variants(case: Case) -> dict[str, float]:
    """Motion zeroed as published, and two speakers with masks."""
    io, outputs = case.tensors("variants"), {}
    frames = io["var.x"].shape[1]
    for name in ("dropmotion", "multiactor"):
        stream = Stream(case, io["var.context"], memories=1, window=4)
        held = stream.prefill(io["var.ref_latents"], io["var.motion_latents"], dropped=name == "dropmotion")
        voices = (voice_of(stream.p, io["var.audio"][:1], stream.cfg),)
        if name == "multiactor":
            masks = io["var.mask"][:, :frames].reshape(len(io["var.mask"]), 1, frames, -1)
            voices = tuple(
                voice_of(stream.p, io["var.audio"][i : i + 1], stream.cfg, mask=jnp.asarray(mask))
                for i, mask in enumerate(masks)
            )
        last = len(held) - 1
        outputs[f"{name}.cond_k.layer{last}_exactrope"] = held[last][0][0]
        t, pose = float(io["var.t"][0, 0]), io["var.cond_states"]
        outputs[f"{name}.flow_exactrope"] = stream.step(io["var.x"], 0, t, 0, condition.REFERENCE_TIME, voices, pose)
    return case.worst(outputs, "variants")


def causal_block(case: Case) -> dict[str, float]:
    """Every run of the case against its exact-rotary outputs, and the variants."""
    worst = variants(case)
    runs = [path.stem.removesuffix("_exactrope") for path in sorted(case.folder.glob("*_exactrope.safetensors"))]
    assert runs, f"{case.folder}: no run to compare with"
    for name in runs:
        io, exact = case.tensors(name), case.tensors(f"{name}_exactrope")
        probed = name == PROBED and (case.folder / "probe.safetensors").is_file()
        outputs, stream = roll(case, io, Probed if probed else Stream)
        if isinstance(stream, Probed):
            worst |= case.worst({f"probe.{key}": ours for key, ours in stream.probed.items()}, "probe")
        worst |= case.worst({key: ours for key, ours in outputs.items() if key in exact}, f"{name}_exactrope")
        worst |= case.worst({key: outputs[key] for key in ("sigmas", "timesteps")}, name)
    return worst
