"""Clips that a run does not learn from, drawn with every checkpoint: what it looks like, how good it is, when to stop.

With `--watch=FOLDER` a run streams the first clips of that folder (made like `--latents`, from other videos) as its
configuration streams, decodes them, and tells its journal

    watch_dynamics     how much they move, a share of what the clips themselves do
    watch_sync         of drawn faces: r of the mouth's opening with the clips' own
    watch_identity     of drawn faces: share of frames that are nearest to their own portrait
    watch_score        of drawn faces: sync x identity x dynamics (at most 1)

with the frames as a moving picture, `watch.gif` and in TensorBoard: below what was drawn, above what was filmed. The
weights of the best score are kept in `best.safetensors`; with `config.train.distill.patience` a run ends when for so
many steps none was better, and leaves those.
"""

import functools
import io
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh
from PIL import Image

from avatar_jax.core import config as configs
from avatar_jax.data import latents
from avatar_jax.io import checkpoint
from avatar_jax.io import weights as weight_files
from avatar_jax.metrics import identity, motion, mouth, sync
from avatar_jax.models import mel, vae
from avatar_jax.stream import engine
from avatar_jax.stream.state import BlockInput
from infer import door
from train import mesh as meshes
from train import windows
from train.journal import Look

FLAGS = flags.FLAGS
CLIPS = 8
SHOWN = 4  # of them in the moving picture
BEST = "best.safetensors"


class View(NamedTuple):
    """What is watched."""

    clips: pathlib.Path  # a folder of latents that are not learned from
    networks: pathlib.Path  # a folder with their VAE


def define() -> None:
    """The flags."""
    flags.DEFINE_string("watch", "", "Folder of clips that are not learned from: drawn and measured at checkpoints.")
    flags.DEFINE_string(
        "checkpoint", None, "Folder of the VAE that decodes what is watched. Default: the embedded one."
    )


def asked(cfg: configs.TrainingConfig, patience: int = 0) -> View | None:
    """What the flags ask to be watched, or None.

    Raises:
      ValueError: patience without clips, or with faces that nothing here can measure.
    """
    if patience and not (FLAGS.watch and cfg.video.drawn):
        wanted = "--watch=FOLDER" if cfg.video.drawn else "config.video.drawn, other faces are not measured here"
        raise ValueError(f"config.train.distill.patience={patience}: needs {wanted}; or set it to 0")
    networks = pathlib.Path(FLAGS.checkpoint) if FLAGS.checkpoint else door.embedded(cfg.name)
    return View(pathlib.Path(FLAGS.watch), networks) if FLAGS.watch else None


def stream(p: dict, batch: windows.Batch, key: jax.Array, *, cfg: configs.TrainingConfig) -> jax.Array:
    """Latents [B, F, h, w, C] of a window's portrait and sound, block by block as a live stream draws them."""
    blocks, size, drawn = cfg.train.dit_blocks, len(batch["latent"]), engine.kind(cfg)
    shape = (blocks, size, cfg.stream.noise_latents, *cfg.latent_size, cfg.vae.latent_channels)
    held, cross = windows.remembered(p, batch, cfg)

    def draw(past: Any, block: BlockInput) -> tuple[Any, jax.Array]:
        return drawn.denoise(p, past, block, cross, cfg=cfg)

    said = windows.stacked(windows.speakers_of(batch, cfg), jax.random.normal(key, shape), cfg)
    latents = jax.lax.scan(draw, drawn.begin(p, held, cfg=cfg), said)[1]
    return jnp.concatenate(list(latents), 1)


def gif(frames: np.ndarray, fps: int) -> bytes:
    """uint8 frames [T, H, W, 3] as a GIF that goes on forever."""
    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
    return file.getvalue()


def scores(drawn: np.ndarray, filmed: np.ndarray, portraits: np.ndarray, cfg: configs.TrainingConfig) -> dict:
    """The scalars of clips, uint8 [B, T, H, W, 3] each; portraits: uint8 [B, H, W, 3]."""
    pairs = list(zip(drawn, filmed, strict=True))
    moved = [[motion.dynamic_degree(clip, fps=cfg.video.fps) for clip in pair] for pair in pairs]
    found = {"watch_dynamics": float(np.mean([ours / max(theirs, 1e-6) for ours, theirs in moved]))}
    if cfg.video.drawn:
        openings = [[mouth.read_frames(clip).opening for clip in pair] for pair in pairs]
        own = [identity.rank_of_own(clip, portraits[i], np.delete(portraits, i, 0)) for i, clip in enumerate(drawn)]
        found["watch_sync"] = float(np.mean([sync.pearson(*pair) for pair in openings]))
        found["watch_identity"] = float(np.mean(np.concatenate(own) == 0))
        kept = min(found["watch_dynamics"], 1.0)
        found["watch_score"] = max(found["watch_sync"], 0.0) * found["watch_identity"] * kept
    return found


class Watch:
    """The clips, and the best that was drawn of them so far.

    Args:
      view: the clips.
      weights: of a state, what to keep when it is the best; and `network`, of that, as the transformer runs.
      workdir: where `best.safetensors` and `watch.gif` go.
      mesh: on which the state lies.
      cfg: the run.
      patience: steps without a better score after which it is `over`; 0: never.

    Raises:
      ValueError: no clips in the folder, or no VAE of this configuration.
    """

    def __init__(
        self,
        view: View,
        weights: Callable[[Any], dict],
        network: Callable[[dict], dict],
        *,
        workdir: pathlib.Path,
        mesh: Mesh,
        cfg: configs.TrainingConfig,
        patience: int = 0,
    ):
        self._weights, self._workdir, self._cfg, self._patience = weights, workdir, cfg, patience
        silence = mel.silence(cfg.sound) if isinstance(cfg.sound, configs.MelConfig) else None
        data: Any = latents.window_dataset(view.clips, cfg, silence=silence, batch=CLIPS)
        self._batch = data[0]
        self._mesh, key = mesh, jax.random.key(cfg.data.seed)

        def draw(moved: dict, batch: windows.Batch) -> jax.Array:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return stream(network(moved), batch, key, cfg=cfg)

        self._draw = jax.jit(draw, out_shardings=meshes.everywhere(mesh))
        self._decode = jax.jit(functools.partial(self._pixels, checkpoint.load(view.networks, "vae", cfg.vae)))
        reference, latent = (jnp.asarray(self._batch[name], jnp.float32) for name in ("reference", "latent"))
        self._portraits = np.asarray(self._decode(reference, reference[:, :0]))[:, 0]
        length = cfg.train.dit_blocks * cfg.stream.block_latents
        self._filmed = np.asarray(self._decode(reference, latent[:, :length]))[:, 1:]

    def _pixels(self, decoder: dict, reference: jax.Array, latent: jax.Array) -> jax.Array:
        """The portrait and the frames after it, uint8 [B, 1 + T, H, W, 3]."""
        return vae.to_uint8(vae.decode(decoder, jnp.concatenate([reference, latent], 1), cfg=self._cfg.vae))

    def look(self, state: Any, step: int) -> Look:
        """Draws and measures the clips; keeps the weights if they are the best so far. Every process takes part."""
        moved = self._weights(state)
        x = jnp.asarray(np.asarray(self._draw(moved, meshes.copied(self._batch, self._mesh))))
        reference = jnp.asarray(self._batch["reference"], jnp.float32)
        drawn = np.asarray(self._decode(reference, x))[:, 1:]
        found = scores(drawn, self._filmed, self._portraits, self._cfg)
        better = found.get("watch_score", 0.0) > self.best()["score"]
        kept = meshes.whole(moved) if better else None
        both = np.concatenate([self._filmed[:SHOWN], drawn[:SHOWN]], 2)
        frames = np.concatenate(list(both), 2)
        picture = gif(frames, self._cfg.video.fps)
        if jax.process_index() == 0:
            self._write("watch.gif", picture)
            if kept is not None:
                weight_files.save(self._workdir / BEST, kept)
                self._write("best.json", json.dumps({"step": step, "score": found["watch_score"]}).encode())
        return Look(found, picture, frames.shape[1:3])

    def _write(self, name: str, content: bytes) -> None:
        part = self._workdir / f"{name}.part"
        part.write_bytes(content)
        os.replace(part, self._workdir / name)

    def best(self) -> dict[str, float]:
        """Step and score of the best look; step 0 and score 0 before there is one."""
        path = self._workdir / "best.json"
        return json.loads(path.read_text()) if path.exists() else {"step": 0, "score": 0.0}

    def over(self, step: int) -> bool:
        """Whether for `patience` steps nothing was better."""
        return self._patience > 0 and step - self.best()["step"] >= self._patience
