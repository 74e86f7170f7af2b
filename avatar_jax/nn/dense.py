"""Linear layers. Weights are [in, out]; matmuls run in the input's dtype and accumulate in float32."""

import jax
import jax.numpy as jnp

from avatar_jax.core import quant
from avatar_jax.core.spec import Leaf


def spec(inputs: int, outputs: int, axes: tuple[str | None, str | None], init: str = "fan_in") -> dict[str, Leaf]:
    """Spec of y = x W + b."""
    return {"w": Leaf((inputs, outputs), axes, init), "b": Leaf((outputs,), (axes[1],), "zeros")}


def matrix_spec(inputs: int, outputs: int, axes: tuple[str | None, str | None]) -> dict[str, Leaf]:
    """Spec of y = x W."""
    return {"w": Leaf((inputs, outputs), axes)}


def _product(x: jax.Array, w: jax.Array | quant.QTensor) -> jax.Array:
    if isinstance(w, quant.QTensor):
        return quant.matmul(x, w).astype(x.dtype)
    return jnp.matmul(x, w.astype(x.dtype))


def apply(p: dict, x: jax.Array) -> jax.Array:
    """y = x W + b, or x W without a "b". x: [..., in] -> [..., out] in x's dtype.

    W is an array or a `QTensor`; a grafted adapter ("lora", see core/lora.py) adds (x a) b. The bias is added in x's
    dtype too: the form that matrix libraries do in the same kernel.
    """
    y = _product(x, p["w"])
    if "lora" in p:
        y += _product(_product(x, p["lora"]["a"]), p["lora"]["b"])
    return y + p["b"].astype(x.dtype) if "b" in p else y
