"""A self-forced rollout's gradient, one block at a time, is the gradient of the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import spec
from avatar_jax.core.check import validate
from avatar_jax.core.config import TrainingConfig
from avatar_jax.models import dit
from avatar_jax.stream import forcing, rollout
from avatar_jax.stream.state import BlockInput, Scene
from tests.stream.test_pipeline import block_of, run

BLOCKS = 7


def task_of(p: dict, cfg: TrainingConfig, exit_step: int, blocks: int = BLOCKS) -> forcing.Task:
    latent = jax.random.normal(jax.random.key(1), (1, 1, *cfg.latent_size, 16))
    held = rollout.prefill(p, Scene(latent, latent), cfg=cfg)
    given = [block_of(number, cfg) for number in range(blocks)]
    stacked: BlockInput = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
    (memory,) = rollout.begin(p, held, 1, cfg=cfg)
    return forcing.Task(memory, stacked, None, jnp.int32(exit_step), jax.random.key(2))


def weights_of(cfg: TrainingConfig) -> dict:
    drawn = spec.init(dit.spec(cfg.dit), jax.random.key(0))
    return dit.lay_out(
        jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), drawn), cfg.dit
    )


def loss(generate, p: dict, task: forcing.Task, cfg: TrainingConfig) -> jax.Array:
    """Anything whose gradient differs from block to block."""
    drawn = generate(p, task, cfg=cfg)
    weight = jnp.arange(1, len(drawn) + 1)[:, None, None, None, None, None]
    return jnp.mean(jnp.square(drawn - jnp.roll(drawn, 1, 0)) * weight)


SLOW = [pytest.param(loop, step, marks=pytest.mark.slow) for loop, step in (("unroll", 3), ("scan", 0))]


@pytest.mark.parametrize(("layer_loop", "exit_step"), [("scan", 2), *SLOW])
def test_replay_is_full_backpropagation(layer_loop: str, exit_step: int):
    cfg = run(4)
    cfg = validate(dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, layer_loop=layer_loop)))
    p = weights_of(cfg)
    task = task_of(p, cfg, exit_step)
    whole, replay = (
        jax.jit(jax.value_and_grad(functools.partial(loss, generate, task=task, cfg=cfg)))(p)
        for generate in (forcing.generate_whole, forcing.generate)
    )
    np.testing.assert_allclose(replay[0], whole[0], rtol=1e-6)
    norm = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole[1]))
    assert norm > 1e-3
    for one, two in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(replay[1]), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5 * norm)


def scanned(layers: int) -> TrainingConfig:
    cfg = run(4)
    return validate(dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, layers=layers, layer_loop="scan")))


def temporaries(cfg: TrainingConfig) -> list[int]:
    """Bytes that the gradient needs beside its input and output: by full backpropagation, and by replay."""
    p, needed = weights_of(cfg), []
    task = task_of(p, cfg, 1)
    for generate in (forcing.generate_whole, forcing.generate):
        compiled = jax.jit(jax.grad(functools.partial(loss, generate, cfg=cfg))).lower(p, task).compile()
        memory = compiled.memory_analysis()
        assert memory
        needed.append(memory.temp_size_in_bytes)
    return needed


@pytest.mark.slow
def test_replay_needs_the_memory_of_one_block():
    whole, replay = temporaries(scanned(layers=4))
    assert replay <= whole / 3


def test_a_rollout_is_a_stream_at_its_exit_step():
    """With the last step as exit and the noise between steps as given, block 0 is what a sampler would draw."""
    cfg = run(1)
    p = weights_of(cfg)
    task = task_of(p, cfg, 0, blocks=3)
    drawn = forcing.generate(p, task, cfg=cfg)
    memories = (task.memory,)
    for number in range(3):
        memories, latent = rollout.denoise(p, memories, block_of(number, cfg), cfg=cfg)
        np.testing.assert_allclose(drawn[number], latent, atol=1e-5)
