"""Arrays in a folder, through Orbax: a record is there whole or not at all, and an older one until then.

A record is a numbered folder inside, written under another name and renamed when it is complete; the newest is the one
that is read. So whenever a process is stopped, also while it writes, the last whole record can be read.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from avatar_jax.core import tree
from avatar_jax.io.errors import InputError

_ARRAYS, _ABOUT, _PARTIAL = "arrays", "about.json", ".partial"


def _numbers(folder: pathlib.Path) -> list[int]:
    """The whole records of a folder, oldest first."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def there(folder: pathlib.Path) -> bool:
    """Whether a folder holds a whole record; one whose first was cut short does not."""
    return bool(_numbers(folder))


def write(folder: pathlib.Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes a record in place of the former one.

    Args:
      folder: of its own; made where there is none.
      arrays: by path, `a/b/c`; of any shape, empty ones too.
      about: what JSON can hold.

    Raises:
      InputError: the folder cannot be written.
    """
    import orbax.checkpoint as ocp

    # Orbax keeps no array without elements, so the record says where they are
    empty = {name: [list(array.shape), array.dtype.name] for name, array in arrays.items() if not array.size}
    kept = tree.unflatten({name: array for name, array in arrays.items() if array.size})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"*{_PARTIAL}*"):
            shutil.rmtree(left)
        older = _numbers(folder)
        number = older[-1] + 1 if older else 0
        partial = folder.absolute() / f"{number}{_PARTIAL}"
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(partial / _ARRAYS, kept)
        (partial / _ABOUT).write_text(json.dumps({"about": dict(about), "empty": empty}))
        os.replace(partial, folder / str(number))
        for old in older:
            shutil.rmtree(folder / str(old))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error


def read(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The newest whole record: its arrays by path, and what it says about them. Raises InputError if there is none."""
    import orbax.checkpoint as ocp

    numbers = _numbers(folder)
    if not numbers:
        raise InputError(f"{folder}: holds nothing that was saved; name the folder that was saved to")
    newest = folder.absolute() / str(numbers[-1])
    try:
        said = json.loads((newest / _ABOUT).read_text())
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = tree.flatten(checkpointer.restore(newest / _ARRAYS))
        arrays = {name: np.asarray(array) for name, array in found.items()}
        arrays |= {name: np.zeros(shape, dtype) for name, (shape, dtype) in said["empty"].items()}
        return arrays, said["about"]
    except Exception as error:  # whatever lies in the folder
        raise InputError(f"{newest}: cannot be read ({type(error).__name__}); it is damaged") from error
