"""The UMT5 text encoder."""

import jax.numpy as jnp

from avatar_jax.io.convert import table
from avatar_jax.io.convert import umt5 as convert
from avatar_jax.models import umt5
from avatar_jax.nn import kv
from tests.published.case import Case, Outputs
from tests.published.probe import probe


def encoder(case: Case) -> dict[str, float]:
    """Rows of a padded and a full prompt, and the buckets of relative positions."""
    io, published = case.tensors(), case.published()
    cfg = convert.config(published)
    p = table.load(convert.table(), umt5.spec(cfg), published, origin=str(case.folder))
    rows = umt5.apply(p, jnp.asarray(io["ids"]), jnp.asarray(io["mask"]), cfg=cfg)
    outputs: Outputs = {"out": rows, "bucket_id": umt5.bucket(io["bucket_rel"], cfg)}
    unrolled = p | {"blocks": kv.unstack(p["blocks"], cfg.layers)}
    with probe() as inside:
        umt5.apply(unrolled, jnp.asarray(io["ids"]), jnp.asarray(io["mask"]), cfg=cfg)
    outputs["block0_attn"] = inside.of(unrolled["blocks"][0]["o"])
    outputs["block0_out"] = inside.left(0, rows.shape[1])
    for i, mask in enumerate(io["mask"]):
        outputs[f"context{i}"] = rows[i, : mask.sum()]
    return case.worst(outputs)
