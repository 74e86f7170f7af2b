"""wav2vec2-large-xlsr-53 as published in the Hugging Face layout (live_avatar.md section 2)."""

from collections.abc import Mapping
from typing import Any

from avatar_jax.core.config import Wav2Vec2Config
from avatar_jax.io.convert.published import Published
from avatar_jax.io.convert.table import Source, Table, affine, convolution1d, dense, flat, require

AUDIO_HZ = 16000
_MODULE = "wav2vec2."  # before every name where the file holds more than the encoder


def config(published: Mapping[str, Any]) -> Wav2Vec2Config:
    """The encoder that a published `config.json` describes. Raises InputError for another variant."""
    for name, value in (("feat_extract_norm", "layer"), ("do_stable_layer_norm", True), ("conv_bias", True)):
        require({name: published.get(name)}, name, value)  # left out, each means another variant
    return Wav2Vec2Config(
        audio_hz=AUDIO_HZ,
        convolutions=tuple(zip(published["conv_dim"], published["conv_kernel"], published["conv_stride"], strict=True)),
        width=published["hidden_size"],
        heads=published["num_attention_heads"],
        layers=published["num_hidden_layers"],
        ffn=published["intermediate_size"],
        position_kernel=published["num_conv_pos_embeddings"],
        position_groups=published["num_conv_pos_embedding_groups"],
        eps=published["layer_norm_eps"],
    )


def table(cfg: Wav2Vec2Config, published: Published) -> Table:
    """Sources of every weight of `wav2vec.spec(cfg)`; the weight norm has an old and a new spelling."""
    module = _MODULE if any(name.startswith(_MODULE) for name in published.names()) else ""
    unused = ("lm_head.weight", "lm_head.bias", f"{module}masked_spec_embed")  # of recognition and pre-training
    table: dict[str, Source] = {name: Source(name, optional=True) for name in unused}
    for i in range(len(cfg.convolutions)):
        key = f"{module}feature_extractor.conv_layers.{i}"
        table |= dense(f"convolutions/{i}", f"{key}.conv", convolution1d)
        table |= affine(f"convolutions/{i}/norm", f"{key}.layer_norm")
    table |= dense("projection", f"{module}feature_projection.projection")
    table |= affine("projection/norm", f"{module}feature_projection.layer_norm")
    position = f"{module}encoder.pos_conv_embed.conv"
    new = f"{position}.parametrizations.weight.original0" in published.names()
    gain, direction = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    gain, direction = (gain, direction) if new else ("weight_g", "weight_v")
    table |= {
        "position/gain": Source(f"{position}.{gain}", flat),
        "position/direction": Source(f"{position}.{direction}", convolution1d),
        "position/b": Source(f"{position}.bias"),
    }
    layer = module + "encoder.layers.{}"
    for name in "qkv":
        table |= dense(f"blocks/{name}", f"{layer}.attention.{name}_proj")
    table |= dense("blocks/o", f"{layer}.attention.out_proj")
    table |= affine("blocks/norm1", f"{layer}.layer_norm") | affine("blocks/norm2", f"{layer}.final_layer_norm")
    table |= dense("blocks/in", f"{layer}.feed_forward.intermediate_dense")
    table |= dense("blocks/out", f"{layer}.feed_forward.output_dense")
    return table | affine("norm", f"{module}encoder.layer_norm")
