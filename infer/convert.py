"""Published weights, as downloaded, to checkpoints of this project.

    python -m infer.convert --source=Wan2.2-S2V-14B --lora=liveavatar.safetensors --output=weights/live_avatar

Finds what the folder holds: the transformer (safetensors shards with `config.json`), `Wan2.1_VAE.pth`,
`models_t5_umt5-xxl-enc-bf16.pth`, a wav2vec2 folder, the tokenizer; or the same in the diffusers layout. Checks every
name and shape before writing anything, prints the coverage, and goes on where a stopped run left off. Memory stays a
few times the largest tensor.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from avatar_jax.core import quant
from avatar_jax.core import spec as specs
from avatar_jax.io.checkpoint import TOKENIZER
from avatar_jax.io.convert import diffusers, store, table, umt5, wan, wan_vae, wav2vec
from avatar_jax.io.convert.lora import Merged
from avatar_jax.io.convert.published import Published, open_published
from avatar_jax.io.errors import InputError
from infer import door

FLAGS = flags.FLAGS
LORA_ALPHA = 64.0  # Live Avatar's, for rank 128 (live_avatar.md section 1.10)
VAE_FILE, TEXT_FILE = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"

TOKENIZERS = (f"google/umt5-xxl/{TOKENIZER}", f"tokenizer/{TOKENIZER}")  # where the two layouts keep it


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
    flags.DEFINE_enum("quantise", None, quant.KINDS, "The transformer's linear layers in 8 bits (core/quant.py).")


def _described(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error}); download it again") from error


@contextlib.contextmanager
def _reading(config: pathlib.Path) -> Iterator[dict[str, Any]]:
    """A `config.json`; InputError where a name that is looked up is not in it."""
    try:
        yield _described(config)
    except KeyError as error:
        raise InputError(f"{config}: {error} is missing; download it again") from error


def transformer(folder: pathlib.Path, lora: pathlib.Path | None, alpha: float) -> Part:
    """The Wan transformer of a folder in either layout, the LoRA merged in."""
    from avatar_jax.models import dit

    published = open_published(folder)
    published = published if lora is None else Merged(published, open_published(lora), alpha)
    with _reading(folder / "config.json") as described:
        if diffusers.is_transformer(described) or (folder.parent / "model_index.json").is_file():
            diffusers.require_class(described, "transformer")
            cfg = diffusers.dit_config(described, layer_loop="scan")
            return Part("dit", folder, cfg, dit.spec(cfg), diffusers.dit_table(cfg), published)
        cfg = wan.dit_config(described, published, layer_loop="scan")
    return Part("dit", folder, cfg, dit.spec(cfg), wan.table(cfg), published)


def autoencoder(path: pathlib.Path) -> Part:
    """The Wan VAE, a file or a diffusers folder; its statistics are part of the code."""
    published = open_published(path)
    if path.is_dir():
        with _reading(path / "config.json") as described:
            diffusers.require_class(described, "vae")
            cfg = diffusers.vae_config(described)
        sources = diffusers.vae_table(cfg)
    else:
        cfg = wan_vae.config(published)
        sources = wan_vae.table(cfg)
    return Part("vae", path, cfg, wan_vae.spec(cfg), sources, published)


def text_encoder(path: pathlib.Path) -> Part:
    """The UMT5 encoder, a file or a diffusers folder."""
    from avatar_jax.models import umt5 as model

    published = open_published(path)
    if path.is_dir():
        with _reading(path / "config.json") as described:
            diffusers.require_class(described, "text_encoder")
            cfg = diffusers.umt5_config(described)
        sources = diffusers.umt5_table(published)
    else:
        cfg = umt5.config(published)
        sources = umt5.table()
    return Part("umt5", path, cfg, model.spec(cfg), sources, published)


def sound_encoder(folder: pathlib.Path) -> Part:
    """The wav2vec2 encoder."""
    from avatar_jax.models import wav2vec as model

    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files:
        raise InputError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin; download it again")
    published = open_published(files[0])
    with _reading(folder / "config.json") as described:
        cfg = wav2vec.config(described)
    return Part("wav2vec", files[0], cfg, model.spec(cfg), wav2vec.table(cfg, published), published)


def _places(source: pathlib.Path) -> dict[str, pathlib.Path]:
    """What of transformer, VAE and text encoder a folder holds, and where, in either layout."""
    if (source / "model_index.json").is_file():
        if (source / "transformer_2").is_dir():
            raise InputError(f"{source}: holds two transformers; convert one: --source={source / 'transformer'}")
        return {name: source / name for name in diffusers.CLASSES if (source / name).is_dir()}
    files = {"vae": source / VAE_FILE, "text_encoder": source / TEXT_FILE}
    tensors = any(source.glob("*.safetensors")) or any(source.glob("*.safetensors.index.json"))
    found = {"transformer": source} if tensors else {}
    return found | {name: path for name, path in files.items() if path.is_file()}


def find(source: pathlib.Path, lora: pathlib.Path | None, alpha: float) -> list[Part]:
    """Every network that a folder holds. Raises InputError if there is none."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; name the folder as downloaded")
    places = _places(source)
    if lora is not None and "transformer" not in places:
        raise InputError(f"{source}: holds no transformer to merge {lora} into")
    parts = [transformer(places["transformer"], lora, alpha)] if "transformer" in places else []
    parts += [autoencoder(places["vae"])] if "vae" in places else []
    parts += [text_encoder(places["text_encoder"])] if "text_encoder" in places else []
    parts += [sound_encoder(path.parent) for path in sorted(source.glob("*wav2vec2*/config.json"))]
    if not parts:
        raise InputError(f"{source}: holds no published weights that are known here; see docs/published.md")
    return parts


def copy_tokenizer(source: pathlib.Path, output: pathlib.Path) -> str:
    """Copies the folder's tokenizer, if it has one; returns what to say of it."""
    found = next((source / name for name in TOKENIZERS if (source / name).is_file()), None)
    if found is None:
        return f"{TOKENIZER}: not in {source}; a model with a text encoder needs it for prompts"
    unfinished = store.partial(output / TOKENIZER)
    shutil.copyfile(found, unfinished)
    unfinished.replace(output / TOKENIZER)
    return f"{TOKENIZER}: copied from {found}"


def form_of(part: Part) -> store.Form:
    """How the flags want a network written; only the transformer is quantised."""
    dtype = None if FLAGS.dtype == "stored" else np.dtype(FLAGS.dtype)
    return store.Form(dtype, FLAGS.quantise if part.name == "dit" else None)


def identity(part: Part, form: store.Form, lora: pathlib.Path | None, alpha: float) -> dict[str, Any]:
    """What must be the same for a stopped run to go on."""
    files = [part.origin] if part.origin.is_file() else sorted(part.origin.glob("*.safetensors"))
    files += [] if lora is None else [lora]
    sizes = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"files": sizes, "dtype": str(form.dtype), "quantise": form.quantise, "alpha": alpha}


def main() -> None:
    """Checks every part, then writes them one after the other."""
    door.start_jax()
    if not FLAGS.source or not FLAGS.output:
        raise InputError("--source and --output are needed: the folder as downloaded and the folder to make")
    source, output = pathlib.Path(FLAGS.source), pathlib.Path(FLAGS.output)
    lora = pathlib.Path(FLAGS.lora) if FLAGS.lora else None
    parts = find(source, lora, FLAGS.lora_alpha)
    if FLAGS.quantise and all(part.name != "dit" for part in parts):
        raise InputError(f"{source}: holds no transformer to quantise; leave --quantise out")
    for part in parts:
        if (output / part.name).exists():
            raise InputError(f"{output / part.name}: exists already; choose another --output or remove it")
        coverage = table.cover(part.table, part.spec, part.published)
        sys.stdout.write(f"{part.name}: {coverage} ({part.origin.name}, {specs.count(part.spec):,} parameters)\n")
        coverage.require(str(part.origin))
    from tqdm import tqdm

    output.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(copy_tokenizer(source, output) + "\n")
    for part in parts:
        with tqdm(desc=part.name, unit="array", disable=not sys.stderr.isatty()) as bar:

            def report(done: int, total: int, bar: Any = bar) -> None:
                bar.total, bar.n = total, done
                bar.refresh()

            form, folder = form_of(part), output / part.name
            origin = identity(part, form, lora, FLAGS.lora_alpha)
            store.write(folder, part.spec, part.table, part.published, origin=origin, form=form, report=report)
        (output / f"{part.name}.json").write_text(json.dumps(dataclasses.asdict(part.described), indent=2))


if __name__ == "__main__":
    door.run(main, define)
