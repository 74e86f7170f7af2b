"""Weight files: nested dicts as safetensors with `a/b/c` names, written whole or not at all."""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from avatar_jax.core import spec as specs
from avatar_jax.core import tree


def save(path: pathlib.Path, weights: Mapping[str, Any], *, dtype: str = "float32") -> None:
    """Writes `weights` in `dtype`; a failure leaves nothing under the final name."""
    flat = {name: np.asarray(value, dtype) for name, value in tree.flatten(weights).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(flat, partial)
    os.replace(partial, path)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"no weights at {path}; train them or pass another --checkpoint")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own Rust type
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def load(path: pathlib.Path, spec: specs.Spec) -> dict[str, Any]:
    """Reads weights, checks them against `spec` and casts each to its leaf's dtype.

    Raises:
      ValueError: the file is missing, unreadable, or does not fit the spec (counts and first gaps named).
    """
    flat = _read(path)
    weights = tree.unflatten(flat)
    try:
        specs.check(spec, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    leaves = tree.flatten(spec)
    return tree.unflatten({name: jnp.asarray(value, leaves[name].dtype) for name, value in flat.items()})


def into(weights: Mapping[str, Any], path: pathlib.Path, wider: Collection[str] = ()) -> dict[str, Any]:
    """`weights` with every leaf that the file has in the file's place: a larger network starts from a smaller one.

    wider: matrices that may have more inputs than the file's; those begin as zeros, as if they were not there.

    Raises:
      ValueError: the file is missing, unreadable, or has a leaf that `weights` has not, or has in another shape.
    """
    flat, found = tree.flatten(weights), _read(path)
    for name, value in found.items():
        wanted = flat[name].shape if name in flat else None
        if name in wider and wanted and len(value) < wanted[0]:
            value = np.pad(value, ((0, wanted[0] - len(value)), (0, 0)))
        if wanted != value.shape:
            raise ValueError(f"{path}: {name} is {value.shape}, the configuration has {wanted or 'no such weight'}")
        flat[name] = jnp.asarray(value, flat[name].dtype)
    return tree.unflatten(flat)
