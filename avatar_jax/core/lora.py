"""Low-rank adapters: a sparse tree of {"lora": {"a": [in, r], "b": [r, out]}} beside the weights they adapt.

y = x W + s (x a) b + bias     grafted: the adapter runs beside the weight (`nn/dense.py`)
y = x (W + s a b) + bias       merged

s = alpha / rank (live_avatar.md section 1.10). Grafting folds s into b, so a grafted tree needs nothing else.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from avatar_jax.core import quant
from avatar_jax.core import spec as specs
from avatar_jax.core import tree as trees

NODE = "lora"
Tree = dict[str, Any]


def published(path: str) -> bool:
    """Whether Live Avatar adapts a transformer's weight: q, k, v, o and both matrices of the feed-forward."""
    if not path.startswith(("blocks/", "audio/injectors/attention/")) or "/image/" in path:
        return False
    return path.endswith(tuple(f"/{name}/w" for name in ("q", "k", "v", "o", "in", "out")))


def spec(base: specs.Spec, rank: int, rule: Callable[[str], bool] = published) -> Tree:
    """Adapters for the weights of `base` whose path `rule` accepts; they start without effect (b = 0)."""
    flat = {}
    for path, leaf in trees.flatten(base).items():
        if rule(path):
            (*layers, inputs, outputs), (*over, into, out) = leaf.shape, leaf.axes
            node = f"{path.removesuffix('/w')}/{NODE}"
            flat[f"{node}/a"] = dataclasses.replace(leaf, shape=(*layers, inputs, rank), axes=(*over, into, None))
            up = dataclasses.replace(leaf, shape=(*layers, rank, outputs), axes=(*over, None, out), init="zeros")
            flat[f"{node}/b"] = up
    return trees.unflatten(flat)


def _nodes(adapters: Mapping[str, Any]) -> dict[str, Tree]:
    """Each adapter {"a", "b"} by the path of its linear layer."""
    flat = trees.flatten(adapters)
    modules = sorted({path.rsplit(f"/{NODE}/", 1)[0] for path in flat})
    return {module: {side: flat[f"{module}/{NODE}/{side}"] for side in "ab"} for module in modules}


def _check(flat: Mapping[str, Any], adapters: Mapping[str, Tree]) -> None:
    strangers = [module for module in adapters if f"{module}/w" not in flat]
    if strangers:
        raise ValueError(f"adapters for weights that are not there: {', '.join(strangers[:20])}")


def graft(p: Mapping[str, Any], adapters: Mapping[str, Any], *, scale: float) -> Tree:
    """The weights with adapters beside them, running unmerged; blocks stacked, as checkpoints hold them.

    Args:
      p: weights, arrays or `QTensor`s.
      adapters: as `spec` lays them out.
      scale: alpha / rank.

    Raises:
      ValueError: an adapter for a weight that `p` has not.
    """
    flat, nodes = trees.flatten(p), _nodes(adapters)
    _check(flat, nodes)
    for module, node in nodes.items():
        flat |= {f"{module}/{NODE}/a": node["a"], f"{module}/{NODE}/b": node["b"] * scale}
    return trees.unflatten(flat)


def merge(p: Mapping[str, Any], adapters: Mapping[str, Any], *, scale: float) -> Tree:
    """W + scale a b in float32, rounded once to W's dtype. Raises ValueError as `graft`, and for a quantised W."""
    flat, nodes = trees.flatten(p), _nodes(adapters)
    _check(flat, nodes)
    for module, node in nodes.items():
        w = flat[f"{module}/w"]
        if isinstance(w, quant.QTensor):
            raise ValueError(f"{module} is quantised already: merge first, or graft")
        change = jnp.matmul(node["a"].astype(jnp.float32), node["b"].astype(jnp.float32), precision="highest") * scale
        flat[f"{module}/w"] = (w.astype(jnp.float32) + change).astype(w.dtype)
    return trees.unflatten(flat)


def trainable(grafted: Mapping[str, Any]) -> Tree:
    """True at the adapters' leaves and False at the others', for an optimiser's mask."""
    return trees.unflatten({path: f"/{NODE}/" in path for path in trees.flatten(grafted)})
