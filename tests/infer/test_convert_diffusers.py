"""A Wan folder in the diffusers layout becomes the checkpoint that the original layout becomes."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from avatar_jax.io.convert import diffusers, table, umt5, wan, wan_vae
from avatar_jax.io.convert.published import Tensors
from avatar_jax.io.errors import InputError
from infer.convert import LORA_ALPHA, TEXT_FILE, VAE_FILE, find
from tests.infer.test_convert import ROOT, convert, equal
from tests.io import torch_files

CASES = ROOT / "tests" / "golden"
TRANSFORMER = {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "num_attention_heads": 4}
TRANSFORMER |= {"attention_head_dim": 24, "in_channels": 36, "out_channels": 16, "text_dim": 32, "freq_dim": 256}
TRANSFORMER |= {"ffn_dim": 224, "num_layers": 3, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "image_dim": 64}
TRANSFORMER |= {"added_kv_proj_dim": 96, "cross_attn_norm": True, "pos_embed_seq_len": None}
VAE = {"_class_name": "AutoencoderKLWan", "base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
VAE |= {"temperal_downsample": [False, True, True], "attn_scales": []}
VAE |= {"latents_mean": list(wan_vae.MEAN), "latents_std": list(wan_vae.STD)}
TEXT = {"architectures": ["UMT5EncoderModel"], "vocab_size": 120, "d_model": 48, "d_kv": 8, "num_heads": 5}
TEXT |= {"num_layers": 3, "d_ff": 96, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
TEXT |= {"layer_norm_epsilon": 1e-6, "dense_act_fn": "gelu_new", "is_gated_act": True}
# Names as the libraries write them, one of each kind.
KNOWN = {
    "transformer": {
        "blocks.2.attn2.to_out.0.bias",
        "blocks.0.attn2.add_k_proj.weight",
        "blocks.0.attn2.norm_added_k.weight",
        "blocks.1.scale_shift_table",
        "scale_shift_table",
        "proj_out.weight",
        "condition_embedder.image_embedder.ff.net.0.proj.weight",
        "condition_embedder.time_proj.bias",
    },
    "vae": {
        "encoder.down_blocks.5.time_conv.weight",
        "encoder.down_blocks.3.conv_shortcut.weight",
        "decoder.up_blocks.1.upsamplers.0.resample.1.bias",
        "decoder.up_blocks.3.resnets.2.norm2.gamma",
        "decoder.mid_block.attentions.0.to_qkv.weight",
        "post_quant_conv.weight",
    },
    "text_encoder": {
        "shared.weight",
        "encoder.block.2.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.1.layer.1.DenseReluDense.wi_0.weight",
        "encoder.final_layer_norm.weight",
    },
}


def _renamed(ours: table.Table, theirs: table.Table, layers: int, tensors: dict) -> dict[str, np.ndarray]:
    names = {}
    for path, source in ours.items():
        for layer in range(layers if source.stacked else 1):
            names[source.key.format(layer)] = theirs[path].key.format(layer)
    return {names[name]: value for name, value in tensors.items()}


def _save(folder: pathlib.Path, described: dict, tensors: dict[str, np.ndarray], shards: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(described))
    where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == shard}, folder / shard)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The same weights in both layouts."""
    original, other = tmp_path / "original", tmp_path / "diffusers"
    weights = {
        name: load_file(CASES / name / "weights.safetensors") for name in ("wan_i2v_clip_dit", "wan_vae", "umt5")
    }
    described = json.loads((CASES / "wan_i2v_clip_dit" / "case.json").read_text())["config"] | {"text_len": 512}
    _save(original, described, weights["wan_i2v_clip_dit"], 1)
    torch_files.write(original / VAE_FILE, weights["wan_vae"])
    torch_files.write(original / TEXT_FILE, weights["umt5"])
    (original / "google" / "umt5-xxl").mkdir(parents=True)
    (original / "google" / "umt5-xxl" / "spiece.model").write_text("{}")
    cfg = wan.dit_config(described, Tensors(weights["wan_i2v_clip_dit"]), layer_loop="scan")
    autoencoder = wan_vae.config(Tensors(weights["wan_vae"]))
    for name, config, ours, theirs, case, shards in (
        ("transformer", TRANSFORMER, wan.table(cfg), diffusers.dit_table(cfg), "wan_i2v_clip_dit", 2),
        ("vae", VAE, wan_vae.table(autoencoder), diffusers.vae_table(autoencoder), "wan_vae", 1),
        ("text_encoder", TEXT, umt5.table(), diffusers.umt5_table(Tensors({"shared.weight": np.zeros(1)})), "umt5", 3),
    ):
        _save(other / name, config, _renamed(ours, theirs, 3, weights[case]), shards)
    (other / "tokenizer").mkdir()
    (other / "tokenizer" / "spiece.model").write_text("{}")
    (other / "model_index.json").write_text("{}")
    return original, other


def test_both_layouts_become_the_same_bytes(folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path):
    for folder, output in zip(folders, ("one", "two"), strict=True):
        done = convert(f"--source={folder}", f"--output={tmp_path / output}")
        assert done.returncode == 0, done.stderr
        for line in ("dit: 119 mapped", "vae: 194 mapped", "umt5: 32 mapped", "spiece.model: copied from"):
            assert line in done.stdout
    assert equal(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "spiece.model").read_text() == "{}"


@pytest.mark.parametrize("name", KNOWN)
def test_the_names_are_the_libraries(folders: tuple[pathlib.Path, pathlib.Path], name: str):
    found = {key for path in (folders[1] / name).glob("*.safetensors") for key in load_file(path)}
    assert KNOWN[name] <= found


def _change(folder: pathlib.Path, part: str, **fields: object) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: _change(f, "transformer", _class_name="Other"), "describes Other: only WanTransformer3DModel"),
        (
            lambda f: _change(f, "transformer", num_layers=4),
            "32 missing, 0 of wrong shape; missing blocks.3.attn1.norm_k.weight",
        ),
        (lambda f: _change(f, "transformer", added_kv_proj_dim=None), "added_kv_proj_dim=None: only 96 is supported"),
        (lambda f: _change(f, "vae", is_residual=True), "is_residual=True: only False is supported"),
        (lambda f: _change(f, "vae", latents_mean=[0.0]), "latents_mean=[0.0]: only"),
        (lambda f: _change(f, "text_encoder", dense_act_fn="relu"), "dense_act_fn='relu': only 'gelu_new'"),
        (
            lambda f: (f / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}'),
            "'base_dim' is missing",
        ),
        (lambda f: shutil.copytree(f / "transformer", f / "transformer_2"), "convert one: --source="),
    ],
    ids=["class", "layers", "image", "residual", "statistics", "activation", "incomplete", "two"],
)
def test_another_model_is_refused(folders: tuple[pathlib.Path, pathlib.Path], harm, words: str):
    harm(folders[1])
    with pytest.raises(InputError, match=re.escape(words)):
        for part in find(folders[1], None, LORA_ALPHA):
            table.cover(part.table, part.spec, part.published).require(str(part.origin))


def test_one_subfolder_and_a_tied_name(folders: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path):
    done = convert(f"--source={folders[1] / 'transformer'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0 and "dit: 119 mapped" in done.stdout, done.stderr
    assert "spiece.model: not in" in done.stdout
    for names in (["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]):
        sources = diffusers.umt5_table(Tensors(dict.fromkeys(names, np.zeros(1))))
        assert sources["tokens"].key == names[0]
        assert {source.key for source in sources.values()} >= set(names)
