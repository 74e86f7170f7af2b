"""PyTorch files as torch.save writes them, without PyTorch."""

import contextlib
import io
import pathlib
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator
from unittest import mock

import numpy as np


@contextlib.contextmanager
def _names() -> Iterator[types.ModuleType]:
    """The names that such a file uses."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*arguments):
        raise AssertionError("files are read without running anything")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    vars(utils)["_rebuild_tensor_v2"] = rebuild
    storage = type("FloatStorage", (), {"__module__": "torch"})
    vars(torch).update(FloatStorage=storage, _utils=utils)
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        yield torch


class _Stored:
    def __init__(self, record: str, size: int):
        self.record, self.size = record, size


def write(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """A file of float32 tensors, strides kept."""

    class Tensor:
        def __init__(self, record: str, array: np.ndarray):
            self.record, self.array = record, array

        def __reduce__(self):
            strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
            storage = _Stored(self.record, self.array.size)
            return torch._utils._rebuild_tensor_v2, (storage, 0, self.array.shape, strides, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, _Stored):
                return ("storage", torch.FloatStorage, obj.record, "cpu", obj.size)
            return None

    buffer = io.BytesIO()
    with _names() as torch:
        named = {name: Tensor(str(i), array) for i, (name, array) in enumerate(tensors.items())}
        Pickler(buffer, protocol=2).dump(named)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", buffer.getvalue())
        for i, array in enumerate(tensors.values()):
            file.writestr(f"model/data/{i}", array.tobytes(order="A"))
