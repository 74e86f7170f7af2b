"""Devices that share the rows of every latent frame draw what one device draws."""

import collections
import dataclasses
import re

import jax
import numpy as np
import pytest

from avatar_jax.core import check, config
from avatar_jax.core.config import TrainingConfig
from avatar_jax.nn import bands
from avatar_jax.stream import engine, pipeline
from tests.stream import algorithm_1, test_knot
from tests.stream.test_pipeline import begin, block_of, lowered, mesh_of, run, seat_of
from tests.stream.test_pool import pool_of
from tests.stream.test_session import small, weights_of

BLOCKS = 8  # the ring of 3 wraps twice


def tall(cfg: TrainingConfig, layer_loop: str = "unroll") -> TrainingConfig:
    """Four rows of tokens a frame."""
    cfg = config.sized(cfg, 64, 32)
    return check.validate(dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, layer_loop=layer_loop)))


def drawn_with(drawer: engine.Engine, cfg: TrainingConfig, other) -> np.ndarray:
    """Latents of all blocks; on the way the reference becomes the stream's own, and then the scene another."""
    drawn = []
    for number in range(BLOCKS):
        if number == 4:
            drawer.adapt()
        if number == 6:
            drawer.show(other)
        drawn += drawer.feed(block_of(number, cfg))
    return np.stack([np.asarray(block.latent) for block in drawn + drawer.drain()])


CASES = [
    ("unroll", {"stages": 1, "context": 2}),
    pytest.param("scan", {"stages": 1, "context": 4}, marks=pytest.mark.slow),
    pytest.param("unroll", {"stages": 2, "context": 4}, marks=pytest.mark.slow),
    ("scan", {"stages": 2, "context": 2}),
    ("unroll", {"stages": 2, "context": 2, "tensor": 2}),
]


@pytest.mark.parametrize(("layer_loop", "shape"), CASES)
def test_bands_equal_one_device(layer_loop: str, shape: dict):
    """Through the ring's wrap, the stream's own reference and another scene."""
    cfg = tall(run(adapt_blocks=4), layer_loop)
    weights = weights_of(cfg)
    scene, state = begin(weights, cfg)
    other, _ = begin(weights, cfg, 7)
    expected = drawn_with(engine.Sequential(weights, scene, state, cfg), cfg, other)
    found = drawn_with(seat_of(weights, scene, mesh_of(**shape), cfg), cfg, other)
    assert len(expected) == BLOCKS and np.abs(expected[-1]).mean() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 if "tensor" in shape else 1e-5)


def test_a_clean_history_in_bands():
    cfg = tall(small("clean"))
    cfg = dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, adapt_blocks=4))
    weights = weights_of(cfg)
    scene, state = begin(weights, cfg)
    expected = drawn_with(engine.Sequential(weights, scene, state, cfg), cfg, scene)
    found = drawn_with(seat_of(weights, scene, mesh_of(stages=1, context=2), cfg), cfg, scene)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_crosses_bands():
    """One transfer between stages, keys and values of every layer, and the velocity; memories are written in place."""
    cfg = tall(run())
    weights, mesh = weights_of(cfg), mesh_of(stages=4, context=2)
    program, state = lowered(weights, begin(weights, cfg)[0], mesh, cfg)
    text, memory = program.as_text(), program.memory_analysis()
    assert text and memory
    ops = collections.Counter(re.findall(r" (collective-permute|all-\w+|reduce-scatter|conditional)\(", text))
    assert ops == {"collective-permute": 1, "all-gather": 2 * cfg.dit.layers + 1}
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) // 4  # of one stage, on each device
    assert memory.alias_size_in_bytes == held


def test_cut_and_join_are_inverse():
    """Bands are rows: whole ones, in their order, of every frame."""
    mesh, x = mesh_of(stages=2, context=2), np.arange(2 * 3 * 8 * 5.0).reshape(2, 3 * 8, 5)

    def both(x, over):
        own = bands.cut(x, over, 1, 3)
        return own[None], bands.join(own, over, 1, 3)

    for over in ("context", "stage", ("stage", "context")):
        spec = jax.P(over)
        own, whole = jax.jit(  # type: ignore[misc]
            jax.shard_map(
                lambda x, o=over: both(x, o), mesh=mesh, in_specs=jax.P(), out_specs=(spec, jax.P()), check_vma=False
            )
        )(x)
        np.testing.assert_array_equal(whole, x)
        np.testing.assert_array_equal(own[0], x.reshape(2, 3, len(own), -1, 5)[:, :, 0].reshape(own[0].shape))


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ({"context": 3}, "config.mesh.context=3: must divide the 4 token rows of 64 pixels"),
        ({"context": 0}, "config.mesh.context=0: must divide"),
        ({"context": 2, "driver": "chain"}, "config.mesh.context=2: a chain has one device a stage"),
        ({"share_first": True}, "config.mesh.share_first=True: needs more than one stage"),
        ({"share_first": True, "stages": 2, "streams": 2}, "config.mesh.share_first=True: needs"),
        (
            {"share_first": True, "stages": 4, "context": 2},
            "config.mesh.stages x context=8: must divide the 4 token rows",
        ),
    ],
)
def test_a_wrong_number_of_bands_is_refused(mesh: dict, words: str):
    cfg = tall(run())
    with pytest.raises(ValueError, match=re.escape(words)):
        check.validate(dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, **mesh)))


FIRST = [
    ("unroll", {"stages": 4}),
    ("scan", {"stages": 2, "context": 2}),
    ("unroll", {"stages": 2}),
    ("unroll", {"stages": 2, "tensor": 2}),
]


@pytest.mark.parametrize(("layer_loop", "shape"), FIRST)
def test_a_first_block_drawn_by_all_stages(layer_loop: str, shape: dict):
    """It comes home when it enters, for a second stream too, whose predecessor left blocks under way."""
    cfg = tall(run(adapt_blocks=4), layer_loop)
    cfg = check.validate(dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, share_first=True, **shape)))
    weights, mesh = weights_of(cfg), mesh_of(**shape)
    (scene, state), (other, second) = begin(weights, cfg), begin(weights, cfg, 7)
    seats = pool_of(weights, cfg)
    hasty = seats.join(seats.act(other))
    assert [len(hasty.feed(block_of(number, cfg))) for number in range(2)] == [1, 0]
    hasty.close()
    for begun, start, later in ((scene, state, other), (other, second, scene)):
        expected = drawn_with(engine.Sequential(weights, begun, start, cfg), cfg, later)
        seat = seats.join(seats.act(begun))
        found = drawn_with(seat, cfg, later)
        seat.close()
        np.testing.assert_allclose(found, expected, atol=2e-5 if "tensor" in shape else 1e-5)
    assert pipeline.make_tick(cfg, mesh)._cache_size() == 1  # type: ignore[attr-defined]
    assert pipeline.make_first(cfg, mesh)._cache_size() == 1  # type: ignore[attr-defined]


def test_a_knot_in_bands():
    cfg = algorithm_1.small()
    weights, scene = algorithm_1.weights(), algorithm_1.scene_of(cfg)
    seat = seat_of(weights, scene, mesh_of(stages=1, context=2), cfg)
    found = [block.latent for number in range(5) for block in seat.feed(test_knot.block_of(number, cfg))]
    np.testing.assert_allclose(np.stack([np.asarray(one) for one in found]), test_knot.stream(cfg, 5), atol=1e-5)
