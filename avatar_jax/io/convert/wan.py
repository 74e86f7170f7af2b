"""The Wan transformers as published: Wan 2.1 and 2.2, S2V-14B, Live Avatar, Self-Forcing (one key layout)."""

from collections.abc import Mapping
from typing import Any

from avatar_jax.core.config import DitConfig
from avatar_jax.io.convert.published import Published
from avatar_jax.io.convert.table import Source, Table, affine, convolution1d, dense, flat, patches, require

_IMAGE = "img_emb.proj.0.weight"  # Wan 2.1 has it, 2.2 does not, and no config says so
# `config.json` of the published files, where a name is not the same everywhere.
_COMMON = {"patch_size": [1, 2, 2], "text_len": 512, "freq_dim": 256, "in_dim": 16, "out_dim": 16, "eps": 1e-6}
_LARGE = {**_COMMON, "dim": 5120, "num_heads": 40, "num_layers": 40, "ffn_dim": 13824}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "t2v_1b3": {**_COMMON, "model_type": "t2v", "dim": 1536, "num_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    "t2v_14b": {**_LARGE, "model_type": "t2v"},
    "s2v_14b": {
        **_LARGE,
        "model_type": "s2v",
        "audio_dim": 1024,
        "num_audio_token": 4,
        "audio_inject_layers": [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39],
    },
}
MOTION = {"x1": "proj", "x2": "proj_2x", "x4": "proj_4x"}


def _squeeze(w):
    return w[0]


def _attention(path: str, key: str) -> dict[str, Source]:
    table = {}
    for name in "qkvo":
        table |= dense(f"{path}/{name}", f"{key}.{name}")
    for name in ("norm_q", "norm_k"):
        table[f"{path}/{name}/scale"] = Source(f"{key}.{name}.weight")
    return table


def _conv1d(path: str, key: str) -> dict[str, Source]:
    return {f"{path}/w": Source(f"{key}.conv.weight", convolution1d), f"{path}/b": Source(f"{key}.conv.bias")}


def _blocks(cfg: DitConfig) -> dict[str, Source]:
    table = {"blocks/modulation": Source("blocks.{}.modulation", _squeeze)}
    table |= _attention("blocks/self", "blocks.{}.self_attn")
    table |= dense("blocks/ffn/in", "blocks.{}.ffn.0") | dense("blocks/ffn/out", "blocks.{}.ffn.2")
    if cfg.text_width:
        table |= affine("blocks/norm3", "blocks.{}.norm3") | _attention("blocks/cross", "blocks.{}.cross_attn")
    if cfg.image_width:
        for name in ("k", "v"):
            table |= dense(f"blocks/cross/image/{name}", f"blocks.{{}}.cross_attn.{name}_img")
        table["blocks/cross/image/norm_k/scale"] = Source("blocks.{}.cross_attn.norm_k_img.weight")
    return table


def _audio() -> dict[str, Source]:
    encoder, injector = "casual_audio_encoder.encoder", "audio_injector"  # upstream's spelling
    table = {
        "audio/encoder/layers": Source("casual_audio_encoder.weights", flat),
        "audio/encoder/padding": Source(f"{encoder}.padding_tokens", flat),
    }
    for ours, theirs in (("local", "conv1_local"), ("global", "conv1_global"), ("conv2", "conv2"), ("conv3", "conv3")):
        table |= _conv1d(f"audio/encoder/{ours}", f"{encoder}.{theirs}")
    table |= dense("audio/encoder/final", f"{encoder}.final_linear")
    table |= _attention("audio/injectors/attention", f"{injector}.injector.{{}}")
    return table | dense("audio/injectors/adain", f"{injector}.injector_adain_layers.{{}}.linear")


def table(cfg: DitConfig) -> Table:
    """Sources of every weight of `dit.spec(cfg)`."""
    table = dense("patch", "patch_embedding", patches) | _blocks(cfg)
    table |= dense("time/in", "time_embedding.0") | dense("time/out", "time_embedding.2")
    table |= dense("time/projection", "time_projection.1")
    table |= {"head/modulation": Source("head.modulation", _squeeze)} | dense("head/out", "head.head")
    if cfg.text_width:
        table |= dense("text/in", "text_embedding.0") | dense("text/out", "text_embedding.2")
    if cfg.image_width:
        table |= affine("image/norm_in", "img_emb.proj.0") | affine("image/norm_out", "img_emb.proj.4")
        table |= dense("image/in", "img_emb.proj.1") | dense("image/out", "img_emb.proj.3")
    if cfg.audio_width:
        table |= _audio()
    if cfg.token_types:
        table["type"] = Source("trainable_cond_mask.weight")
    if cfg.pose:
        table |= dense("pose", "cond_encoder", patches)
    if cfg.motion_latents:
        for ours, theirs in MOTION.items():
            table |= dense(f"motion/{ours}", f"frame_packer.{theirs}", patches)
    return table


def dit_config(
    published: Mapping[str, Any], tensors: Published, *, layer_loop: str, compute_dtype: str = "float32"
) -> DitConfig:
    """The transformer that a published `config.json` and its tensors describe.

    Raises:
      InputError: a part that this project does not have.
    """
    spoken = published["model_type"] == "s2v"
    require(published, "patch_size", [1, 2, 2])
    require(published, "qk_norm", True)
    require(published, "cross_attn_norm", True)
    if spoken:
        for name, value in (("enable_adain", True), ("adain_mode", "attn_norm"), ("zero_timestep", True)):
            require(published, name, value)
        for name, value in (("enable_motioner", False), ("enable_tsm", False), ("enable_framepack", True)):
            require(published, name, value)
    return DitConfig(
        width=published["dim"],
        heads=published["num_heads"],
        layers=published["num_layers"],
        ffn=published["ffn_dim"],
        freq=published["freq_dim"],
        patch=2,
        latent_channels=published["out_dim"],
        condition_channels=published["in_dim"] - published["out_dim"],
        token_types=spoken,
        pose=spoken,
        motion_latents=19 if spoken else 0,
        text_width=published.get("text_dim", 4096),
        text_tokens=published["text_len"],
        image_width=tensors.shape(_IMAGE)[0] if _IMAGE in tensors.names() else 0,
        audio_width=published["audio_dim"] if spoken else 0,
        audio_layers=25 if spoken else 0,
        audio_tokens=published["num_audio_token"] if spoken else 0,
        audio_inject=tuple(published["audio_inject_layers"]) if spoken else (),
        eps=published["eps"],
        rope_theta=10000.0,
        layer_loop=layer_loop,
        compute_dtype=compute_dtype,
        attention="auto",
    )
