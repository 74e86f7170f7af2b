"""Wan2.2-S2V, bidirectional: noisy, reference and motion tokens see each other (live_avatar.md section 16)."""

import contextlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig
from avatar_jax.models import audio, condition, dit
from avatar_jax.nn import rope
from tests.published.case import Case, Outputs, frames_first, frames_last
from tests.published.probe import Probe, probe
from tests.published.wan import grid_of, network, phase_of

CONTEXT = 73  # video frames of motion before the clip: copies of its first sound


def voice_of(p: dict, features: np.ndarray, cfg: DitConfig, context: int = CONTEXT, mask: Any = None) -> audio.Voice:
    """Features [B, layers, width, frames] with copies of their first frame before them."""
    sound = np.moveaxis(features, -1, 1)
    sound = np.concatenate([np.repeat(sound[:, :1], context, 1), sound], 1)
    return audio.encode(p["audio"]["encoder"], jnp.asarray(sound), mask, context=context, cfg=cfg)


def condition_of(
    p: dict, reference: np.ndarray, motion: np.ndarray, cfg: DitConfig, keep: tuple[str, ...] = condition.EVERY
) -> tuple[Any, rope.Phase]:
    """Tokens and phases of reference and motion latents [B, C, F, h, w], the buckets in `keep`."""
    still, past = jnp.asarray(frames_last(reference)), jnp.asarray(frames_last(motion))
    at = phase_of(np.array([condition.REFERENCE_TIME]), still, cfg)
    if not keep:
        return condition.embed_reference(p, still, cfg), at
    motions = condition.motion_phase(grid_of(still, cfg), (still.shape[2], still.shape[3]), cfg, keep)
    return condition.embed_all(p, still, past, cfg, keep), rope.join(at, motions)


def _call(p: dict, cfg: DitConfig, given: dict[str, np.ndarray], text: np.ndarray, variant: dict, context: int):
    motion, last = given["motion_latents"].copy(), variant.get("add_last_motion", 2)
    newest = {2: 0, 1: 1, 0: 3}[last]  # latents that are not to be used
    keep = condition.EVERY if variant.get("drop_mode", "padd") == "padd" else condition.EVERY[2 - last :]
    if newest and keep == condition.EVERY:
        motion[:, :, -newest:] = 0.0
    keep = () if variant.get("drop_motion_frames") else keep
    tokens, at = condition_of(p, given["ref_latents"], motion, cfg, keep)
    latent = frames_last(given["x"])
    pose = given["cond_states"] * (variant.get("cond") != "zero")
    return dit.apply_joint(
        p,
        jnp.asarray(latent),
        jnp.broadcast_to(jnp.asarray(given["t"])[:, None] / 1000.0, latent.shape[:2]),
        tokens,
        phase=phase_of(np.arange(latent.shape[1]), latent, cfg),
        tokens_phase=at,
        voices=(voice_of(p, given["audio_input"], cfg, context),),
        cross=dit.remember(p, jnp.asarray(text), cfg=cfg),
        given=condition.Given(pose=jnp.asarray(frames_last(pose))),
        cfg=cfg,
    )


def _inside(inside: Probe, cfg: DitConfig, tokens: int) -> Outputs:
    """The stream around the first injector and after every block but an injected last one."""
    found: Outputs = {"base.block0_pre_audio": inside.left(0, tokens)}
    for i in range(cfg.layers - 1):
        found[f"base.block{i}_out"] = inside.entered(i + 1, tokens)
    last = cfg.layers - 1
    return found if last in cfg.audio_inject else found | {f"base.block{last}_out": inside.left(last, tokens)}


def speech_to_video(case: Case) -> dict[str, float]:
    """Every variant of the case: poses, motion short, dropped or thinned, a batch of two."""
    (p, cfg), io = network(case), case.tensors()
    outputs: Outputs = {}
    inside = Probe()
    for name, variant in case.about["variants"].items():
        source = "batch2" if variant.get("batch") else "in"
        given = {key.removeprefix(f"{source}."): value for key, value in io.items() if key.startswith(f"{source}.")}
        if variant.get("motion") == "short":
            given["motion_latents"] = given["motion_latents_short"]
        rows = [io[key] for key in sorted(io) if key.startswith(f"{source}.context")]
        text = np.stack([np.pad(row, ((0, cfg.text_tokens - len(row)), (0, 0))) for row in rows])
        context = variant.get("motion_frames", (CONTEXT,))[0]
        with probe() if name == "base" else contextlib.nullcontext() as found:
            outputs[f"{name}.out"] = frames_first(_call(p, cfg, given, text, variant, context))
        inside = found or inside
    outputs |= _inside(inside, cfg, io["base.block0_out"].shape[1])
    still = jnp.asarray(frames_last(io["in.ref_latents"]))
    whole = rope.join(
        phase_of(np.arange(io["in.x"].shape[2]), still, cfg),
        condition_of(p, io["in.ref_latents"], io["in.motion_latents"], cfg)[1],
    )
    outputs |= {"base.rope_cos": whole.cos, "base.rope_sin": whole.sin}
    outputs["base.frame_packer_tokens"] = condition.embed_motion(
        p, jnp.asarray(frames_last(io["in.motion_latents"])), cfg
    )
    voice = voice_of(p, io["in.audio_input"], cfg)
    outputs |= {"base.merged_audio_emb": voice.local, "base.audio_emb_global": voice.whole[:, :, None]}
    return case.worst(outputs)
