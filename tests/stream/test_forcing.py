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
from avatar_jax.stream import engine, forcing, rollout
from avatar_jax.stream.state import BlockInput, Scene
from tests.stream import algorithm_1, test_knot, test_pipeline
from tests.stream.test_pipeline import run

BLOCKS = 7


def block_of(number: int, cfg: TrainingConfig) -> BlockInput:
    return (test_knot if cfg.stream.knot else test_pipeline).block_of(number, cfg)


def task_of(p: dict, cfg: TrainingConfig, exit_step: int, blocks: int = BLOCKS) -> forcing.Task:
    latent = jax.random.normal(jax.random.key(1), (1, 1, *cfg.latent_size, 16))
    held = rollout.prefill(p, Scene(latent, latent), cfg=cfg)
    given = [block_of(number, cfg) for number in range(blocks)]
    stacked: BlockInput = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given)
    return forcing.Task(forcing.begin(p, held, cfg=cfg), stacked, None, jnp.int32(exit_step), jax.random.key(2))


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


def remembering(history: str, level: float = 0.0) -> TrainingConfig:
    cfg = run(2)
    return validate(
        dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, history=history, history_level=level))
    )


KINDS = {
    "exit step's keys": lambda: scanned(layers=2),
    "finished": lambda: remembering("clean"),
    "noised": lambda: remembering("noised", 0.3),
    "knot": algorithm_1.small,
    "long knot, uneven window": lambda: algorithm_1.small(2, 7, 2),
}
QUICK = ("exit step's keys", "long knot, uneven window")


@pytest.mark.parametrize(
    "kind", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in KINDS]
)
def test_replay_is_full_backpropagation(kind: str):
    cfg = KINDS[kind]()
    p = weights_of(cfg)
    task = jax.jit(task_of, static_argnums=(1, 2))(p, cfg, cfg.stream.steps - 1)
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


@pytest.mark.parametrize("kind", ["timestep", "clean", "knot"])
def test_a_rollout_is_a_stream_at_its_exit_step(kind: str):
    """With the last step as exit and no steps before it, a rollout draws what a stream would, block after block."""
    cfg = run(1) if kind == "timestep" else algorithm_1.small(steps=1)
    if kind == "clean":
        cfg = dataclasses.replace(run(1), stream=dataclasses.replace(run(1).stream, history="clean"))
    p, draw = weights_of(cfg), engine.kind(cfg).denoise
    task = task_of(p, cfg, 0, blocks=4)
    generate, draw = (jax.jit(each, static_argnames="cfg") for each in (forcing.generate, draw))
    video = forcing.joined(generate(p, task, cfg=cfg), cfg)
    past, drawn = task.past, []
    for number in range(4):
        past, latent = draw(p, past, block_of(number, cfg), cfg=cfg)
        drawn.append(latent)
    np.testing.assert_allclose(video, jnp.concatenate(drawn, 1), atol=1e-5)
    assert np.abs(np.diff(video, axis=1)).min() > 0.0


def test_both_predictions_of_a_knot_are_pulled():
    """Their mean is what is shown, so each gets half of its gradient; the last knot none."""
    cfg = algorithm_1.small(2, 7, 1)
    drawn = jax.random.normal(jax.random.key(0), (3, 1, 3, 2, 2, 1))
    video = forcing.joined(drawn, cfg)
    assert video.shape == (1, 6, 2, 2, 1)
    np.testing.assert_allclose(video[0, 2], (drawn[0, 0, 2] + drawn[1, 0, 0]) / 2, rtol=1e-6)
    pull = jax.grad(lambda x: forcing.joined(x, cfg).sum())(drawn)[:, 0, :, 0, 0, 0]
    np.testing.assert_array_equal(pull, [[1.0, 1.0, 0.5], [0.5, 1.0, 0.5], [0.5, 1.0, 0.0]])
