"""Published weight files, one tensor at a time: safetensors (one file or shards with an index) and PyTorch `.pth`."""

import json
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import safe_open

from avatar_jax.io.errors import InputError

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "BoolStorage": np.dtype(np.bool_),
}


class Published(Protocol):
    """Named tensors, read when asked for."""

    def names(self) -> set[str]:
        """Every tensor's name."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """One tensor's shape, without reading it."""
        ...

    def read(self, key: str) -> np.ndarray:
        """One tensor, in its stored dtype."""
        ...


class Tensors:
    """Tensors already in memory."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors

    def names(self) -> set[str]:
        """Every tensor's name."""
        return set(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """One tensor's shape."""
        return self._tensors[key].shape

    def read(self, key: str) -> np.ndarray:
        """One tensor."""
        return self._tensors[key]


class Safetensors:
    """Safetensors files read as one; InputError where one is missing, truncated or not safetensors."""

    def __init__(self, files: list[pathlib.Path]):
        self._files: dict[str, Any] = {}
        for path in files:
            if not path.is_file():
                raise InputError(f"{path}: no such file; the checkpoint is incomplete, download it again")
            try:
                # numpy knows no bfloat16; mapped pages would count as memory
                opened = safe_open(path, framework="flax", backend="pread")
            except Exception as error:  # safetensors raises its own Rust type
                raise InputError(f"{path}: not a whole safetensors file ({error}); download it again") from error
            self._files |= dict.fromkeys(opened.keys(), opened)

    def names(self) -> set[str]:
        """Every tensor's name."""
        return set(self._files)

    def shape(self, key: str) -> tuple[int, ...]:
        """One tensor's shape, without reading it."""
        return tuple(self._files[key].get_slice(key).get_shape())

    def read(self, key: str) -> np.ndarray:
        """One tensor, in its stored dtype."""
        return np.asarray(self._files[key].get_tensor(key))


class _Lazy:
    """Where a tensor of a `.pth` file lies."""

    def __init__(self, storage: tuple[str, np.dtype], offset: int, shape: tuple[int, ...], stride: tuple[int, ...]):
        self.record, self.dtype = storage
        self.offset, self.shape, self.stride = offset, shape, stride


def _rebuild(storage: tuple, offset: int, shape: tuple, stride: tuple, *_: Any) -> _Lazy:
    return _Lazy(storage, offset, shape, stride)


class _Safe(pickle.Unpickler):
    """Builds dicts of tensors and nothing else: any other name in the file is refused, and nothing in it is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return _rebuild if name == "_rebuild_tensor_v2" else lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a weight file")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        _, dtype, record, *_ = pid
        return f"data/{record}", dtype


class Pth:
    """A PyTorch zip checkpoint of plain tensors, read without PyTorch and without executing anything in it."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
            index = next(name for name in self._zip.namelist() if name.endswith("/data.pkl"))
            self._root = index.removesuffix("data.pkl")
            with self._zip.open(index) as file:
                tree = _Safe(file).load()
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; the checkpoint is incomplete, download it again") from error
        except pickle.UnpicklingError as error:
            raise InputError(f"{path}: refused: {error}; use a file from its publisher") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise InputError(f"{path}: not a PyTorch zip checkpoint ({error}); download it again") from error
        tensors = tree.items() if isinstance(tree, Mapping) else []
        self._tensors: dict[str, _Lazy] = {name: value for name, value in tensors if isinstance(value, _Lazy)}

    def names(self) -> set[str]:
        """Every tensor's name."""
        return set(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """One tensor's shape, without reading it."""
        return tuple(self._tensors[key].shape)

    def read(self, key: str) -> np.ndarray:
        """One tensor, in its stored dtype."""
        lazy = self._tensors[key]
        try:
            flat = np.frombuffer(self._zip.read(self._root + lazy.record), lazy.dtype)
        except (KeyError, zipfile.BadZipFile, ValueError) as error:
            raise InputError(f"{self._path}: tensor {key} is damaged ({error}); download it again") from error
        steps = tuple(step * lazy.dtype.itemsize for step in lazy.stride)
        reach = lazy.offset + sum((size - 1) * step for size, step in zip(lazy.shape, lazy.stride, strict=True)) + 1
        if 0 not in lazy.shape and (lazy.offset < 0 or min(lazy.stride, default=0) < 0 or reach > flat.size):
            raise InputError(f"{self._path}: tensor {key} reaches past its storage; download it again")
        return np.lib.stride_tricks.as_strided(flat[lazy.offset :], lazy.shape, steps).copy()


def open_published(path: pathlib.Path) -> Published:
    """A file, or a folder of safetensors with or without an index.

    Raises:
      InputError: nothing there, or a file that is missing, truncated or malicious; it is named.
    """
    if path.suffix in (".pth", ".pt", ".bin"):
        return Pth(path)
    if not path.is_dir():
        return Safetensors([path])
    indices = sorted(path.glob("*.safetensors.index.json"))
    if indices:
        try:
            shards = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{indices[0]}: not an index of shards; download it again") from error
        return Safetensors([path / pathlib.PurePosixPath(shard).name for shard in shards])
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise InputError(f"{path}: holds no .safetensors files; name the folder as downloaded")
    return Safetensors(files)
