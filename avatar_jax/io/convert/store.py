"""Converted weights as an Orbax checkpoint, written one published tensor at a time.

Orbax saves a tree that is all in memory; a 33 GB transformer need not be. So Orbax writes the checkpoint's structure,
and each array is then written into it layer by layer, in the chunks it is read in. What was finished is noted, and a
run that was stopped goes on from there. The folder gets its name when it is complete.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from avatar_jax.core import quant, tree
from avatar_jax.core import spec as specs
from avatar_jax.io.convert.published import Published
from avatar_jax.io.convert.table import Table
from avatar_jax.io.errors import InputError

PROGRESS = "progress.json"
_HEADER, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"
Report = Callable[[int, int], None]


def partial(folder: pathlib.Path) -> pathlib.Path:
    """Where an unfinished conversion to `folder` lies."""
    return folder.with_name(folder.name + ".partial")


def _skeleton(folder: pathlib.Path, names: list[str]) -> None:
    """The structure: every array with one element, to be replaced; neither time nor place, so that runs are equal."""
    empty = tree.unflatten(dict.fromkeys(names, np.zeros(1, np.float32)))
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(empty))
    header = json.loads((folder / _HEADER).read_text())
    header |= {name: 0 for name in header if name.endswith("timestamp_nsecs")}
    (folder / _HEADER).write_text(json.dumps(header, sort_keys=True))
    (folder / _COMMITTED).write_text("committed")


def _create(folder: pathlib.Path, path: str, piece: np.ndarray, layers: int | None = None) -> Any:
    """An empty array of the checkpoint: of one piece, or of as many as there are layers, chunked by layer."""
    shape, chunk = (piece.shape, piece.shape) if layers is None else ((layers, *piece.shape), (1, *piece.shape))
    described = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str((folder / path.replace("/", ".")).absolute())},
        "metadata": {"chunks": list(chunk), "compressor": {"id": "zstd", "level": 1}},
        "recheck_cached_data": False,
    }
    opened = ts.open(ts.Spec(described), shape=shape, dtype=ts.dtype(piece.dtype), create=True, delete_existing=True)
    return opened.result()


@dataclasses.dataclass(frozen=True)
class Form:
    """How weights are written.

    Attributes:
      dtype: of every array that is not quantised; None keeps the stored ones.
      quantise: one of `quant.KINDS` for the weights that `quant.published` names, or None.
    """

    dtype: Any = None
    quantise: str | None = None

    def kind(self, path: str) -> str | None:
        """How a weight is quantised, or None."""
        return self.quantise if quant.published(path) else None

    def names(self, path: str) -> list[str]:
        """The arrays of a weight: itself, or the fields of a `QTensor`."""
        return [path] if self.kind(path) is None else [f"{path}/{field}" for field in sorted(quant.FIELDS)]


STORED = Form()


def _write(folder: pathlib.Path, path: str, leaf: specs.Leaf, table: Table, published: Published, form: Form) -> None:
    """One weight, a layer at a time; the scales of a quantised one, which are small, at the end."""
    kind, layers = form.kind(path), leaf.shape[0] if table[path].stacked else None
    array, scales = None, []
    for layer, piece in enumerate(table[path].pieces(leaf, published)):
        if kind is not None:
            quantised = quant.quantise(piece, kind)
            piece = quantised.value
            scales.append(quantised.scale)
        elif form.dtype is not None:
            piece = piece.astype(form.dtype)
        piece = np.ascontiguousarray(piece)
        if array is None:
            array = _create(folder, form.names(path)[-1], piece, layers)
        (array if layers is None else array[layer]).write(piece).result()
    if kind is not None:
        scale = scales[0] if layers is None else np.stack(scales)
        _create(folder, form.names(path)[0], scale).write(scale).result()


def write(
    folder: pathlib.Path,
    spec: specs.Spec,
    table: Table,
    published: Published,
    *,
    origin: dict[str, Any],
    form: Form = STORED,
    report: Report = lambda done, total: None,
) -> None:
    """Converts into a new folder.

    Args:
      folder: gets its name when all of it is there.
      spec: our weights.
      table: where each comes from; checked by the caller (`table.cover`).
      published: the files.
      origin: what is converted (files, sizes, settings); a stopped run is taken up only if it is the same.
      form: how they are written.
      report: called with the arrays done and their number.
    """
    leaves, unfinished = tree.flatten(spec), partial(folder)
    note, done = unfinished / PROGRESS, list[str]()
    if note.is_file():
        left = json.loads(note.read_text())
        done = left["done"] if left["origin"] == origin else []
    if not done:
        shutil.rmtree(unfinished, ignore_errors=True)
        _skeleton(unfinished, [name for path in leaves for name in form.names(path)])
    for path, leaf in leaves.items():
        if path not in done:
            _write(unfinished, path, leaf, table, published, form)
            done.append(path)
            rewritten = note.with_suffix(".new")
            rewritten.write_text(json.dumps({"origin": origin, "done": done}))
            os.replace(rewritten, note)
        report(len(done), len(leaves))
    note.unlink()
    os.replace(unfinished, folder)


def _restore_args(stored: Mapping[str, Any], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """Where each array of a checkpoint goes. Raises ValueError for a sharding that is missing or does not divide."""
    leaves, wanted = tree.flatten(stored), tree.flatten(shardings)
    odd = sorted(leaves.keys() ^ wanted.keys())
    if odd:
        raise ValueError(f"shardings: one a weight is needed; {len(odd)} do not match: {', '.join(odd[:20])}")
    flat = {}
    for path, leaf in leaves.items():
        one = wanted[path]
        if isinstance(leaf, quant.QTensor):
            placed = one if isinstance(one, quant.QTensor) else quant.place(leaf, one)
            flat |= {f"{path}/{field}": (getattr(leaf, field), getattr(placed, field)) for field in quant.FIELDS}
        else:
            flat[path] = (leaf, one)
    for path, (array, sharding) in flat.items():
        try:
            sharding.shard_shape(tuple(array.shape))
        except ValueError as error:
            raise ValueError(f"shardings: {path}: {error}") from error
    return tree.unflatten({path: ocp.ArrayRestoreArgs(sharding=sharding) for path, (_, sharding) in flat.items()})


def _stored(folder: pathlib.Path) -> dict[str, Any]:
    """Shapes and dtypes of what a checkpoint holds, from the arrays' own headers."""
    flat = {}
    for header in folder.glob("*/.zarray"):
        try:
            about = json.loads(header.read_text())
            array = jax.ShapeDtypeStruct(tuple(about["shape"]), np.dtype(about["dtype"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{header}: cannot be read ({type(error).__name__}); convert it again") from error
        flat[header.parent.name.replace(".", "/")] = array
    return quant.fold(tree.unflatten(flat))


def load(folder: pathlib.Path, spec: specs.Spec, shardings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A converted checkpoint, checked against `spec` before anything is read.

    Args:
      folder: the checkpoint.
      spec: the weights it should hold.
      shardings: a `jax.sharding.Sharding` for each leaf of `spec`, or None. With them every device's part is read
        straight to it and no host holds a whole array; a `QTensor` is laid out as the matrix it stands for.

    Returns:
      the weights in the stored dtypes, numpy arrays or, with `shardings`, `jax.Array`s; `QTensor`s of them.

    Raises:
      InputError: it is missing, unreadable or for another configuration.
      ValueError: `shardings` do not fit the weights.
    """
    if not (folder / _HEADER).is_file():
        raise InputError(f"{folder}: no converted checkpoint; make one with python -m infer.convert")
    stored = _stored(folder)
    try:
        specs.check(spec, stored)
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from error
    where = None if shardings is None else _restore_args(stored, shardings)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as checkpointer:
            return quant.fold(checkpointer.restore(folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=where)))
    except Exception as error:  # whatever lies in the folder
        raise InputError(f"{folder}: cannot be read ({type(error).__name__}); convert it again") from error
