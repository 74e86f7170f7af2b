"""Rename tables: for every weight of ours, the published tensor it comes from and how it is laid out there.

A table is checked both ways before anything is written: each of our weights has a source of the right shape, and no
published tensor is left over.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from avatar_jax.core import spec as specs
from avatar_jax.core import tree
from avatar_jax.io.convert.published import Published
from avatar_jax.io.errors import InputError

Change = Callable[[np.ndarray], np.ndarray]
SHOWN = 20  # gaps named in an error


def same(w: np.ndarray) -> np.ndarray:
    """As it is."""
    return w


def flat(w: np.ndarray) -> np.ndarray:
    """One dimension."""
    return w.reshape(-1)


def linear(w: np.ndarray) -> np.ndarray:
    """[out, in] to [in, out]."""
    return w.T


def patches(w: np.ndarray) -> np.ndarray:
    """A convolution with stride = kernel, [out, in, t, h, w], as a matrix [in t h w, out]."""
    return w.reshape(len(w), -1).T


def convolution(w: np.ndarray) -> np.ndarray:
    """[out, in, t, h, w] to [t, h, w, in, out]."""
    return w.transpose(2, 3, 4, 1, 0)


def convolution2d(w: np.ndarray) -> np.ndarray:
    """[out, in, h, w] to [1, h, w, in, out]."""
    return w.transpose(2, 3, 1, 0)[None]


def convolution1d(w: np.ndarray) -> np.ndarray:
    """[out, in, t] to [t, in, out]."""
    return w.transpose(2, 1, 0)


@dataclasses.dataclass(frozen=True)
class Source:
    """A published tensor: its name ("{}" stands for the layer of a stacked weight), and its way into our layout."""

    key: str
    change: Change = same
    optional: bool = False  # published with some files only; nothing of ours is made from it

    @property
    def stacked(self) -> bool:
        """Whether every layer has a tensor of its own."""
        return "{}" in self.key

    def keys(self, leaf: specs.Leaf) -> list[str]:
        """The published names, one a layer where the weight is stacked."""
        return [self.key.format(layer) for layer in range(leaf.shape[0])] if self.stacked else [self.key]

    def piece(self, leaf: specs.Leaf) -> tuple[int, ...]:
        """The shape here of what one published tensor becomes."""
        return leaf.shape[1:] if self.stacked else leaf.shape

    def pieces(self, leaf: specs.Leaf, published: Published) -> Iterator[np.ndarray]:
        """What each published tensor becomes, in its stored dtype, one at a time."""
        return (self.change(published.read(key)) for key in self.keys(leaf))


Table = Mapping[str, Source]


def dense(path: str, key: str, change: Change = linear) -> dict[str, Source]:
    """A linear layer."""
    return {f"{path}/w": Source(f"{key}.weight", change), f"{path}/b": Source(f"{key}.bias")}


def affine(path: str, key: str) -> dict[str, Source]:
    """A LayerNorm with scale and bias."""
    return {f"{path}/scale": Source(f"{key}.weight"), f"{path}/bias": Source(f"{key}.bias")}


def require(described: Mapping[str, Any], name: str, value: Any) -> None:
    """Raises InputError where a published `config.json` says something else than the one thing that is built here."""
    if name in described and described[name] != value:
        raise InputError(f"config.json: {name}={described[name]!r}: only {value!r} is supported")


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What a table found in a file."""

    mapped: int
    missing: list[str]
    unused: list[str]
    wrong: list[str]

    @property
    def complete(self) -> bool:
        """Whether every weight has its source and every tensor its use."""
        return not (self.missing or self.unused or self.wrong)

    def __str__(self) -> str:
        return (
            f"{self.mapped} mapped, {len(self.unused)} unused, {len(self.missing)} missing, "
            f"{len(self.wrong)} of wrong shape"
        )

    def require(self, origin: str) -> None:
        """Raises InputError with the counts and the first gaps unless complete."""
        if self.complete:
            return
        gaps = [f"missing {key}" for key in self.missing] + [f"wrong shape: {text}" for text in self.wrong]
        gaps += [f"unused {key}" for key in self.unused]
        raise InputError(f"{origin}: does not fit the configuration: {self}; " + "; ".join(gaps[:SHOWN]))


def _fits(source: Source, key: str, wanted: tuple[int, ...], published: Published) -> bool:
    ghost = np.broadcast_to(np.float32(0), published.shape(key))  # a shape that transposes, without memory
    try:
        return source.change(ghost).shape == wanted
    except ValueError:  # it has not even the dimensions
        return False


def cover(table: Table, spec: specs.Spec, published: Published) -> Coverage:
    """Compares names and shapes, without converting."""
    leaves, found = tree.flatten(spec), published.names()
    missing, wrong, used = [], [], set()
    for path, leaf in leaves.items():
        for key in table[path].keys(leaf):
            if key not in found:
                missing.append(key)
                continue
            used.add(key)
            if not _fits(table[path], key, table[path].piece(leaf), published):
                wrong.append(f"{key} {published.shape(key)} for {path} {leaf.shape}")
    unused = found - used - {source.key for source in table.values() if source.optional}
    return Coverage(len(used) - len(wrong), sorted(missing), sorted(unused), sorted(wrong))


def load(table: Table, spec: specs.Spec, published: Published, *, origin: str) -> dict[str, Any]:
    """The weights of `spec`, in memory, each in its leaf's dtype.

    Raises:
      InputError: a gap, with the counts and the first of them.
    """
    cover(table, spec, published).require(origin)
    weights = {}
    for path, leaf in tree.flatten(spec).items():
        weights[path] = np.empty(leaf.shape, leaf.dtype)
        places = weights[path] if table[path].stacked else weights[path][None]
        for place, value in zip(places, table[path].pieces(leaf, published), strict=True):
            place[...] = value
    return tree.unflatten({path: jnp.asarray(value) for path, value in weights.items()})
