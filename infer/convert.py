"""Published weights, as downloaded, to checkpoints of this project.

    python -m infer.convert --source=Wan2.2-S2V-14B --lora=liveavatar.safetensors --output=weights/live_avatar

Finds what the folder holds: the transformer (safetensors shards with `config.json`), `Wan2.1_VAE.pth`,
`models_t5_umt5-xxl-enc-bf16.pth`, a wav2vec2 folder. Checks every name and shape before writing anything, prints the
coverage, and goes on where a stopped run left off. Memory stays a few times the largest tensor.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np
from absl import flags

from avatar_jax.core import spec as specs
from avatar_jax.io.convert import store, table, umt5, wan, wan_vae, wav2vec
from avatar_jax.io.convert.lora import Merged
from avatar_jax.io.convert.published import Published, open_published
from avatar_jax.io.errors import InputError
from infer import door

FLAGS = flags.FLAGS
LORA_ALPHA = 64.0  # Live Avatar's, for rank 128 (live_avatar.md section 1.10)
VAE_FILE, TEXT_FILE = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"


@dataclasses.dataclass(frozen=True)
class Part:
    """One network of a published folder, ready to convert."""

    name: str
    origin: pathlib.Path
    described: Any  # its configuration
    spec: specs.Spec
    table: table.Table
    published: Published


def define() -> None:
    """The flags."""
    flags.DEFINE_string("source", None, "Folder as downloaded.")
    flags.DEFINE_string("output", None, "Folder to make.")
    flags.DEFINE_string("lora", None, "LoRA file to merge into the transformer.")
    flags.DEFINE_float("lora_alpha", LORA_ALPHA, "Numerator of the LoRA's scale.")
    flags.DEFINE_enum("dtype", "stored", ["stored", "float32", "float16"], "Of the arrays written.")


def _described(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error}); download it again") from error


def transformer(folder: pathlib.Path, lora: pathlib.Path | None, alpha: float) -> Part:
    """The Wan transformer of a folder, the LoRA merged in."""
    from avatar_jax.models import dit

    published = open_published(folder)
    published = published if lora is None else Merged(published, open_published(lora), alpha)
    try:
        cfg = wan.dit_config(_described(folder / "config.json"), published, layer_loop="scan")
    except KeyError as error:
        raise InputError(f"{folder / 'config.json'}: {error} is missing; download it again") from error
    return Part("dit", folder, cfg, dit.spec(cfg), wan.table(cfg), published)


def autoencoder(path: pathlib.Path) -> Part:
    """The Wan VAE; its statistics are part of the code."""
    from avatar_jax.models import vae

    published = open_published(path)
    cfg = wan_vae.config(published)
    spec = {name: leaf for name, leaf in vae.spec(cfg).items() if name != "stats"}
    return Part("vae", path, cfg, spec, wan_vae.table(cfg), published)


def text_encoder(path: pathlib.Path) -> Part:
    """The UMT5 encoder."""
    from avatar_jax.models import umt5 as model

    published = open_published(path)
    cfg = umt5.config(published)
    return Part("umt5", path, cfg, model.spec(cfg), umt5.table(), published)


def sound_encoder(folder: pathlib.Path) -> Part:
    """The wav2vec2 encoder."""
    from avatar_jax.models import wav2vec as model

    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files:
        raise InputError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin; download it again")
    published = open_published(files[0])
    cfg = wav2vec.config(_described(folder / "config.json"))
    return Part("wav2vec", files[0], cfg, model.spec(cfg), wav2vec.table(cfg, published), published)


def find(source: pathlib.Path, lora: pathlib.Path | None, alpha: float) -> list[Part]:
    """Every network that a folder holds. Raises InputError if there is none."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; name the folder as downloaded")
    parts = []
    if any(source.glob("*.safetensors")) or any(source.glob("*.safetensors.index.json")):
        parts.append(transformer(source, lora, alpha))
    elif lora is not None:
        raise InputError(f"{source}: holds no transformer to merge {lora} into")
    parts += [autoencoder(source / VAE_FILE)] if (source / VAE_FILE).is_file() else []
    parts += [text_encoder(source / TEXT_FILE)] if (source / TEXT_FILE).is_file() else []
    parts += [sound_encoder(path.parent) for path in sorted(source.glob("*wav2vec2*/config.json"))]
    if not parts:
        raise InputError(f"{source}: holds no published weights that are known here; see docs/published.md")
    return parts


def identity(part: Part, dtype: str, lora: pathlib.Path | None, alpha: float) -> dict[str, Any]:
    """What must be the same for a stopped run to go on."""
    files = [part.origin] if part.origin.is_file() else sorted(part.origin.glob("*.safetensors"))
    files += [] if lora is None else [lora]
    sizes = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"files": sizes, "dtype": dtype, "alpha": alpha}


def main() -> None:
    """Checks every part, then writes them one after the other."""
    door.start_jax()
    if not FLAGS.source or not FLAGS.output:
        raise InputError("--source and --output are needed: the folder as downloaded and the folder to make")
    output, lora = pathlib.Path(FLAGS.output), pathlib.Path(FLAGS.lora) if FLAGS.lora else None
    parts = find(pathlib.Path(FLAGS.source), lora, FLAGS.lora_alpha)
    for part in parts:
        if (output / part.name).exists():
            raise InputError(f"{output / part.name}: exists already; choose another --output or remove it")
        coverage = table.cover(part.table, part.spec, part.published)
        sys.stdout.write(f"{part.name}: {coverage} ({part.origin.name}, {specs.count(part.spec):,} parameters)\n")
        coverage.require(str(part.origin))
    from tqdm import tqdm

    output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        with tqdm(desc=part.name, unit="array", disable=not sys.stderr.isatty()) as bar:

            def report(done: int, total: int, bar: Any = bar) -> None:
                bar.total, bar.n = total, done
                bar.refresh()

            origin = identity(part, FLAGS.dtype, lora, FLAGS.lora_alpha)
            dtype = None if FLAGS.dtype == "stored" else np.dtype(FLAGS.dtype)
            folder = output / part.name
            store.write(folder, part.spec, part.table, part.published, origin=origin, dtype=dtype, report=report)
        (output / f"{part.name}.json").write_text(json.dumps(dataclasses.asdict(part.described), indent=2))


if __name__ == "__main__":
    door.run(main, define)
