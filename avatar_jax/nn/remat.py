"""What a layer keeps of its forward pass for its backward pass, and what it computes again, by name.

"none"      keeps everything.
"products"  keeps the results of linear layers and computes the rest again: attention's scores, norms, gates.
"attended"  keeps the layer's input and what its attention mixed.
"layer"     keeps the layer's input alone.

Each takes less memory than the one above it and computes more.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

_ATTENDED = "attended"
_POLICIES: dict[str, Any] = {
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attended": jax.checkpoint_policies.save_only_these_names(_ATTENDED),
    "layer": jax.checkpoint_policies.nothing_saveable,
}


def attended(x: jax.Array) -> jax.Array:
    """Marks what attention mixed; the same array."""
    return checkpoint_name(x, _ATTENDED)


def wrap(body: Callable, name: str) -> Callable:
    """A layer's body, its gradient under the named policy; "none" leaves it as it is."""
    return body if name == "none" else jax.checkpoint(body, policy=_POLICIES[name])
