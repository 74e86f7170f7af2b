"""Where the transformer's weights lie on a mesh, in whichever layout they run."""

from jax.sharding import Mesh

from avatar_jax.core import axes
from avatar_jax.core.config import DitConfig
from avatar_jax.models import dit


def shardings(rules: axes.Rules, mesh: Mesh, *, unrolled: bool, cfg: DitConfig) -> dict:
    """The sharding of every weight, blocks stacked or `unrolled`. Raises ValueError as `axes.partition`."""
    lying = axes.shardings(dit.spec(cfg), rules, mesh)
    if not unrolled:
        return lying
    lying["blocks"] = (axes.one_layer(lying["blocks"]),) * cfg.layers
    if "audio" in lying:
        injectors = axes.one_layer(lying["audio"]["injectors"])
        lying["audio"] |= {"injectors": (injectors,) * len(cfg.audio_inject)}
    return lying
