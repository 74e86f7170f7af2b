"""LoRA files in the peft layout (live_avatar.md section 1.10): merged into published weights as these are read, or kept
apart as adapters of ours.

W <- round(float32(W) + (alpha / rank) (B A))     the product in float32, rounded once to W's dtype
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from avatar_jax.core import lora as adapting
from avatar_jax.core import spec as specs
from avatar_jax.core import tree
from avatar_jax.io.convert.published import Published
from avatar_jax.io.convert.table import Source, Table, linear
from avatar_jax.io.errors import InputError

PREFIX = "base_model.model."
DOWN, UP = ".lora_A", ".lora_B"
SHOWN = 20  # names in an error


def _plain(name: str) -> str:
    """A file's name without the prefix, the adapter's name and the wrapper's layer."""
    name = name.removeprefix(PREFIX).replace(".default.weight", ".weight").replace(".base_layer.", ".")
    return name.removesuffix(".weight") if name.endswith((f"{DOWN}.weight", f"{UP}.weight")) else name


def _stored(lora: Published) -> dict[str, str]:
    """The file's names by their plain form."""
    return {_plain(name): name for name in lora.names()}


@dataclasses.dataclass(frozen=True)
class Merged:
    """A checkpoint with a LoRA file merged in: reads like the checkpoint.

    Attributes:
      base: the checkpoint.
      lora: the file of adapters; whole tensors in it replace the checkpoint's before merging.
      alpha: numerator of the scale (64 for Live Avatar, whose rank is 128).

    Raises:
      InputError: an adapter for a tensor that the checkpoint does not have, of another shape, or without its pair.
    """

    base: Published
    lora: Published
    alpha: float

    def __post_init__(self) -> None:
        modules = {name.removesuffix(DOWN).removesuffix(UP) for name in self._adapters}
        whole = {name for name in self._stored if not name.endswith((DOWN, UP))}
        known = self.base.names()
        strangers = sorted({f"{module}.weight" for module in modules} - known | whole - known)
        if strangers:
            names = ", ".join(strangers[:SHOWN])
            raise InputError(f"the LoRA is for another model: it adapts {len(strangers)} tensors not there: {names}")
        for module in sorted(modules):
            self._check(module)

    @functools.cached_property
    def _stored(self) -> dict[str, str]:
        return _stored(self.lora)

    @property
    def _adapters(self) -> list[str]:
        return [name for name in self._stored if name.endswith((DOWN, UP))]

    def _check(self, module: str) -> None:
        sides = [self._stored.get(module + side) for side in (DOWN, UP)]
        if None in sides:
            raise InputError(f"the LoRA has only one half of {module}; download it again")
        (rank, inputs), (outputs, other) = (self.lora.shape(side) for side in sides if side is not None)
        wanted = self.base.shape(f"{module}.weight")
        if rank != other or wanted != (outputs, inputs):
            raise InputError(f"the LoRA is for another model: {module} {(outputs, inputs)} where it has {wanted}")

    def names(self) -> set[str]:
        """Every tensor's name: the checkpoint's."""
        return self.base.names()

    def shape(self, key: str) -> tuple[int, ...]:
        """One tensor's shape."""
        return self.base.shape(key)

    def read(self, key: str) -> np.ndarray:
        """One tensor, merged, in the checkpoint's dtype."""
        stored, module = self._stored, key.removesuffix(".weight")
        base = self.base.read(key)
        base = self.lora.read(stored[key]).astype(base.dtype) if key in stored else base
        if module + DOWN not in stored:
            return base
        down, up = (self.lora.read(stored[module + side]).astype(np.float32) for side in (DOWN, UP))
        return (base.astype(np.float32) + (up @ down) * np.float32(self.alpha / len(down))).astype(base.dtype)


def _adapter(path: str, leaf: specs.Leaf, source: Source, lora: Published) -> dict[str, np.ndarray]:
    """One weight's adapter, layers stacked as the weight's are; nothing where the file has none for it."""
    stored, modules = _stored(lora), [key.removesuffix(".weight") for key in source.keys(leaf)]
    names = [module + side for module in modules for side in (DOWN, UP)]
    missing = [name for name in names if name not in stored]
    if len(missing) == len(names):
        return {}
    if missing:
        raise InputError(f"the LoRA leaves out {', '.join(missing[:SHOWN])}; merge it with infer.convert --lora")
    node, (inputs, outputs) = f"{path.removesuffix('/w')}/{adapting.NODE}", leaf.shape[-2:]
    found = {}
    for side, part in (("a", DOWN), ("b", UP)):
        layers = [lora.read(stored[module + part]).T for module in modules]
        found[f"{node}/{side}"] = np.stack(layers) if source.stacked else layers[0]
    a, b = found.values()
    if (a.shape[-2], b.shape[-1]) != (inputs, outputs) or a.shape[-1] != b.shape[-2]:
        raise InputError(f"the LoRA is for another model: {modules[0]} {a.shape} {b.shape} for {path} {leaf.shape}")
    return found


def adapters(lora: Published, base: specs.Spec, table: Table) -> dict[str, Any]:
    """A LoRA file as adapters that `core/lora.py` grafts, in its stored dtypes.

    Args:
      lora: the file.
      base: spec of the weights it adapts.
      table: where those come from.

    Raises:
      InputError: it adapts something else, or only some layers of a weight, or holds whole tensors.
    """
    flat, known = {}, set()
    for path, leaf in tree.flatten(base).items():
        if table[path].change is linear:
            flat |= _adapter(path, leaf, table[path], lora)
            known |= {key.removesuffix(".weight") + side for key in table[path].keys(leaf) for side in (DOWN, UP)}
    strangers = sorted(_stored(lora).keys() - known)
    if strangers:
        names = ", ".join(strangers[:SHOWN])
        raise InputError(f"the LoRA holds {len(strangers)} tensors that are no adapters of this model: {names}")
    return tree.unflatten(flat)
