"""The pipeline on one host: a program a stage on a device of its own, flights handed on by asynchronous copies.

The host only dispatches, a block's steps stage after stage, so each device starts as soon as its block is there: no
beat is shared, no stage runs on nothing, and the decoder's device holds the decoder alone. Blocks under way are bounded
by handing out a block no later than its place in the chain allows.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from avatar_jax.core import check
from avatar_jax.core.config import Config
from avatar_jax.models import dit
from avatar_jax.stream import rollout
from avatar_jax.stream.engine import Drawn, not_saved
from avatar_jax.stream.state import BlockInput, Flight, Scene, StreamState, Weights


@functools.lru_cache(maxsize=8)
def make_enter(cfg: Config):
    """`rollout.enter` compiled: (weights of the transformer, block) -> flight."""
    return jax.jit(functools.partial(rollout.enter, cfg=cfg))


@functools.lru_cache(maxsize=32)
def make_stage(cfg: Config, first: int, steps: int):
    """Steps first to first + steps of a flight, memories donated: (weights, memories, flight, cross) -> both anew."""

    def run(p: dict, memories: tuple[Any, ...], flight: Flight, cross: Any) -> tuple[tuple[Any, ...], Flight]:
        heard = dit.hear(p, flight.voices, cfg=cfg.dit)
        return rollout.advance(p, memories, flight, first, steps, heard, cross, cfg=cfg)

    run.__name__ = "steps"  # of the program, in a trace
    return rollout.make_program(run, "block", donate_argnums=1)


class Chained:
    """An engine over one device a stage, and one that decodes.

    Args:
      weights: on any device; each stage gets the transformer, the last device the VAE.
      scene: to begin with.
      begin: from `engine.start`.
      devices: one a stage, then the decoder's, which may be the last stage's.
      cfg: the run.
    """

    def __init__(self, weights: Weights, scene: Scene, begin: StreamState, devices: Sequence[Any], cfg: Config):
        *self._devices, self._decoder = devices
        self._cfg, self._steps = cfg, check.stages(len(self._devices), cfg)
        self._p = [jax.device_put(weights.dit, device) for device in self._devices]
        self._cross = [jax.device_put(scene.cross, device) for device in self._devices]
        self._memories = [
            tuple(jax.device_put(jax.tree.map(jnp.copy, begin.caches[0]), device) for _ in range(self._steps))
            for device in self._devices
        ]
        self._vae = jax.device_put(weights.vae, self._decoder)
        self._tail = jax.device_put(jax.tree.map(jnp.copy, begin.tail), self._decoder)
        self._scene, self._first = scene, None
        self._flying: collections.deque[Drawn] = collections.deque()

    def feed(self, block: BlockInput) -> list[Drawn]:
        """Dispatches a block's way through all stages; returns the block that has to be done by now."""
        flight = make_enter(self._cfg)(self._p[0], jax.device_put(block, self._devices[0]))
        for k, device in enumerate(self._devices):
            stage = make_stage(self._cfg, k * self._steps, self._steps)
            flight = jax.device_put(flight, device)
            self._memories[k], flight = stage(self._p[k], self._memories[k], flight, self._cross[k])
        latent = jax.device_put(flight.latent, self._decoder)
        self._first = latent[:, :1] if self._first is None else self._first
        self._tail, frames = rollout.make_decode(self._cfg)(self._vae, self._tail, latent)
        self._flying.append(Drawn(latent, frames))
        return [self._flying.popleft()] if len(self._flying) >= len(self._devices) else []

    def collect(self) -> list[Drawn]:
        """Nobody else draws."""
        return []

    def drain(self) -> list[Drawn]:
        """What is under way."""
        drawn, self._flying = list(self._flying), collections.deque()
        return drawn

    def show(self, scene: Scene) -> None:
        """Another scene, from the next block fed on; each stage takes it up after the blocks before."""
        self._scene = scene
        held = rollout.make_prefill(self._cfg)(self._p[0], jax.device_put(scene, self._devices[0]))
        for k, device in enumerate(self._devices):
            self._cross[k] = jax.device_put(scene.cross, device)
            refill = rollout.make_refill()
            self._memories[k] = refill(self._p[k], self._memories[k], jax.device_put(held, device))

    def adapt(self) -> None:
        """The scene with the stream's own first latent as its reference, from the next block fed on."""
        self.show(dataclasses.replace(self._scene, reference=self._first))

    def close(self) -> None:
        """What is under way is lost."""
        self._flying.clear()

    def state(self) -> Any:
        """Raises ValueError: it is spread over devices."""
        raise not_saved("on a chain of devices")

    def restore(self, found: Any) -> None:
        """Raises ValueError: it is spread over devices."""
        raise not_saved("on a chain of devices")
