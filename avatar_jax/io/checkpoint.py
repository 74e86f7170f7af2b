"""A run's networks in a folder: safetensors files, as training writes them, or parts that `infer.convert` made.

`verify` needs no JAX, so a command can refuse a folder before it starts.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from avatar_jax.core import config as configs
from avatar_jax.io.errors import InputError

TOKENIZER = "spiece.model"
_RUNTIME = ("layer_loop", "compute_dtype", "attention", "remat")  # how a network runs, not what it is
Part = configs.DitConfig | configs.VaeConfig | configs.Umt5Config | configs.Wav2Vec2Config


def parts(cfg: configs.PictureConfig) -> Iterator[tuple[str, Part]]:
    """Name and configuration of every network that a run needs."""
    yield "dit", cfg.dit
    yield "vae", cfg.vae
    text = getattr(cfg, "text", None)
    if text is not None:
        yield "umt5", text
    if isinstance(cfg, configs.Config) and isinstance(cfg.sound, configs.Wav2Vec2Config):
        yield "wav2vec", cfg.sound


def _compare(described: pathlib.Path, name: str, part: Part) -> None:
    """InputError unless the converted network is the one that the configuration describes."""
    young = {
        field.name: field.default for field in dataclasses.fields(part) if field.default is not dataclasses.MISSING
    }
    try:
        found = json.loads(json.dumps(young)) | json.loads(described.read_text())  # written before those fields were
    except (OSError, ValueError) as error:
        raise InputError(f"{described}: not a readable JSON file; convert the checkpoint again") from error
    for field, wanted in json.loads(json.dumps(dataclasses.asdict(part))).items():
        if field not in _RUNTIME and found.get(field) != wanted:
            section = {"umt5": "text", "wav2vec": "sound"}.get(name, name)
            raise InputError(
                f"{described}: a checkpoint for another configuration: {field}={found.get(field)!r}, "
                f"where config.{section}.{field}={wanted!r}; choose the --config it was made for"
            )


def verify(folder: pathlib.Path, cfg: configs.PictureConfig, *, origin: str) -> None:
    """Checks, without reading a weight, that a folder holds what `cfg` needs.

    Args:
      folder: the checkpoint.
      cfg: the run.
      origin: how the folder was named, for the message.

    Raises:
      InputError: a part is missing or for another configuration.
    """
    for name, part in parts(cfg):
        file, converted = folder / f"{name}.safetensors", folder / name
        if converted.is_dir():
            _compare(folder / f"{name}.json", name, part)
        elif not file.is_file():
            wanted = "name a folder that training or python -m infer.convert made"
            raise InputError(f"{origin}: holds neither {file.name} nor {name}/; {wanted}")
    if getattr(cfg, "text", None) is not None and not (folder / TOKENIZER).is_file():
        raise InputError(f"{origin}: {TOKENIZER} is missing; copy it from google/umt5-xxl of the published folder")


def load(folder: pathlib.Path, name: str, part: Part) -> dict[str, Any]:
    """The weights of one part. Raises ValueError if they do not fit its configuration."""
    from avatar_jax.io import weights
    from avatar_jax.io.convert import store, wan_vae
    from avatar_jax.models import dit, umt5, vae, wav2vec

    spec = {"dit": dit.spec, "vae": vae.spec, "umt5": umt5.spec, "wav2vec": wav2vec.spec}[name](part)  # type: ignore[operator]
    if not (folder / name).is_dir():
        return weights.load(folder / f"{name}.safetensors", spec)
    if isinstance(part, configs.VaeConfig):
        return store.load(folder / name, wan_vae.spec(part)) | {"stats": wan_vae.statistics()}
    return store.load(folder / name, spec)
