"""The pipeline draws what the sequential sampler draws, and its program is one transfer a tick."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from avatar_jax.core import check, quant
from avatar_jax.core.check import validate
from avatar_jax.core.config import Config, TrainingConfig
from avatar_jax.models import dit
from avatar_jax.stream import chain, clock, engine, pipeline, pool, rollout
from avatar_jax.stream import mesh as meshes
from avatar_jax.stream.engine import Drawn
from avatar_jax.stream.state import BlockInput, Scene, Speaker, StreamState, Weights
from tests.stream.test_session import small, weights_of

BLOCKS = 9  # the ring of 3 wraps twice


def run(steps: int = 4, **stream: object) -> TrainingConfig:
    cfg = small("timestep")
    return validate(dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, steps=steps, **stream)))


def mesh_of(**shape: int):
    return meshes.make_mesh(jax.devices()[: int(np.prod(list(shape.values())))], **shape)


def seat_of(weights: Weights, scene: Scene, mesh: Mesh, cfg: Config) -> pool.Seat:
    """One stream alone on a mesh."""
    seats = pool.Pool(engine.place(weights, mesh, cfg), mesh, list(mesh.devices[:, -1, -1, -1]), cfg)
    return seats.join(seats.act(scene))


def lowered(weights: Weights, scene: Scene, mesh: Mesh, cfg: Config):
    """A tick of one stream, compiled; and its state."""
    entering = meshes.enter([[block_of(0, cfg)]], meshes.nothing(block_of(0, cfg), 1, mesh), mesh)
    p = engine.place(weights, mesh, cfg).dit
    state = pipeline.abstract(p, scene, entering, mesh=mesh, cfg=cfg)
    return pipeline.make_tick(cfg, mesh).lower(p, state, entering).compile(), state


def block_of(number: int, cfg: Config) -> BlockInput:
    noise, sound = (jax.random.fold_in(jax.random.key(kind), number) for kind in (1, 2))
    return BlockInput(
        speakers=(Speaker(jax.random.normal(sound, (1, 17, 1, cfg.dit.audio_width))),),
        noise=jax.random.normal(noise, (1, 3, *cfg.latent_size, 16)),
        place=clock.place(number, cfg),
    )


def begin(weights: Weights, cfg: TrainingConfig, seed: int = 3) -> tuple[Scene, StreamState]:
    portrait = jax.random.uniform(jax.random.key(seed), (1, 1, cfg.video.height, cfg.video.width, 3)) * 2 - 1
    scene = rollout.view(weights.vae, portrait, cfg=cfg)
    return scene, engine.start(weights, scene, cfg)


def play(drawer: engine.Engine, cfg: TrainingConfig, later: dict[int, Scene]) -> list[np.ndarray]:
    """Latents of all blocks; `later`: scenes that begin with a block."""
    drawn: list[Drawn] = []
    for number in range(BLOCKS):
        if number in later:
            drawer.show(later[number])
        drawn += drawer.feed(block_of(number, cfg))
    drawn += drawer.drain()
    assert len(drawn) == BLOCKS
    return [np.asarray(block.latent) for block in drawn]


@pytest.mark.parametrize(("steps", "stages"), [(4, 2), (4, 4), (8, 8), (3, 1)])
@pytest.mark.parametrize("layer_loop", ["unroll", "scan"])
def test_pipeline_equals_sequential(steps: int, stages: int, layer_loop: str):
    cfg = run(steps)
    cfg = dataclasses.replace(cfg, dit=dataclasses.replace(cfg.dit, layer_loop=layer_loop))
    weights, mesh = weights_of(cfg), mesh_of(stages=stages)
    scene, state = begin(weights, cfg)
    later = {4: begin(weights, cfg, 7)[0], 5: begin(weights, cfg, 8)[0]}
    expected = play(engine.Sequential(weights, scene, state, cfg), cfg, later)
    found = play(seat_of(weights, scene, mesh, cfg), cfg, later)
    assert np.abs(expected[-1]).mean() > 0.1
    for number, (one, two) in enumerate(zip(expected, found, strict=True)):
        np.testing.assert_allclose(two, one, atol=1e-6, err_msg=f"block {number}")
    unchanged = play(engine.Sequential(weights, scene, state, cfg), cfg, {})
    assert np.abs(unchanged[3] - expected[3]).max() == 0 and np.abs(unchanged[4] - expected[4]).max() > 1e-3


@pytest.mark.parametrize(("stages", "spare"), [(4, 1), (2, 1), (2, 0), (1, 0)])
def test_chain_equals_sequential(stages: int, spare: int):
    """With a device for the decoder, or on the last stage's; and blocks come out no later than the chain is long."""
    cfg = run()
    weights, devices = weights_of(cfg), jax.devices()[: stages + spare]
    scene, state = begin(weights, cfg)
    later = {5: begin(weights, cfg, 7)[0]}
    expected = play(engine.Sequential(weights, scene, state, cfg), cfg, later)
    drawer = chain.Chained(weights, scene, state, devices if spare else [*devices, devices[-1]], cfg)
    assert [len(drawer.feed(block_of(number, cfg))) for number in range(stages + 1)] == [0] * (stages - 1) + [1, 1]
    drawer = chain.Chained(weights, scene, state, devices if spare else [*devices, devices[-1]], cfg)
    np.testing.assert_allclose(np.stack(play(drawer, cfg, later)), np.stack(expected), atol=1e-6)


def test_stages_of_two_devices():
    """Heads split over a tensor axis inside each stage: the same up to the order of sums."""
    cfg = run()
    weights, mesh = weights_of(cfg), mesh_of(stages=2, tensor=2)
    scene, state = begin(weights, cfg)
    expected = play(engine.Sequential(weights, scene, state, cfg), cfg, {})
    found = play(seat_of(weights, scene, mesh, cfg), cfg, {})
    np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=2e-5)


@pytest.mark.parametrize("kind", quant.KINDS)
def test_8_bit_weights_lie_as_their_matrices_do(kind: str):
    """Split over stages and heads, a quantised transformer draws what it draws on one device."""
    cfg = run()
    weights, mesh = weights_of(cfg), mesh_of(stages=2, tensor=2)
    eighths = quant.quantise_tree(dit.gather(weights.dit), kind)
    weights = dataclasses.replace(weights, dit=dit.lay_out(eighths, cfg.dit))
    query = engine.place(weights, mesh, cfg).dit["blocks"][0]["self"]["q"]["w"]
    assert query.value.sharding.shard_shape(query.value.shape) == (24, 48)  # [out, in], heads split
    scene, state = begin(weights, cfg)
    expected = play(engine.Sequential(weights, scene, state, cfg), cfg, {})
    found = play(seat_of(weights, scene, mesh, cfg), cfg, {})
    np.testing.assert_allclose(
        np.stack(found), np.stack(expected), atol=2e-2
    )  # sums in another order, rounded to 8 bits


def test_one_transfer_a_tick_and_memories_in_place():
    cfg = run()
    weights, mesh = weights_of(cfg), mesh_of(stages=4)
    scene, _ = begin(weights, cfg)
    program, first = lowered(weights, scene, mesh, cfg)
    text, memory = program.as_text(), program.memory_analysis()
    assert text and memory
    ops = collections.Counter(re.findall(r" (collective-permute|all-\w+|reduce-scatter|conditional)\(", text))
    assert ops == {"collective-permute": 1}
    moved = re.search(r"u8\[(\d+)\]\S* collective-permute\(", text)
    flight = jax.tree.leaves(jax.eval_shape(lambda: rollout.enter(weights.dit, block_of(0, cfg), cfg=cfg)))
    assert moved and int(moved[1]) == sum(leaf.size * leaf.dtype.itemsize for leaf in flight)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(first)) // 4  # of one stage
    assert memory.alias_size_in_bytes == held


def test_one_program_for_all_ticks():
    cfg = run()
    weights, mesh = weights_of(cfg), mesh_of(stages=2)
    scene, _ = begin(weights, cfg)
    drawer = seat_of(weights, scene, mesh, cfg)
    play(drawer, cfg, {3: scene})
    assert pipeline.make_tick(cfg, mesh)._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stages", "stream", "words"),
    [
        (3, {}, "config.mesh.stages=3: must divide config.stream.steps=4"),
        (8, {}, "config.mesh.stages=8: must divide config.stream.steps=4"),
        (2, {"history": "clean"}, "2 stages need 'timestep'"),
        (4, {"adapt_blocks": 2}, "adapt_blocks=2: 0 or at least the 4 stages"),
    ],
)
def test_a_wrong_mesh_is_refused(stages: int, stream: dict, words: str):
    with pytest.raises(ValueError, match=re.escape(words)):
        check.stages(stages, run(**stream))


def test_heads_that_do_not_divide_are_refused():
    cfg = run()
    with pytest.raises(ValueError, match=r"does not split over 4 devices of 'tensor'"):
        engine.place(weights_of(cfg), mesh_of(stages=2, tensor=4), dataclasses.replace(cfg, dit=dit_of(cfg, 50)))


def dit_of(cfg: TrainingConfig, width: int):
    return dataclasses.replace(cfg.dit, width=width)


LEAVES = st.tuples(
    st.sampled_from([np.float32, np.int32, jnp.bfloat16, np.uint8]), st.lists(st.integers(1, 4), max_size=3)
)


@given(st.lists(LEAVES, min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_packing_keeps_every_byte(leaves):
    rng = np.random.default_rng(0)
    tree = [jnp.asarray(rng.integers(0, 100, shape), dtype) for dtype, shape in leaves]
    packed = pipeline.pack(tree)
    assert packed.dtype == jnp.uint8 and packed.size == sum(leaf.nbytes for leaf in tree)
    for one, two in zip(tree, pipeline.unpack(packed, tree), strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.dtype == two.dtype
