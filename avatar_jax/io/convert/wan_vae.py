"""The Wan 2.1 VAE as published (`Wan2.1_VAE.pth`, live_avatar.md sections 4 and 13)."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.core.config import VaeConfig
from avatar_jax.core.published import WAN_VAE
from avatar_jax.io.convert import table as tables
from avatar_jax.io.convert.published import Published
from avatar_jax.io.convert.table import Source, Table, convolution, convolution2d, flat
from avatar_jax.models import vae

# Per-channel statistics of the latents: part of the published code, not of the file.
MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


def config(published: Published) -> VaeConfig:
    """The published geometry, with the width that the file has."""
    found = "encoder.conv1.bias" in published.names()
    return dataclasses.replace(WAN_VAE, width=published.shape("encoder.conv1.bias")[0]) if found else WAN_VAE


def _conv(path: str, key: str, two: bool = False) -> dict[str, Source]:
    change = convolution2d if two else convolution
    return {f"{path}/w": Source(f"{key}.weight", change), f"{path}/b": Source(f"{key}.bias")}


def _res(path: str, key: str, shortcut: bool) -> dict[str, Source]:
    table = {f"{path}/norm{i + 1}/scale": Source(f"{key}.residual.{3 * i}.gamma", flat) for i in range(2)}
    table |= _conv(f"{path}/conv1", f"{key}.residual.2") | _conv(f"{path}/conv2", f"{key}.residual.6")
    return table | (_conv(f"{path}/shortcut", f"{key}.shortcut") if shortcut else {})


def _ends(side: str) -> dict[str, Source]:
    """What encoder and decoder have alike: the first convolution, the middle, the head."""
    table = _conv(f"{side}/conv", f"{side}.conv1") | _conv(f"{side}/head/conv", f"{side}.head.2")
    table[f"{side}/head/norm/scale"] = Source(f"{side}.head.0.gamma", flat)
    table |= _res(f"{side}/middle/res1", f"{side}.middle.0", False)
    table |= _res(f"{side}/middle/res2", f"{side}.middle.2", False)
    path, key = f"{side}/middle/attention", f"{side}.middle.1"
    table[f"{path}/norm/scale"] = Source(f"{key}.norm.gamma", flat)
    return table | _conv(f"{path}/qkv", f"{key}.to_qkv", True) | _conv(f"{path}/proj", f"{key}.proj", True)


def _stages(
    side: str, module: str, widths: Sequence[tuple[float, int]], blocks: int, resample: str, temporal: tuple[bool, ...]
) -> dict[str, Source]:
    table, index = {}, itertools.count()
    for stage, (inputs, outputs) in enumerate(widths):
        for block in range(blocks):
            key = f"{side}.{module}.{next(index)}"
            table |= _res(f"{side}/stage{stage}/res{block}", key, block == 0 and inputs != outputs)
        if stage < len(temporal):
            path, key = f"{side}/stage{stage}/{resample}", f"{side}.{module}.{next(index)}"
            table |= _conv(f"{path}/conv", f"{key}.resample.1", True)
            table |= _conv(f"{path}/time", f"{key}.time_conv") if temporal[stage] else {}
    return table


def table(cfg: VaeConfig) -> Table:
    """Sources of every weight of `vae.spec(cfg)` but the statistics."""
    down = list(itertools.pairwise((1, *cfg.mult)))
    up = [(a if i == 0 else a / 2, b) for i, (a, b) in enumerate(itertools.pairwise((cfg.mult[-1], *cfg.mult[::-1])))]
    sources = {**_ends("encoder"), **_ends("decoder"), **_conv("moments", "conv1"), **_conv("latent", "conv2")}
    sources |= _stages("encoder", "downsamples", down, cfg.res_blocks, "down", cfg.temporal)
    return sources | _stages("decoder", "upsamples", up, cfg.res_blocks + 1, "up", cfg.temporal[::-1])


def spec(cfg: VaeConfig) -> dict[str, Any]:
    """The weights that the file has: `vae.spec` without the statistics."""
    return {name: leaf for name, leaf in vae.spec(cfg).items() if name != "stats"}


def statistics() -> dict[str, jax.Array]:
    """Mean and standard deviation of the published latents, [C] each."""
    return {"mean": jnp.array(MEAN), "std": jnp.array(STD)}


def load(published: Published, *, origin: str) -> tuple[dict[str, Any], VaeConfig]:
    """The published VAE: weights and configuration. Raises InputError if the file does not fit."""
    cfg = config(published)
    return tables.load(table(cfg), spec(cfg), published, origin=origin) | {"stats": statistics()}, cfg
