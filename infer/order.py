"""What a command is asked for, checked before any work: checkpoint, prompt, portrait, speakers, figures."""

from pathlib import Path

import numpy as np

from avatar_jax.core import check
from avatar_jax.core import config as configs
from avatar_jax.io import checkpoint, pictures, video
from avatar_jax.io.errors import InputError, open_input
from avatar_jax.io.image import fit_portrait, load_mask, load_portrait
from infer import door, drive

AREA_CELL = 64  # pixels: the coarsest motion token covers so many, so nothing of the picture is left out
Signals = dict[str, np.ndarray]  # by name, float32 [T, width]
HALVES = ("left", "right")  # of the picture, as names of masks


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


def _mask(name: str, cfg: configs.Config) -> np.ndarray:
    height, width = cfg.video.height, cfg.video.width
    if name not in HALVES:
        return load_mask(name, height=height, width=width)
    left = np.broadcast_to((np.arange(width) + 0.5 < width / 2).astype(np.float32), (height, width))
    return left if name == "left" else 1.0 - left


def check_speakers(names: list[str] | None, recordings: int, cfg: configs.Config) -> np.ndarray | None:
    """What of the picture each recording drives, [recordings, H, W] in 0..1; None for all of it. Raises InputError.

    Args:
      names: one a recording: "left" or "right" half as seen, or a picture that is white where the speaker is.
      recordings: how many there are.
      cfg: the run, at the portrait's size.
    """
    if names is None:
        if recordings > 1:
            wanted = f"say what each of the {recordings} recordings drives, as in --speakers=left,right"
            raise InputError(f"--speakers is missing; {wanted} or --speakers=mask_a.png,mask_b.png")
        return None
    if len(names) != recordings:
        given = f"--speakers={','.join(names)}"
        raise InputError(f"{given}: names {len(names)} for {recordings} recordings; give one for each --audio")
    return np.stack([_mask(name, cfg) for name in names])


def _arrays(path: str) -> dict[str, np.ndarray]:
    with open_input(path, kind="signals") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # a damaged archive raises one of a dozen types; a plain .npy has no `files`
            raise InputError(f"{path}: is not an .npz of arrays; write it with numpy.savez") from error


def _signals(path: str, cfg: configs.Config) -> Signals:
    widths = {signal.name: signal.width for signal in cfg.dit.signals}
    found, known = _arrays(path), ", ".join(widths)
    for name, rows in found.items():
        if name not in widths:
            raise InputError(f"{path}: holds {name!r}, which is no signal of config {cfg.name!r}; it reads {known}")
        if rows.ndim != 2 or rows.shape[1] != widths[name] or rows.dtype.kind not in "fiu":
            shape = f"{rows.dtype} {list(rows.shape)}"
            raise InputError(f"{path}: {name!r} is {shape}; it must be numbers [video frames, {widths[name]}]")
        if np.isinf(rows.astype(np.float32)).any():
            raise InputError(f"{path}: {name!r} has an infinite number; a frame without the signal is a row of NaN")
    if not found:
        raise InputError(f"{path}: holds no signal; it may hold {known}")
    return {name: rows.astype(np.float32) for name, rows in found.items()}


def check_signals(paths: list[str], recordings: int, cfg: configs.Config) -> list[Signals]:
    """Driving signals of the first speakers, one file each; a row with NaN is a frame without. Raises InputError."""
    if paths and not cfg.dit.signals:
        raise InputError(f"--signals: the model of config {cfg.name!r} reads none; leave it out")
    if len(paths) > recordings:
        raise InputError(
            f"--signals: {len(paths)} files for {recordings} recordings; give at most one for each --audio"
        )
    return [_signals(path, cfg) for path in paths]


def check_drive(paths: list[str], recordings: int, cfg: configs.Config) -> list[Path]:
    """Driving videos of the first speakers. Raises InputError; what is drawn in them cannot be checked."""
    if paths and not drive.visible(cfg):
        raise InputError(f"--drive: the model of config {cfg.name!r} reads no signal that a video shows; leave it out")
    if len(paths) > recordings:
        raise InputError(f"--drive: {len(paths)} videos for {recordings} recordings; give at most one for each --audio")
    for path in paths:
        with pictures.open_frames(path, fps=cfg.video.fps):
            pass
    return [Path(path) for path in paths]


def check_output(path: str | None, *, overwrite: bool) -> Path:
    """The video to write, absolute. Raises InputError if it, or the figures beside it, cannot be written."""
    if not path:
        raise InputError("--output is missing; name the video to write, as in --output=talk.mp4")
    output = video.check_output(path, overwrite=overwrite)
    figures = output.with_suffix(".json")
    if figures.is_dir() or (figures.exists() and not overwrite):
        raise InputError(f"{figures}: exists already; choose another --output or pass --overwrite")
    return output
