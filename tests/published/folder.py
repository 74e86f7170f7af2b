"""Published folders with random weights, of any size: what `infer.convert` reads, made from what it writes."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import sentencepiece
from safetensors.numpy import save_file

from avatar_jax.core import config as configs
from avatar_jax.core import spec as specs
from avatar_jax.core import tree
from avatar_jax.io.convert import table, umt5, wan, wan_vae, wav2vec
from avatar_jax.io.convert.published import Tensors
from avatar_jax.models import dit
from avatar_jax.models import umt5 as umt5_model
from avatar_jax.models import wav2vec as wav2vec_model
from infer.convert import TEXT_FILE, VAE_FILE
from tests.io import torch_files

# How a weight of a shape here lies in a published file, by the change that its table makes.
LAYOUTS: dict[Any, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    table.linear: lambda shape: shape[::-1],
    table.patches: lambda shape: (shape[1], shape[0] // 4, 1, 2, 2),
    table.convolution: lambda shape: (shape[4], shape[3], *shape[:3]),
    table.convolution2d: lambda shape: (shape[4], shape[3], *shape[1:3]),
    table.convolution1d: lambda shape: shape[::-1],
    table.same: lambda shape: shape,
    table.flat: lambda shape: shape,
}


def shapes(spec: specs.Spec, sources: table.Table) -> Iterator[tuple[str, tuple[int, ...], specs.Leaf]]:
    """Published name and shape of every tensor of a network, and the leaf it belongs to."""
    for path, leaf in tree.flatten(spec).items():
        layout = LAYOUTS.get(sources[path].change, lambda shape: (1, *shape))
        for key in sources[path].keys(leaf):
            yield key, layout(sources[path].piece(leaf)), leaf


def tensors(spec: specs.Spec, sources: table.Table, seed: int) -> dict[str, np.ndarray]:
    """Random float32 tensors under their published names: small enough to stay tame, large enough to matter."""
    rng, drawn = np.random.default_rng(seed), {}
    for key, shape, leaf in shapes(spec, sources):
        fan_in = np.prod(leaf.shape[leaf.stacked : -1]) or 1
        scale = 1.0 if leaf.init == "ones" else 0.0
        drawn[key] = (scale + rng.standard_normal(shape) / np.sqrt(max(fan_in, 4))).astype(np.float32)
    return drawn


def described(cfg: configs.DitConfig) -> dict[str, Any]:
    """The transformer's `config.json`."""
    published = {**wan.PUBLISHED["s2v_14b" if cfg.audio_width else "t2v_1b3"], "text_dim": cfg.text_width}
    published |= {"dim": cfg.width, "num_heads": cfg.heads, "num_layers": cfg.layers, "ffn_dim": cfg.ffn}
    published |= {"text_len": cfg.text_tokens, "freq_dim": cfg.freq}
    return published | (
        {"audio_dim": cfg.audio_width, "audio_inject_layers": cfg.audio_inject} if cfg.audio_width else {}
    )


def _sound(folder: pathlib.Path, cfg: configs.Wav2Vec2Config, seed: int) -> None:
    about: Mapping[str, Any] = {
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "hidden_size": cfg.width,
        "num_attention_heads": cfg.heads,
        "num_hidden_layers": cfg.layers,
        "intermediate_size": cfg.ffn,
        "num_conv_pos_embeddings": cfg.position_kernel,
        "num_conv_pos_embedding_groups": cfg.position_groups,
        "layer_norm_eps": cfg.eps,
        **dict(zip(("conv_dim", "conv_kernel", "conv_stride"), zip(*cfg.convolutions, strict=True), strict=True)),
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about))
    sources = {name: source for name, source in wav2vec.table(cfg, Tensors({})).items() if not source.optional}
    save_file(tensors(wav2vec_model.spec(cfg), sources, seed), folder / "model.safetensors")


def write_tokenizer(path: pathlib.Path, vocabulary: int) -> None:
    """A small SentencePiece model with the published special tokens."""
    words = "a woman talks to the camera and tells her friends about the sea while a cat sleeps on an old blue boat"

    path.parent.mkdir(parents=True)
    sentences = [" ".join(words.split()[i:] + words.split()[:i]) for i in range(20)]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            vocab_size=vocabulary,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )


def write(folder: pathlib.Path, cfg: configs.Config | configs.ClipConfig, seed: int = 0) -> None:
    """A whole published folder for the networks of `cfg`.

    Args:
      folder: to be made.
      cfg: the run.
      seed: of the weights.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(described(cfg.dit)))
    save_file(tensors(dit.spec(cfg.dit), wan.table(cfg.dit), seed), folder / "diffusion_pytorch_model.safetensors")
    torch_files.write(folder / VAE_FILE, tensors(wan_vae.spec(cfg.vae), wan_vae.table(cfg.vae), seed))
    if cfg.text:
        torch_files.write(folder / TEXT_FILE, tensors(umt5_model.spec(cfg.text), umt5.table(), seed))
        write_tokenizer(folder / "google" / "umt5-xxl" / "spiece.model", cfg.text.vocabulary)
    if isinstance(cfg, configs.Config) and isinstance(cfg.sound, configs.Wav2Vec2Config):
        _sound(folder / "wav2vec2-large-xlsr-53-english", cfg.sound, seed)
