"""A stream as a value on disk: whatever changes while it runs, by name, and the run that it belongs to.

What holds state gives it as a tree of arrays (`state()`) and takes it back as nested dicts of them (`restore(found)`);
here such a tree gets names and, where its structure is known, its structure back.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.core import fields, tree
from avatar_jax.core.config import Config
from avatar_jax.io import record
from avatar_jax.io.errors import InputError

Found = Mapping[str, Any]  # nested dicts of arrays
_ELSEWHERE = ("mesh", "data", "train")  # of a configuration: where a stream runs, and what its networks learned from


def _named(state: Any) -> dict[str, Any]:
    """The leaves of a tree by path; None and empty tuples leave no trace."""
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}


def leaves(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by path, on the host."""
    return {name: np.asarray(leaf) for name, leaf in _named(state).items()}


def fill(like: Any, found: Found) -> Any:
    """The tree `like` with the arrays that were found under its names, each a copy on the device.

    Raises:
      ValueError: other names, shapes or dtypes.
    """
    wanted, arrays = _named(like), tree.flatten(found)
    if wanted.keys() != arrays.keys():
        odd = sorted(wanted.keys() ^ arrays.keys())
        raise ValueError(f"saved stream: {len(odd)} arrays are not as in this run, {odd[0]} the first")
    for name, array in wanted.items():
        there = arrays[name]
        if (array.shape, array.dtype) != (there.shape, there.dtype):
            here, saved = (f"{side.dtype}{list(side.shape)}" for side in (array, there))
            raise ValueError(f"saved stream: {name} is {saved}, where this run has {here}")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.array(arrays[name]) for name in wanted])


def items(found: Found, name: str) -> list[Any]:
    """What was a tuple of any length, under a name that an empty one has left no trace of."""
    held = found.get(name, {})
    return [held[str(index)] for index in range(len(held))]


def _run(cfg: Config) -> dict[str, Any]:
    described = json.loads(fields.to_json(cfg))
    return {name: value for name, value in described.items() if name not in _ELSEWHERE}


def write(folder: pathlib.Path, state: Any, cfg: Config) -> None:
    """Writes the state of a stream of `cfg`, whole or not at all. Raises InputError."""
    record.write(folder, leaves(state), {"config": _run(cfg)})


def read(folder: pathlib.Path, cfg: Config) -> dict[str, Any]:
    """The state that was saved of a stream of `cfg`. Raises InputError if there is none, or one of another run."""
    arrays, about = record.read(folder)
    saved, here = tree.flatten(about.get("config", {})), tree.flatten(_run(cfg))
    for field in [name for name in here if name == "name"] + sorted(here.keys() | saved.keys()):
        if saved.get(field) != here.get(field):
            name, values = field.replace("/", "."), f"{saved.get(field)!r}, where this one has {here.get(field)!r}"
            raise InputError(f"{folder}: saved from a run with config.{name}={values}; choose the --config it had")
    return tree.unflatten(arrays)
