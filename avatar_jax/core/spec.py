"""One declaration a weight: shape, logical axes, initialiser and dtype, from which everything else follows.

A *spec* is a nested dict whose leaves are `Leaf`; the weights are the same dict with arrays for leaves.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.core import tree as trees

Spec = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A weight to be: `axes` names each dimension for sharding; linear weights are stored [in, out].

    `init` is "fan_in" (normal, 1/sqrt of all but the last dimension), "newest" (the same for the last slice of the
    first dimension, zero for the others), "hold" (copies of the identity in that slice), "zeros", "ones" or "normal"
    (std `scale`).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = "fan_in"
    scale: float = 1.0
    dtype: str = "float32"
    stacked: int = 0  # leading dimensions that `stack` added; not part of the fan-in


def _draw(leaf: Leaf, key: jax.Array) -> jax.Array:
    if leaf.init == "zeros":
        return jnp.zeros(leaf.shape, leaf.dtype)
    if leaf.init == "ones":
        return jnp.full(leaf.shape, leaf.scale, leaf.dtype)
    if leaf.init == "newest":
        last = dataclasses.replace(leaf, shape=leaf.shape[1:], axes=leaf.axes[1:], init="fan_in")
        return jnp.zeros(leaf.shape, leaf.dtype).at[-1].set(_draw(last, key))
    if leaf.init == "hold":
        inputs, outputs = leaf.shape[-2:]
        return jnp.zeros(leaf.shape, leaf.dtype).at[-1].set(jnp.tile(jnp.eye(inputs), outputs // inputs))
    fan_in = math.prod(leaf.shape[leaf.stacked : -1]) if leaf.init == "fan_in" else 1
    return (jax.random.normal(key, leaf.shape) * leaf.scale / math.sqrt(fan_in)).astype(leaf.dtype)


def init(spec: Spec, key: jax.Array) -> dict[str, Any]:
    """Draws the weights of `spec`; each leaf's key depends on its path alone, so adding a leaf moves no other."""
    flat = trees.flatten(spec)
    return trees.unflatten(
        {path: _draw(leaf, jax.random.fold_in(key, zlib.crc32(path.encode()))) for path, leaf in flat.items()}
    )


def abstract(spec: Spec) -> dict[str, Any]:
    """The weights' shapes and dtypes, without memory."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(spec))


def stack(spec: Spec, count: int) -> dict[str, Any]:
    """The spec of `count` equal layers, stacked along a leading "layers" axis."""
    return jax.tree.map(
        lambda leaf: dataclasses.replace(
            leaf, shape=(count, *leaf.shape), axes=("layers", *leaf.axes), stacked=leaf.stacked + 1
        ),
        dict(spec),
    )


def count(spec: Spec) -> int:
    """Number of weights."""
    return sum(math.prod(leaf.shape) for leaf in trees.flatten(spec).values())


def check(spec: Spec, weights: Mapping[str, Any]) -> None:
    """Raises ValueError with counts and the first gaps unless `weights` has exactly the spec's leaves and shapes."""
    wanted, found = trees.flatten(spec), trees.flatten(weights)
    missing = sorted(wanted.keys() - found.keys())
    unused = sorted(found.keys() - wanted.keys())
    shared = wanted.keys() & found.keys()
    wrong = sorted(
        f"{path} {tuple(found[path].shape)}, wanted {wanted[path].shape}"
        for path in shared
        if tuple(found[path].shape) != wanted[path].shape
    )
    if missing or unused or wrong:
        gaps = [f"missing {p}" for p in missing] + [f"unused {p}" for p in unused] + [f"shape of {p}" for p in wrong]
        raise ValueError(
            f"weights do not fit the configuration: {len(shared) - len(wrong)} mapped, {len(missing)} missing, "
            f"{len(unused)} unused, {len(wrong)} of wrong shape; " + "; ".join(gaps[:20])
        )
