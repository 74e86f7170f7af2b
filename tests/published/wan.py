"""Wan text to video and image to video: one bidirectional call."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from avatar_jax.core.config import DitConfig
from avatar_jax.io.convert import table, wan
from avatar_jax.io.convert.published import Tensors
from avatar_jax.models import condition, dit, inpaint
from avatar_jax.nn import rope
from tests.published.case import Case, Outputs, frames_first, frames_last
from tests.published.probe import Probe, probe


def network(case: Case, file: str = "weights", **forms: Any) -> tuple[dict, DitConfig]:
    """The case's transformer through the real converter."""
    tensors = case.published(file)
    cfg = wan.dit_config(case.about["config"], tensors, layer_loop=forms.get("layer_loop", "unroll"))
    weights = table.load(wan.table(cfg), dit.spec(cfg), tensors, origin=str(case.folder / f"{file}.safetensors"))
    return dit.lay_out(weights, cfg), cfg


def grid_of(latent: Any, cfg: DitConfig) -> tuple[int, int]:
    """Token rows and columns of latents [B, F, h, w, C]."""
    return latent.shape[2] // cfg.patch, latent.shape[3] // cfg.patch


def phase_of(times: np.ndarray, latent: Any, cfg: DitConfig) -> rope.Phase:
    """Phases of whole frames at `times`."""
    return rope.grid_phase(times, grid_of(latent, cfg), head_size=cfg.head_size, theta=cfg.rope_theta)


def call(p: dict, x: np.ndarray, t: np.ndarray, text: np.ndarray, cfg: DitConfig, **more: Any) -> np.ndarray:
    """Velocity [C, F, h, w] of x [C, F, h, w] at timesteps t [1 or F] given text rows [n, text_width]."""
    latent, image, known = frames_last(x), more.get("image"), more.get("known")
    sigma = np.broadcast_to(np.asarray(t, np.float32) / 1000.0, (1, latent.shape[1]))
    given = None if known is None else condition.Given(known=jnp.asarray(frames_last(known)))
    cross = dit.remember(p, jnp.asarray(text)[None], None if image is None else jnp.asarray(image), cfg=cfg)
    phase = phase_of(np.arange(latent.shape[1]), latent, cfg)
    v = dit.apply_joint(p, jnp.asarray(latent), jnp.asarray(sigma), phase=phase, cross=cross, given=given, cfg=cfg)
    return frames_first(v)[0]


def within(inside: Probe, p: dict, latent: np.ndarray, cfg: DitConfig) -> Outputs:
    """The embedded patches [B, D, F, rows, columns] and the stream after every block, of the noisy tokens."""
    grid = (latent.shape[1], *grid_of(latent, cfg))
    found: Outputs = {"patch_embed": inside.of(p["patch"]).reshape(len(latent), *grid, -1).transpose(0, 4, 1, 2, 3)}
    return found | {f"block{i}_out": inside.left(i, int(np.prod(grid))) for i in range(cfg.layers)}


def text_to_video(case: Case) -> dict[str, float]:
    """One call, padded tokens with their own timesteps, and a batch of two lengths."""
    (p, cfg), io = network(case), case.tensors()
    tokens = int(np.prod(grid_of(frames_last(io["padded.x"]), cfg)))
    with probe() as inside:
        outputs: Outputs = {"single.out": call(p, io["single.x"], io["single.t"], io["single.context"], cfg)}
    outputs |= {f"single.{name}": value for name, value in within(inside, p, frames_last(io["single.x"]), cfg).items()}
    outputs["single.time_e"] = inside.of(p["time"]["out"])[:, 0]
    block = p["blocks"][0]
    outputs["single.block0_selfattn_out"] = inside.of(block["self"]["o"])
    outputs["single.block0_crossattn_out"] = inside.of(block["cross"]["o"])
    times = io["padded.t"][0, : io["padded.x"].shape[1] * tokens : tokens]  # padding tokens are never seen
    outputs["padded.out"] = call(p, io["padded.x"], times, io["padded.context"], cfg)
    for i in range(2):
        t, x = io["batch.t"][i, :1], io[f"batch.x{i}"]
        outputs[f"batch.out{i}"] = call(p, x, t, io[f"batch.context{i}"], cfg)
    outputs["single.text_ctx"] = condition.embed_text(p, jnp.asarray(io["single.context"])[None], cfg)
    return case.worst(outputs)


def image_to_video(case: Case) -> dict[str, float]:
    """Mask and known latents as channels."""
    (p, cfg), io = network(case), case.tensors()
    known = frames_first(inpaint.first_frame(jnp.asarray(frames_last(io["cond_latents"]))))[0]
    with probe() as inside:
        outputs: Outputs = {"y": known, "out": call(p, io["x"], io["t"], io["context"], cfg, known=known)}
    found = within(inside, p, frames_last(io["x"]), cfg)
    return case.worst(outputs | {name: found[name] for name in ("patch_embed", "block0_out")})


def image_to_video_clip(case: Case) -> dict[str, float]:
    """The same with CLIP features in the cross-attention."""
    (p, cfg), io = network(case), case.tensors()
    outputs: Outputs = {
        "out": call(p, io["x"], io["t"], io["context"], cfg, known=io["y"], image=io["clip_fea"]),
        "img_emb": condition.embed_image(p, jnp.asarray(io["clip_fea"])),
    }
    return case.worst(outputs)


def sound_only(about: dict[str, Any]) -> DitConfig:
    """The configuration of a case that holds nothing but the audio modules."""
    base = {"patch_size": [1, 2, 2], "in_dim": 16, "out_dim": 16, "ffn_dim": 1, "freq_dim": 2, "text_len": 1}
    described = {"model_type": "s2v", "num_layers": 1, "eps": 1e-6, "audio_inject_layers": [0], **base, **about}
    return wan.dit_config(described, Tensors({}), layer_loop="scan")
