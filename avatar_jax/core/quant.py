"""Quantised weights: a leaf type, not a mode. `nn/dense.py` meets an array or a `QTensor` and multiplies either.

fp8 is the published way (live_avatar.md section 6.9): float8_e4m3fn with one scale a matrix, and one for the whole
input, found anew each time. The product is written as GPU compilers look for it (performance.md section 3.2): both
sides converted and scaled, then multiplied, the weight [out, in] so that no transpose is in the way.

int8 has one scale an output channel, and one a token of the input: the products sum exactly in int32, both scales
follow. It is what chips without 8-bit floats multiply fastest.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from avatar_jax.core import tree as trees

FP8, INT8 = "fp8", "int8"
KINDS = (FP8, INT8)
FP8_MAX = 448.0  # the largest float8_e4m3fn; also the cap of a scale: small weights are not stretched further
INT8_MAX = 127.0
TINY = 1e-12
FIELDS = frozenset({"value", "scale"})  # of a checkpoint's node that is a QTensor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A matrix [..., in, out] as 8-bit numbers; leading axes are layers, and slice away like an array's.

    Attributes:
      value: [..., out, in], float8_e4m3fn or int8.
      scale: float32, what a value of one stands for: [...] for fp8, [..., out] for int8.
    """

    value: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix it stands for, [..., in, out]."""
        *layers, outputs, inputs = self.value.shape
        return (*layers, inputs, outputs)

    @property
    def dtype(self) -> Any:
        """Of the values."""
        return self.value.dtype


def _to_fp8(x: Any, amax: Any, xp: Any) -> tuple[Any, Any]:
    """Values and what one stands for: the scale is min(448 / amax, 448)."""
    scale = xp.minimum(FP8_MAX / xp.maximum(amax, TINY), FP8_MAX)
    value = xp.clip(x * scale, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    return value, (1.0 / scale).astype(np.float32)


def _to_int8(x: Any, amax: Any, xp: Any) -> tuple[Any, Any]:
    scale = (xp.maximum(amax, TINY) / INT8_MAX).astype(np.float32)
    return xp.round(x / scale).astype(np.int8), scale


def _peak(x: Any, axes: tuple[int, ...], xp: Any) -> Any:
    """Largest absolute value along `axes`, which stay; without a copy of x."""
    return xp.maximum(x.max(axes, keepdims=True), -x.min(axes, keepdims=True))


def quantise(w: Any, kind: str) -> QTensor:
    """A float matrix [..., in, out] as 8-bit numbers, of numpy where `w` is.

    Raises:
      ValueError: an unknown kind.
    """
    xp = jnp if isinstance(w, jax.Array) else np
    turned = xp.swapaxes(w, -1, -2).astype(np.float32)
    if kind == FP8:
        value, scale = _to_fp8(turned, _peak(turned, (-2, -1), xp), xp)
        return QTensor(value, scale[..., 0, 0])
    if kind == INT8:
        value, scale = _to_int8(turned, _peak(turned, (-1,), xp), xp)
        return QTensor(value, scale[..., 0])
    raise ValueError(f"quantise={kind!r}: must be one of {KINDS}")


def _is_fp8(q: QTensor) -> bool:
    return q.dtype == ml_dtypes.float8_e4m3fn


def matmul(x: jax.Array, q: QTensor) -> jax.Array:
    """x W with the input quantised too. x: [..., in]; q: one matrix -> float32 [..., out].

    fp8 multiplies in x's dtype: in bfloat16 the two scales are rounded to it, at most 2^-8 of the result.
    """
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    wide = x.astype(jnp.float32)
    if _is_fp8(q):
        value, scale = _to_fp8(wide, _peak(wide, tuple(range(x.ndim)), jnp), jnp)
        left = value.astype(x.dtype) * scale.reshape(()).astype(x.dtype)
        right = q.value.astype(x.dtype) * q.scale.astype(x.dtype)
        return jax.lax.dot_general(left, right, contract, preferred_element_type=jnp.float32)
    value, scale = _to_int8(wide, _peak(wide, (-1,), jnp), jnp)
    summed = jax.lax.dot_general(value, q.value, contract, preferred_element_type=jnp.int32)
    return summed.astype(jnp.float32) * scale * q.scale


def published(path: str) -> bool:
    """Whether Live Avatar quantises a transformer's weight: the linear layers of blocks and audio injectors.

    Embeddings of text and time, the head and the audio encoder stay as they are (section 6.9).
    """
    return path.startswith(("blocks/", "audio/injectors/")) and path.endswith("/w")


def quantise_tree(p: Mapping[str, Any], kind: str, rule: Callable[[str], bool] = published) -> dict[str, Any]:
    """The same weights with those whose path `rule` accepts quantised; blocks stacked, as checkpoints hold them."""
    flat = trees.flatten(p)
    return trees.unflatten({path: quantise(leaf, kind) if rule(path) else leaf for path, leaf in flat.items()})


def fold(tree: Any) -> Any:
    """A restored checkpoint with its nodes of value and scale as QTensors."""
    if not isinstance(tree, Mapping):
        return tree
    if tree.keys() == FIELDS:
        return QTensor(**tree)
    return {name: fold(node) for name, node in tree.items()}


def place(q: QTensor, where: jax.sharding.Sharding) -> QTensor:
    """The shardings of `q`'s fields that lay out the matrix it stands for as `where` would."""
    if not isinstance(where, jax.sharding.NamedSharding):
        return QTensor(where, where)
    *layers, inputs, outputs = (*where.spec, *(None,) * (len(q.shape) - len(where.spec)))
    scale = (*layers,) if _is_fp8(q) else (*layers, outputs)
    return QTensor(*(where.update(spec=jax.P(*axes)) for axes in ((*layers, outputs, inputs), scale)))
