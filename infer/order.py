"""What a command is asked for, checked before any work: checkpoint, prompt, portrait, figures."""

from pathlib import Path

import numpy as np

from avatar_jax.core import check
from avatar_jax.core import config as configs
from avatar_jax.io import checkpoint, video
from avatar_jax.io.errors import InputError
from avatar_jax.io.image import fit_portrait, load_portrait
from infer import door

AREA_CELL = 64  # pixels: the coarsest motion token covers so many, so nothing of the picture is left out


def check_checkpoint(path: str | None, cfg: configs.PictureConfig) -> Path:
    """The folder of weights. Raises InputError if one is missing or for another configuration."""
    folder = Path(path) if path else door.embedded(cfg.name)
    if not folder.is_dir():
        reason = "no such folder" if path else f"config {cfg.name!r} comes without weights"
        raise InputError(f"--checkpoint={path or ''}: {reason}; name one that training or python -m infer.convert made")
    checkpoint.verify(folder, cfg, origin=f"--checkpoint={folder}")
    return folder


def check_prompt(prompt: str | None, cfg: configs.PictureConfig) -> str | None:
    """The prompt, there where the model reads one and nowhere else. Raises InputError."""
    if cfg.dit.text_width and not (prompt or "").strip():
        raise InputError("--prompt is missing; say what the video shows, as in --prompt='A woman talks to the camera'")
    if prompt and not cfg.dit.text_width:
        raise InputError(f"--prompt: the model of config {cfg.name!r} reads no text; leave it out")
    return prompt


def check_portrait(path: str | Path, cfg: configs.Config) -> tuple[configs.Config, np.ndarray]:
    """The run at the size that the portrait gives it, and the portrait uint8 [H, W, 3]. Raises InputError."""
    if cfg.video.area:
        cfg = configs.sized(cfg, *fit_portrait(path, area=cfg.video.area, cell=AREA_CELL))
    cfg = check.validate(cfg)
    return cfg, load_portrait(path, height=cfg.video.height, width=cfg.video.width)


def check_output(path: str | None, *, overwrite: bool) -> Path:
    """The video to write, absolute. Raises InputError if it, or the figures beside it, cannot be written."""
    if not path:
        raise InputError("--output is missing; name the video to write, as in --output=talk.mp4")
    output = video.check_output(path, overwrite=overwrite)
    figures = output.with_suffix(".json")
    if figures.is_dir() or (figures.exists() and not overwrite):
        raise InputError(f"{figures}: exists already; choose another --output or pass --overwrite")
    return output
