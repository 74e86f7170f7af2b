"""Checkpoints of a run, through Orbax, written while the next steps run.

A checkpoint is a numbered folder that appears under its number when it is whole, and leaves it in one move before it is
deleted: whenever a process is stopped, every number holds a whole checkpoint.
"""

import contextlib
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from avatar_jax.io.errors import InputError

KEPT = 2  # checkpoints
OLD = "old"  # folder of those about to be deleted
State = Any
Place = dict[str, Any]


def abstract(state: State) -> State:
    """Shapes, types and shardings of a state, without its memory."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf by its path, however the nodes on the way are called."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(re.sub(r"\W", "", str(key)) for key in path): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


class Saves:
    """The checkpoints in a folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True, todelete_subdir=OLD)
        with self._writing():
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
            good = [path.name for path in self.folder.glob("*") if path.name.isdigit()]
            kept = f"checkpoint {max(map(int, good))} is whole" if good else "there is none yet"
            advice = "make room, then repeat the command"
            raise InputError(f"{self.folder}: no checkpoint can be written ({reason}); {kept}: {advice}") from error

    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, place: Place) -> None:
        """Takes a copy of the state at once and writes it on the side; waits for the one before.

        Raises:
          InputError: this one or the one before cannot be written; those before them are whole.
        """
        items = {name: ocp.args.JsonSave(value) for name, value in place.items()}
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), **items), force=True)
            self._purge()

    def _purge(self) -> None:
        """Deletes what is in `OLD`, not the folder itself: Orbax may be moving another one there."""
        for left in (self.folder / OLD).glob("*") if jax.process_index() == 0 else []:
            shutil.rmtree(left, ignore_errors=True)

    def restore(self, step: int, target: State) -> tuple[State, Place]:
        """The state and the place at a step, laid as `target` lies (from `abstract`).

        Raises:
          InputError: the checkpoint is of another network, or cannot be read.
        """
        folder = self.folder / str(step)
        advice = f"remove it to go on from an older one, or give another --workdir than {self.folder.parent}"
        names = [path.name for path in folder.iterdir() if path.is_dir() and path.name != "state"]
        items = {name: ocp.args.JsonRestore() for name in names}
        try:
            gap = self._gap(folder, target)
            if gap:
                raise InputError(f"{folder}: a checkpoint of another network: {gap}; {advice}")
            found = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target), **items)
            )
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise InputError(f"{folder}: the checkpoint cannot be read ({reason}); {advice}") from error
        return found["state"], {name: found[name] for name in names}

    def _gap(self, folder: pathlib.Path, target: State) -> str:
        """The first array that a checkpoint holds and this run does not, or the other way round, or ''."""
        metadata = ocp.StandardCheckpointer().metadata(folder / "state")
        found, wanted = _shapes(getattr(metadata, "item_metadata", metadata)), _shapes(target)
        if not found:
            raise ValueError("it describes no arrays")
        for path in sorted(found.keys() | wanted.keys()):
            if found.get(path) != wanted.get(path):
                there, here = found.get(path, "nothing"), wanted.get(path, "nothing")
                return f"it holds {there} at {path}, where this run has {here}"
        return ""

    def finish(self) -> None:
        """Waits until all is written. Raises InputError as `save`."""
        with self._writing():
            self._manager.wait_until_finished()
            self._purge()
