"""diffusers' Wan transformer and VAE, transformers' UMT5 and Wav2Vec2: saved, converted, compared in float32."""

# pyright: reportMissingImports=false

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Model

from avatar_jax.io.convert.published import open_published
from avatar_jax.models import umt5, vae, wav2vec
from tests.acceptance import report
from tests.parity.library import BAR, SEEDS, converted, draw, error, randomise
from tests.published.case import frames_first, frames_last
from tests.published.wan import call

TEXT_ROWS = 512  # the library's pipeline pads a prompt to these
# Few layers, odd sizes: widths no powers of two, frames, rows and columns all different.
WAN = {"num_attention_heads": 3, "attention_head_dim": 20, "text_dim": 44, "freq_dim": 36, "ffn_dim": 92}
WAN |= {"num_layers": 3, "in_channels": 16, "out_channels": 16}
IMAGE = {"in_channels": 36, "image_dim": 28, "added_kv_proj_dim": 60}
VAE = {"base_dim": 12, "z_dim": 16}
TEXT = {"vocab_size": 101, "d_model": 44, "d_kv": 12, "d_ff": 92, "num_layers": 3, "num_heads": 3}
SOUND = {"hidden_size": 60, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 92}
SOUND |= {"conv_dim": (20, 24, 28), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3}
SOUND |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True, "vocab_size": 17}
SOUND |= {"num_conv_pos_embeddings": 18, "num_conv_pos_embedding_groups": 5}


def row(name: str, errors: dict[str, float]) -> bool:
    """Keeps the worst of a network's errors."""
    where, worst = max(errors.items(), key=lambda item: item[1])
    bar = f"at most {BAR:.0e}, largest error over largest value"
    return report.row("parity", name, f"{worst:.1e} ({where}; {len(SEEDS)} seeds)", bar, worst <= BAR)


def folder(tmp_path: pathlib.Path, **models) -> pathlib.Path:
    """A diffusers folder of library models, saved as the libraries save them, in shards where they are large."""
    source = tmp_path / "source"
    for name, model in models.items():
        model.save_pretrained(source / name, max_shard_size="100KB")
    index = {"_class_name": "WanPipeline"} | {name: ["library", type(model).__name__] for name, model in models.items()}
    (source / "model_index.json").write_text(json.dumps(index))
    return source


@functools.cache
def _tensor(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(draw(shape, seed))


def _transformer_error(tmp_path: pathlib.Path, seed: int, image: bool) -> float:
    torch.manual_seed(seed)
    model = randomise(WanTransformer3DModel(**(WAN | (IMAGE if image else {}))), seed)
    source = folder(tmp_path, transformer=model)
    p, cfg = converted(source, tmp_path / "output")["dit"]
    x, time = _tensor((1, 16, 3, 6, 10), 100 + seed), [731.0, 8.928572, 1000.0][seed]
    text = draw((17, 44), 200 + seed)
    known = draw((20, 3, 6, 10), 300 + seed) if image else None
    seen = draw((1, 7, 28), 400 + seed) if image else None
    padded = torch.from_numpy(np.pad(text, ((0, TEXT_ROWS - len(text)), (0, 0))))[None]
    noisy = x if known is None else torch.cat([x, torch.from_numpy(known)[None]], 1)
    with torch.no_grad():
        theirs = model(
            noisy,
            torch.tensor([time]),
            padded,
            None if seen is None else torch.from_numpy(seen),
            return_dict=False,
        )[0][0]
    return error(call(p, x[0].numpy(), np.array([time]), text, cfg, known=known, image=seen), theirs)


def test_transformer(tmp_path: pathlib.Path):
    """Text to video, and Wan 2.1's image to video with its CLIP branch."""
    errors = {}
    for seed in SEEDS:
        for name, image in (("text to video", False), ("image to video", True)):
            errors[f"{name}, seed {seed}"] = _transformer_error(tmp_path / f"{name[:5]}{seed}", seed, image)
    assert row("diffusers' Wan transformer", errors)


def test_vae(tmp_path: pathlib.Path):
    """Seventeen frames to latents and five latents to frames; the library neither normalises nor denormalises."""
    errors = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = randomise(AutoencoderKLWan(**VAE), seed)
        p, cfg = converted(folder(tmp_path / str(seed), vae=model), tmp_path / str(seed) / "output")["vae"]
        video, latent = _tensor((1, 3, 17, 24, 40), seed), _tensor((1, 16, 5, 3, 5), seed)
        with torch.no_grad():
            mean, frames = model.encode(video).latent_dist.mean, model.decode(latent).sample
        ours, _, _ = vae.posterior(p, jnp.asarray(frames_last(video.numpy())), None, cfg=cfg)
        errors[f"encode, seed {seed}"] = error(frames_first(ours), mean)
        pixels, _ = vae.pixels(p, jnp.asarray(frames_last(latent.numpy())), None, cfg=cfg)
        errors[f"decode, seed {seed}"] = error(jnp.clip(frames_first(pixels), -1.0, 1.0), frames)
    assert row("diffusers' Wan VAE", errors)


def test_umt5(tmp_path: pathlib.Path):
    """Two prompts, one of them padded; longer than the reach of the relative positions."""
    errors, length = {}, 150
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = randomise(UMT5EncoderModel(UMT5Config(**TEXT)), seed)
        p, cfg = converted(folder(tmp_path / str(seed), text_encoder=model), tmp_path / str(seed) / "output")["umt5"]
        ids = np.random.default_rng(seed).integers(0, TEXT["vocab_size"], (2, length))
        mask = np.stack([np.ones(length, np.int64), np.arange(length) < 37])
        with torch.no_grad():
            rows = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
        ours = umt5.apply(p, jnp.asarray(ids), jnp.asarray(mask), cfg=cfg)
        for name, prompt, count in (("full prompt", 0, length), ("padded prompt", 1, 37)):
            errors[f"{name}, seed {seed}"] = error(ours[prompt, :count], rows[prompt, :count])
    assert row("transformers' UMT5", errors)


def _sound(tmp_path: pathlib.Path, kind: type, seed: int) -> tuple:
    torch.manual_seed(seed)
    model = randomise(kind(Wav2Vec2Config(**SOUND)), seed)
    model.save_pretrained(tmp_path / "wav2vec2")
    return model, *converted(tmp_path, tmp_path / "output")["wav2vec"]


def test_wav2vec(tmp_path: pathlib.Path):
    """All hidden states of both models, and the logits of the second from our last state and its own head.

    The last state is after the final norm here, as in the releases that Live Avatar ran with; this one gives it before.
    """
    errors = {}
    for seed in SEEDS:
        for kind in (Wav2Vec2Model, Wav2Vec2ForCTC):
            place = tmp_path / f"{kind.__name__}{seed}"
            model, p, cfg = _sound(place, kind, seed)
            wave = _tensor((2, 3217), seed)
            with torch.no_grad():
                found = model(wave, output_hidden_states=True)
                *hidden, last = found.hidden_states
                last = getattr(model, "wav2vec2", model).encoder.layer_norm(last)
            ours = wav2vec.apply(p, jnp.asarray(wave.numpy()), cfg=cfg)
            assert len(ours) == len(hidden) + 1
            for layer, states in enumerate((*hidden, last)):
                errors[f"{kind.__name__} layer {layer}, seed {seed}"] = error(ours[layer], states)
        head = open_published(place / "wav2vec2")
        logits = ours[-1] @ head.read("lm_head.weight").T + head.read("lm_head.bias")
        errors[f"logits, seed {seed}"] = error(logits, found.logits)
    assert row("transformers' Wav2Vec2", errors)
