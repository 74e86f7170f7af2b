"""What draws the blocks of a session: here one device, from noise to pixels; `chain` and `pool` do it on several."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from avatar_jax.core import axes, quant
from avatar_jax.core.config import Config
from avatar_jax.models import layout
from avatar_jax.nn import kv
from avatar_jax.stream import knot, rollout, saved
from avatar_jax.stream.state import BlockInput, Scene, StreamState, Tied, Weights


class Drawn(NamedTuple):
    """A finished block."""

    latent: jax.Array | None  # [B, F, h, w, C]
    frames: jax.Array | None  # uint8 [B, T, H, W, 3], perhaps still being computed; None: on another process


class Engine(Protocol):
    """Takes blocks in order and gives them back drawn, in order, at once or some blocks later."""

    def feed(self, block: BlockInput) -> list[Drawn]:
        """Starts a block; returns those that are done."""
        ...

    def collect(self) -> list[Drawn]:
        """What has been done since the last call, by somebody else's doing."""
        ...

    def drain(self) -> list[Drawn]:
        """Finishes what was fed."""
        ...

    def show(self, scene: Scene) -> None:
        """Another scene, from the next block fed on."""
        ...

    def adapt(self) -> None:
        """The scene with the stream's own first latent as its reference, from the next block fed on."""
        ...

    def close(self) -> None:
        """Gives back what the stream holds; what is under way is lost."""
        ...

    def state(self) -> Any:
        """All that the next block depends on, a tree of arrays. Raises ValueError if it cannot be had."""
        ...

    def restore(self, found: saved.Found) -> None:
        """Goes on from a `state` that was saved, before the first block. Raises ValueError if it is another's."""
        ...


ALIKE = 0.02  # of the largest number of a `likeness`: what another kind of device may round differently
Engines = Callable[[], Engine]  # one for every session

KINDS: dict[str, Any] = {"sink": rollout, "knot": knot}  # each has begin, denoise, refill and their make_*


def kind(cfg: Config) -> Any:
    """The module that draws blocks as `config.stream.engine` says."""
    return KINDS[cfg.stream.engine]


def not_saved(where: str) -> ValueError:
    """What is raised where a stream cannot be saved or resumed."""
    return ValueError(f"config.mesh: a stream {where} is neither saved nor resumed; draw it on one device")


def likeness(begin: StreamState, cfg: Config) -> np.ndarray:
    """What tells an avatar from others: a reference key of the last layer, made of weights and portrait, [B, N, K]."""
    caches = begin.caches.caches if isinstance(begin.caches, Tied) else begin.caches
    return np.asarray(kv.layer(caches[0], cfg.dit.layers - 1).reference_k[:, 0].astype(jnp.float32))


def start(weights: Weights, scene: Scene, cfg: Config) -> StreamState:
    """The state before block 0: memories with nothing but the scene in them, and a decoder that has seen it.

    Made by the programs that every engine makes it with, so all draw the same to the bit.

    Args:
      weights: networks, transformer in streaming layout.
      scene: from `rollout.view`.
      cfg: the run.
    """
    held = rollout.make_prefill(cfg)(weights.dit, scene)
    return StreamState(kind(cfg).make_begin(cfg)(weights.dit, held), rollout.make_warm(cfg)(weights.vae, scene.still))


class Sequential:
    """Every block from noise to pixels before the next."""

    def __init__(self, weights: Weights, scene: Scene, begin: StreamState, cfg: Config):
        self._weights, self._scene, self._cfg, self._begin = weights, scene, cfg, begin
        state = jax.tree.map(jnp.copy, begin)  # each block donates what it replaces
        self._caches, self._tail, self._first = state.caches, state.tail, None
        self._denoise, self._decode = kind(cfg).make_denoise(cfg), rollout.make_decode(cfg)

    def feed(self, block: BlockInput) -> list[Drawn]:
        """Draws a block."""
        latent = self.draw(block)
        return [Drawn(latent, self.picture(latent))]

    def draw(self, block: BlockInput) -> jax.Array:
        """The next block's latents [B, F, h, w, C]."""
        self._caches, latent = self._denoise(self._weights.dit, self._caches, block, self._scene.cross)
        self._first = latent[:, :1] if self._first is None else self._first
        return latent

    def picture(self, latent: jax.Array) -> jax.Array:
        """The frames of the latents that follow those before, uint8 [B, T, H, W, 3]."""
        self._tail, frames = self._decode(self._weights.vae, self._tail, latent)
        return frames

    def collect(self) -> list[Drawn]:
        """Nobody else draws."""
        return []

    def drain(self) -> list[Drawn]:
        """Nothing is left."""
        return []

    def show(self, scene: Scene) -> None:
        """Another scene, from the next block fed on."""
        p, self._scene = self._weights.dit, scene
        self._caches = kind(self._cfg).make_refill()(p, self._caches, rollout.make_prefill(self._cfg)(p, scene))

    def adapt(self) -> None:
        """The scene with the stream's own first latent as its reference, from the next block fed on."""
        self.show(dataclasses.replace(self._scene, reference=self._first))

    def close(self) -> None:
        """Nothing to give back."""

    def state(self) -> Any:
        """Memories, knot and decoder, the scene and the stream's first latent, and whose they are."""
        held = {"caches": self._caches, "tail": self._tail, "scene": self._scene, "first": self._first}
        return held | {"likeness": likeness(self._begin, self._cfg)}

    def restore(self, found: saved.Found) -> None:
        """Goes on from a `state` that was saved, before the first block. Raises ValueError if it is another's."""
        own = likeness(self._begin, self._cfg)
        if not np.abs(found["likeness"] - own).max() <= ALIKE * np.abs(own).max():
            raise ValueError("saved stream: of another portrait or checkpoint; resume it with the avatar it was of")
        self._caches, self._tail = saved.fill(self._caches, found["caches"]), saved.fill(self._tail, found["tail"])
        self._scene = saved.fill(self._scene, found["scene"])
        self._first = jnp.asarray(found["first"]) if "first" in found else None


def place(weights: Weights, mesh: Mesh, cfg: Config) -> Weights:
    """Weights where a pool needs them: the transformer on the mesh, the VAE left for the devices that decode.

    Raises:
      ValueError: heads or widths that do not split over the mesh's tensor axis.
    """
    unrolled = isinstance(weights.dit["blocks"], tuple)
    lying = layout.shardings(axes.TENSOR_PARALLEL, mesh, unrolled=unrolled, cfg=cfg.dit)

    def lay(leaf: Any, where: Any) -> Any:
        return jax.tree.map(axes.lay, leaf, quant.place(leaf, where) if isinstance(leaf, quant.QTensor) else where)

    transformer = jax.tree.map(lay, weights.dit, lying, is_leaf=lambda leaf: isinstance(leaf, quant.QTensor))
    return Weights(transformer, weights.vae)
