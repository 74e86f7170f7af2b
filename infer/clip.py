"""A prompt to a clip: what `infer.stream` does with a text-to-video configuration."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from avatar_jax.core import check, fields
from avatar_jax.core import config as configs
from avatar_jax.io.errors import InputError
from avatar_jax.io.video import VideoWriter
from infer import door, order, provenance, summary

FLAGS = flags.FLAGS


def check_request(cfg: configs.ClipConfig) -> tuple[Path, Path, list[str]]:
    """Reads the flags and checks them: the output, the checkpoint, the prompts. Raises ValueError."""
    check.validate(cfg)
    for flag in ("image", "audio", "speakers", "signals", "drive"):
        if getattr(FLAGS, flag) is not None:
            raise InputError(f"--{flag}: config {cfg.name!r} makes a clip from a prompt alone; leave it out")
    provenance.check()
    output = order.check_output(FLAGS.output, overwrite=FLAGS.overwrite)
    checkpoint, prompt = order.check_checkpoint(FLAGS.checkpoint, cfg), order.check_prompt(FLAGS.prompt, cfg)
    guided = cfg.sample.guidance != 1.0
    return output, checkpoint, [prompt or "", *([FLAGS.negative_prompt] if guided else [])]


def draw(checkpoint: Path, prompts: list[str], cfg: configs.ClipConfig) -> Any:
    """Clean latents [1, F, h, w, C]."""
    import jax
    import jax.numpy as jnp
    from tqdm import tqdm

    from avatar_jax.io import checkpoint as checkpoints
    from avatar_jax.models import dit
    from avatar_jax.stream import clip, prompt

    rows = prompt.encode(checkpoint, prompts, text=cfg.text, length=cfg.dit.text_tokens)
    p = jax.tree.map(jnp.asarray, dit.lay_out(checkpoints.load(checkpoint, "dit", cfg.dit), cfg.dit))
    crosses = tuple(prompt.remember(p, row, cfg=cfg.dit) for row in rows)
    shape = (1, cfg.sample.latents, *cfg.latent_size, cfg.dit.latent_channels)
    noise = x = jax.random.normal(jax.random.key(cfg.sample.seed), shape)
    steps = clip.sample(p, crosses, noise, cfg=cfg)
    for x in tqdm(steps, total=cfg.sample.steps, unit="step", disable=not sys.stderr.isatty(), leave=False):
        x.block_until_ready()
    return x


def show(latents: Any, output: Path, checkpoint: Path, cfg: configs.ClipConfig) -> int:
    """Decodes into the video, in memory that does not grow with the clip; returns its frames."""
    import jax
    import jax.numpy as jnp

    from avatar_jax.io import checkpoint as checkpoints
    from avatar_jax.models import vae
    from avatar_jax.stream import clip

    weights = jax.tree.map(jnp.asarray, checkpoints.load(checkpoint, "vae", cfg.vae))
    p = vae.lay_out(weights, jax.default_backend())
    stamp = provenance.make_stamp(cfg.video.height, cfg.video.width, 1)
    video, writing = cfg.video, {"overwrite": FLAGS.overwrite, "vcodec": FLAGS.vcodec}
    with VideoWriter(output, height=video.height, width=video.width, fps=video.fps, audio_hz=None, **writing) as writer:
        for frames in clip.decode(p, latents, cfg=cfg):
            shown = stamp(frames, writer.video_frames)
            writer.write(shown, shown[:0, 0, 0, 0].astype("float32"))
        return writer.video_frames


def main() -> None:
    """Checks, generates, reports."""
    start, cfg = time.perf_counter(), FLAGS.config
    output, checkpoint, prompts = check_request(cfg)
    door.start_jax(FLAGS.compile_cache)
    latents = draw(checkpoint, prompts, cfg)
    drawn = time.perf_counter()
    frames = show(latents, output, checkpoint, cfg)
    figures = {
        "video_frames": frames,
        "seconds": round(frames / cfg.video.fps, 3),
        "denoise_s": round(drawn - start, 2),
        "decode_s": round(time.perf_counter() - drawn, 2),
        "prompts": prompts,
        "provenance": provenance.sign(output),
        "conditions": summary.conditions(cfg, checkpoint, (cfg.video.height, cfg.video.width), steps=cfg.sample.steps),
        "config": json.loads(fields.to_json(cfg)),
    }
    summary.write_json(output.with_suffix(".json"), figures)
    spent = f"{figures['denoise_s']} s to load, compile and denoise, {figures['decode_s']} s to decode"
    size = f"{frames} frames of {cfg.video.width} x {cfg.video.height}"
    sys.stdout.write(f"{output}\n  video        {figures['seconds']:.2f} s, {size}\n  time         {spent}\n")
