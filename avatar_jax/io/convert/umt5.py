"""The UMT5 encoder as published with Wan (`models_t5_umt5-xxl-enc-bf16.pth`, live_avatar.md section 3)."""

from avatar_jax.core.config import Umt5Config
from avatar_jax.core.published import UMT5_XXL
from avatar_jax.io.convert.published import Published
from avatar_jax.io.convert.table import Source, Table, linear

_LINEAR = {
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "o": "attn.o",
    "gate": "ffn.gate.0",
    "in": "ffn.fc1",
    "out": "ffn.fc2",
}


def config(published: Published) -> Umt5Config:
    """The geometry that the tensors have."""
    vocabulary, width = published.shape("token_embedding.weight")
    buckets, heads = published.shape("blocks.0.pos_embedding.embedding.weight")
    layers = {name.split(".")[1] for name in published.names() if name.startswith("blocks.")}
    return Umt5Config(
        vocabulary=vocabulary,
        width=width,
        attention_width=published.shape("blocks.0.attn.q.weight")[0],
        heads=heads,
        layers=len(layers),
        ffn=published.shape("blocks.0.ffn.fc1.weight")[0],
        buckets=buckets,
        reach=UMT5_XXL.reach,
        eps=UMT5_XXL.eps,
    )


def table() -> Table:
    """Sources of every weight of `umt5.spec`."""
    table = {"tokens": Source("token_embedding.weight"), "norm/scale": Source("norm.weight")}
    for ours, theirs in _LINEAR.items():
        table[f"blocks/{ours}/w"] = Source(f"blocks.{{}}.{theirs}.weight", linear)
    for name in ("norm1", "norm2"):
        table[f"blocks/{name}/scale"] = Source(f"blocks.{{}}.{name}.weight")
    return table | {"blocks/position": Source("blocks.{}.pos_embedding.embedding.weight")}
