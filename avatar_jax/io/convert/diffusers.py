"""Wan folders in the diffusers layout: the same tensors as the original files hold, under other names.

So each network has one table, in the original names, and this file translates it. `config.json` says here what the
original files leave to the code.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from avatar_jax.core.config import DitConfig, Umt5Config, VaeConfig
from avatar_jax.io.convert import umt5, wan, wan_vae
from avatar_jax.io.convert.published import Published, Tensors
from avatar_jax.io.convert.table import Source, Table, require
from avatar_jax.io.errors import InputError

CLASSES = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan", "text_encoder": "UMT5EncoderModel"}
TEXT_TOKENS = 512  # rows of a prompt: the pipeline's, in no file (live_avatar.md section 1.1)

Rules = Sequence[tuple[str, str]]  # pattern and replacement, applied in order to the original name

_TRANSFORMER: Rules = (
    (r"^text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
    (r"^time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
    (r"^time_projection\.1", "condition_embedder.time_proj"),
    (r"^img_emb\.proj\.0", "condition_embedder.image_embedder.norm1"),
    (r"^img_emb\.proj\.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    (r"^img_emb\.proj\.3", "condition_embedder.image_embedder.ff.net.2"),
    (r"^img_emb\.proj\.4", "condition_embedder.image_embedder.norm2"),
    (r"\bmodulation$", "scale_shift_table"),
    (r"^head\.head", "proj_out"),
    (r"^head\.", ""),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.([qkv])\.(weight|bias)$", r".to_\1.\2"),
    (r"\.o\.(weight|bias)$", r".to_out.0.\1"),
    (r"\.([kv])_img\.", r".add_\1_proj."),
    (r"\.norm_k_img\.", ".norm_added_k."),
    (r"\.norm3\.", ".norm2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
)
_VAE: Rules = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(\w+)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
_TEXT: Rules = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.", "encoder.block."),
    (r"\.norm1\.", ".layer.0.layer_norm."),
    (r"\.norm2\.", ".layer.1.layer_norm."),
    (r"\.attn\.", ".layer.0.SelfAttention."),
    (r"\.pos_embedding\.embedding\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.ffn\.gate\.0\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn\.fc1\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn\.fc2\.", ".layer.1.DenseReluDense.wo."),
)
_TIED = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor; a file holds either name or both


def _translate(table: Table, rules: Rules) -> dict[str, Source]:
    def name(key: str) -> str:
        for pattern, other in rules:
            key = re.sub(pattern, other, key)
        return key

    return {path: dataclasses.replace(source, key=name(source.key)) for path, source in table.items()}


def is_transformer(described: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a transformer in this layout."""
    return described.get("_class_name") == CLASSES["transformer"]


def require_class(described: Mapping[str, Any], folder: str) -> None:
    """Raises InputError unless a `config.json` is that of the network this project has for a subfolder."""
    found = described.get("_class_name") or (described.get("architectures") or [None])[0]
    if found != CLASSES[folder]:
        raise InputError(f"{folder}/config.json: describes {found}: only {CLASSES[folder]} is supported")


def dit_config(described: Mapping[str, Any], *, layer_loop: str) -> DitConfig:
    """The transformer that `transformer/config.json` describes.

    Raises:
      InputError: a part that this project does not have.
    """
    width = described["num_attention_heads"] * described["attention_head_dim"]
    require(described, "qk_norm", "rms_norm_across_heads")
    require(described, "pos_embed_seq_len", None)
    require(described, "added_kv_proj_dim", width if described.get("image_dim") else None)
    original = {
        "model_type": "t2v",  # or i2v: the channels tell
        "patch_size": described["patch_size"],
        "cross_attn_norm": described.get("cross_attn_norm", True),
        "dim": width,
        "num_heads": described["num_attention_heads"],
        "num_layers": described["num_layers"],
        "ffn_dim": described["ffn_dim"],
        "freq_dim": described["freq_dim"],
        "in_dim": described["in_channels"],
        "out_dim": described["out_channels"],
        "text_dim": described["text_dim"],
        "text_len": TEXT_TOKENS,
        "eps": described["eps"],
    }
    cfg = wan.dit_config(original, Tensors({}), layer_loop=layer_loop)
    return dataclasses.replace(cfg, image_width=described.get("image_dim") or 0)


def dit_table(cfg: DitConfig) -> Table:
    """Sources of every weight of `dit.spec(cfg)`."""
    return _translate(wan.table(cfg), _TRANSFORMER)


def vae_config(described: Mapping[str, Any]) -> VaeConfig:
    """The VAE that `vae/config.json` describes. Raises InputError for another form than Wan 2.1's."""
    for name, value in (("is_residual", False), ("patch_size", None), ("attn_scales", [])):
        require(described, name, value)
    require(described, "latents_mean", list(wan_vae.MEAN))
    require(described, "latents_std", list(wan_vae.STD))
    require(described, "decoder_base_dim", None)
    return VaeConfig(
        width=described["base_dim"],
        mult=tuple(described["dim_mult"]),
        temporal=tuple(described["temperal_downsample"]),  # the library's spelling
        res_blocks=described["num_res_blocks"],
        res_frames=3,
        latent_channels=described["z_dim"],
        pixel_patch=1,
    )


def vae_table(cfg: VaeConfig) -> Table:
    """Sources of every weight of `vae.spec(cfg)` but the statistics."""
    period = cfg.res_blocks + 2  # residual blocks and the resampling, of a stage of the decoder
    stages: list[tuple[str, str]] = []
    for index in range(period * len(cfg.mult)):
        stage, place = divmod(index, period)
        module = "upsamplers.0" if place == period - 1 else f"resnets.{place}"
        stages.append((rf"\.upsamples\.{index}\.", f".up_blocks.{stage}.{module}."))
    return _translate(wan_vae.table(cfg), (*_VAE, *stages))


def umt5_config(described: Mapping[str, Any]) -> Umt5Config:
    """The encoder that `text_encoder/config.json` describes. Raises InputError for another variant."""
    require(described, "dense_act_fn", "gelu_new")
    require(described, "is_gated_act", True)
    return Umt5Config(
        vocabulary=described["vocab_size"],
        width=described["d_model"],
        attention_width=described["num_heads"] * described["d_kv"],
        heads=described["num_heads"],
        layers=described["num_layers"],
        ffn=described["d_ff"],
        buckets=described["relative_attention_num_buckets"],
        reach=described["relative_attention_max_distance"],
        eps=described["layer_norm_epsilon"],
    )


def umt5_table(published: Published) -> Table:
    """Sources of every weight of `umt5.spec`."""
    table = _translate(umt5.table(), _TEXT)
    name, other = _TIED if _TIED[0] in published.names() else _TIED[::-1]
    return table | {"tokens": Source(name), other: Source(other, optional=True)}
