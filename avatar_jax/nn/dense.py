"""Linear layers. Weights are [in, out]; matmuls run in the input's dtype and accumulate in float32."""

import jax
import jax.numpy as jnp

from avatar_jax.core.spec import Leaf


def spec(inputs: int, outputs: int, axes: tuple[str | None, str | None], init: str = "fan_in") -> dict[str, Leaf]:
    """Spec of y = x W + b."""
    return {"w": Leaf((inputs, outputs), axes, init), "b": Leaf((outputs,), (axes[1],), "zeros")}


def matrix_spec(inputs: int, outputs: int, axes: tuple[str | None, str | None]) -> dict[str, Leaf]:
    """Spec of y = x W."""
    return {"w": Leaf((inputs, outputs), axes)}


def apply(p: dict, x: jax.Array) -> jax.Array:
    """y = x W + b, or x W without a "b". x: [..., in] -> [..., out] in x's dtype.

    The bias is added in that dtype too: the form that matrix libraries do in the same kernel.
    """
    y = jnp.matmul(x, p["w"].astype(x.dtype))
    return y + p["b"].astype(x.dtype) if "b" in p else y
