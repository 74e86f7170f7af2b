"""Training on meshes: what lies where, and that nothing but the time depends on it."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import axes, check, spec
from avatar_jax.core.config import TrainingConfig, TrainMesh
from avatar_jax.data import latents
from avatar_jax.models import dit, layout, mel
from configs import live_avatar_14b
from tests.train import mini
from train import loop, optim, pretrain
from train import mesh as meshes

EIGHT = TrainMesh(data=2, fsdp=2, tensor=2)


def run_of(shape: TrainMesh, **dit_fields: Any) -> TrainingConfig:
    cfg = mini.get_config()
    train = dataclasses.replace(cfg.train, mesh=shape)
    return check.validate(dataclasses.replace(cfg, train=train, dit=dataclasses.replace(cfg.dit, **dit_fields)))


def fresh(cfg: TrainingConfig) -> optim.TrainState:
    drawn = spec.init(dit.spec(cfg.dit), jax.random.key(cfg.data.seed))
    return optim.empty(dit.lay_out(drawn, cfg.dit), cfg.train.dit)


def where(cfg: TrainingConfig, mesh: jax.sharding.Mesh) -> dict:
    return layout.shardings(meshes.RULES, mesh, unrolled=cfg.dit.layer_loop == "unroll", cfg=cfg.dit)


def window(cfg: TrainingConfig, rows: int) -> dict[str, Any]:
    rng, frames = np.random.default_rng(0), cfg.train.dit_blocks * cfg.stream.block_latents

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=(rows, *shape)).astype(np.float32)

    picture = (*cfg.latent_size, cfg.dit.latent_channels)
    heard = drawn(1, cfg.stream.audio_context + 4 * frames, 1, cfg.dit.audio_width)
    named = {"latent": drawn(frames, *picture), "reference": drawn(1, *picture), "features": heard}
    return named | {"signals": {}, "performed": np.zeros((rows, 1), bool)}


def test_a_large_model_is_shared_out():
    """A device of four that share the weights of S2V-14B holds little more than a quarter of them."""
    cfg, mesh = live_avatar_14b.get_config().dit, meshes.make_mesh(EIGHT)
    lying = layout.shardings(meshes.RULES, mesh, unrolled=False, cfg=cfg)
    leaves = list(zip(*map(jax.tree.leaves, (lying, spec.abstract(dit.spec(cfg)))), strict=True))
    held, whole = (
        sum(map(math.prod, shapes))
        for shapes in ([on.shard_shape(leaf.shape) for on, leaf in leaves], [leaf.shape for _, leaf in leaves])
    )
    assert whole > 14e9 and held < 0.27 * whole


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_moments_lie_as_their_weights(layers: str):
    cfg = run_of(EIGHT, layer_loop=layers)
    mesh = meshes.make_mesh(EIGHT)
    state = jax.eval_shape(functools.partial(fresh, cfg))
    lying = meshes.lying(state, where(cfg, mesh), mesh)
    found = [
        (path, on.spec)
        for path, on in jax.tree_util.tree_flatten_with_path(lying)[0]
        if "'ffn'" in str(path) and "'in'" in str(path) and "'w'" in str(path)
    ]
    moments = 3 if layers == "scan" else 3 * cfg.dit.layers  # weights, their average, Muon's momentum
    assert len(found) == moments and {spec[-2:] for _, spec in found} == {("fsdp", "tensor")}


def test_too_many_devices():
    with pytest.raises(ValueError, match="2 x 4 x 2 = 16, but there are 8 devices"):
        meshes.make_mesh(TrainMesh(2, 4, 2))
    with pytest.raises(ValueError, match=r"config.train.mesh.tensor=4: must divide config.dit.heads=2"):
        run_of(TrainMesh(tensor=4))
    with pytest.raises(ValueError, match=r"config.train.dit.batch=8: must be a multiple of 16"):
        run_of(TrainMesh(data=16))


def test_a_step_knows_its_mesh():
    """Kernels that XLA cannot partition ask for it while they are traced."""
    mesh = meshes.make_mesh(TrainMesh(fsdp=2, tensor=2))
    state = jax.device_put({"w": jnp.ones(4)}, meshes.everywhere(mesh))

    def step(state: dict, batch: jax.Array, key: jax.Array, base: jax.Array) -> tuple[dict, dict]:
        del key
        split = jax.sharding.PartitionSpec("fsdp")
        own = jax.shard_map(lambda rows: jnp.full(rows.shape, len(rows)), in_specs=split, out_specs=split)(batch)
        return state, {"rows": own.max() + base}

    batch = meshes.spread(np.zeros(8, np.float32), mesh)
    _, scalars = meshes.make_step(step, state, mesh)(state, batch, jax.random.key(0), jnp.int32(10))
    assert int(scalars["rows"]) == 14


def test_tokens_are_split_between_layers():
    """Where a mesh is told and they divide; else the stream stays as it is."""
    mesh = meshes.make_mesh(TrainMesh(data=2, tensor=2))

    def spread(x: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return axes.spread_tokens(x)

    x, uneven = (jax.device_put(jnp.ones((2, tokens, 4)), meshes.everywhere(mesh)) for tokens in (6, 5))
    assert jax.jit(spread)(x).sharding.shard_shape(x.shape) == (1, 3, 4)
    assert jax.jit(spread)(uneven).sharding.shard_shape(uneven.shape) == uneven.shape
    assert jax.jit(axes.spread_tokens)(x).sharding.shard_shape(x.shape) == x.shape


def test_processes_share_a_batch():
    """Their parts, one after the other, are the batch."""
    rows = grain.MapDataset.range(24).repeat()
    parts: list[Any] = [meshes.Share(index, 2).of(rows.batch(3)) for index in range(2)]
    for step in (0, 1, 5):
        shared = np.concatenate([part[step] for part in parts])
        np.testing.assert_array_equal(shared, rows.batch(6)[step])
    assert meshes.share(8, meshes.make_mesh(EIGHT)) == (0, 1)


def test_pieces_make_the_gradient_of_the_batch():
    keys = jax.random.split(jax.random.key(0), 3)
    weights = {"w": jax.random.normal(keys[0], (5, 4))}
    batch = {"x": jax.random.normal(keys[1], (12, 5)), "y": jax.random.normal(keys[2], (12, 4))}

    def loss(p: dict, rows: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        del key
        error = jnp.square(jnp.tanh(rows["x"] @ p["w"]) - rows["y"]).mean()
        return error, {"loss": error}

    whole, pieces = (optim.gradient(loss, weights, batch, jax.random.key(1), pieces=n) for n in (1, 4))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), whole, pieces)


def trained(shape: TrainMesh, folder: pathlib.Path, steps: int) -> optim.TrainState:
    """The state after some steps of stage one on a mesh, gathered."""
    cfg, mesh = run_of(shape), meshes.make_mesh(shape)
    state = meshes.make_state(functools.partial(fresh, cfg), where(cfg, mesh), mesh)
    step = meshes.make_step(functools.partial(pretrain.step, cfg=cfg), state, mesh)
    data = latents.window_dataset(folder, cfg, silence=mel.silence(cfg.mel), batch=cfg.train.dit.batch)
    batches, key = loop.batches(data, threads=1, prefetch=1), jax.random.key(0)
    for number in range(steps):
        state, _ = step(state, meshes.spread(next(batches), mesh), jax.random.fold_in(key, number))
    return meshes.whole(state)


def apart(one: optim.TrainState, other: optim.TrainState) -> float:
    """The largest difference of any weight."""
    pairs = zip(jax.tree.leaves(one.weights), jax.tree.leaves(other.weights), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.slow
def test_eight_devices_equal_one(tmp_path: pathlib.Path):
    mini.write_latents(tmp_path, mini.get_config())
    one, eight = (trained(shape, tmp_path, 20) for shape in (TrainMesh(), EIGHT))
    assert apart(one, eight) <= 1e-5


@pytest.mark.slow
def test_remat_keeps_less_and_changes_nothing():
    """A deeper transformer, so that what its layers keep is most of what its gradient needs."""
    found = {}
    for name in check.REMATS:
        cfg = run_of(TrainMesh(), remat=name, layers=8, audio_inject=(7,))
        p, batch = fresh(cfg).weights, window(cfg, 2)
        p = jax.tree.map(lambda leaf: leaf + 0.01, p)  # the head begins at zero
        gradient = jax.grad(functools.partial(pretrain.loss_fn, cfg=cfg), has_aux=True)
        program: Any = jax.jit(gradient).lower(p, batch, jax.random.key(1)).compile()
        found[name] = program(p, batch, jax.random.key(1))[0], program.memory_analysis().temp_size_in_bytes
    for gradient, _ in found.values():
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), gradient, found["none"][0])
    sizes = {name: size for name, (_, size) in found.items()}
    assert sizes["none"] > sizes["products"] > sizes["attended"] > sizes["layer"], sizes


@pytest.mark.slow
def test_half_precision_keeps_its_masters():
    cfg = run_of(TrainMesh(), compute_dtype="bfloat16")
    state, losses = fresh(cfg), []
    for _ in range(12):
        state, scalars = pretrain.step(state, window(cfg, 8), jax.random.key(3), cfg=cfg)
        losses.append(float(scalars["loss"]))
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds == {jnp.dtype("float32")}
    assert losses[-1] < losses[0]
