"""Streams that share a mesh know nothing of each other: each draws what it draws alone."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from avatar_jax.core.check import validate
from avatar_jax.core.config import TrainingConfig
from avatar_jax.stream import engine, pool
from avatar_jax.stream import mesh as meshes
from avatar_jax.stream.state import BlockInput, Scene, Weights
from tests.stream import algorithm_1, test_knot
from tests.stream.test_pipeline import begin, block_of, run
from tests.stream.test_session import small, weights_of


def with_seats(cfg: TrainingConfig, streams: int, **shape: int) -> TrainingConfig:
    return validate(dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, streams=streams, **shape)))


def make_mesh(cfg: TrainingConfig) -> Mesh:
    return meshes.make_mesh_of(jax.devices()[: cfg.mesh.devices], cfg)


def pool_of(weights: Weights, cfg: TrainingConfig) -> pool.Pool:
    mesh = make_mesh(cfg)
    return pool.Pool(engine.place(weights, mesh, cfg), mesh, list(mesh.devices[:, 0, 0, 0]), cfg)


@dataclasses.dataclass
class Stream:
    """One visitor: which blocks it brings, when it changes its scene, whether it leaves before they are drawn."""

    number: int
    scene: Scene
    other: Scene
    blocks: int
    hasty: bool
    bring: Callable[[int, TrainingConfig], BlockInput] = block_of
    seat: pool.Seat | None = None
    fed: int = 0
    drawn: list[np.ndarray] = dataclasses.field(default_factory=list)

    def block(self, number: int, cfg: TrainingConfig):
        return dataclasses.replace(self.bring(number, cfg), noise=self.bring(1000 * self.number + number, cfg).noise)

    def act(self, drawer: engine.Engine, number: int, cfg: TrainingConfig) -> None:
        if number == 5:
            drawer.show(self.other)
        if number == cfg.stream.adapt_blocks > 0:
            drawer.adapt()

    def alone(self, weights: Weights, cfg: TrainingConfig) -> list[np.ndarray]:
        state = engine.start(weights, self.scene, cfg)
        drawer, drawn = engine.Sequential(weights, self.scene, state, cfg), []
        for number in range(len(self.drawn)):
            self.act(drawer, number, cfg)
            drawn += [np.asarray(block.latent) for block in drawer.feed(self.block(number, cfg))]
        return drawn


def visit(seats: pool.Pool, streams: list[Stream], cfg: TrainingConfig, beats: int, seed: int) -> int:
    """Lets streams come, speak with pauses, and go. Returns the most that sat at once."""
    rng, waiting, sitting, most = np.random.default_rng(seed), list(streams), [], 0
    acts = {stream.number: seats.act(stream.scene) for stream in streams}
    for _ in range(beats):
        if waiting and rng.random() < 0.5 and len(sitting) < cfg.mesh.streams:
            stream = waiting.pop(0)
            stream.seat = seats.join(acts[stream.number])
            sitting.append(stream)
        for stream in list(sitting):
            assert stream.seat
            if stream.fed < stream.blocks and rng.random() < 0.7:
                stream.act(stream.seat, stream.fed, cfg)
                stream.seat.offer(stream.block(stream.fed, cfg))
                stream.fed += 1
            stream.drawn += [np.asarray(block.latent) for block in stream.seat.collect()]
            if stream.fed == stream.blocks and (stream.hasty or not stream.seat.busy):
                stream.seat.close()
                sitting.remove(stream)
        most = max(most, len(sitting))
        seats.beat()
    assert not waiting and not sitting
    return most


@pytest.mark.parametrize(
    ("history", "streams", "shape"),
    [
        ("timestep", 4, {"stages": 2, "data": 2}),
        ("timestep", 3, {"stages": 4}),
        ("clean", 3, {}),
        ("timestep", 2, {"stages": 2, "tensor": 2}),
        ("timestep", 2, {"stages": 2, "context": 2, "data": 2}),
    ],
)
def test_streams_come_and_go(history: str, streams: int, shape: dict):
    steps = 4 if history == "timestep" else 2
    cfg = run(steps, adapt_blocks=4) if history == "timestep" else small(history)
    cfg = with_seats(cfg, streams, **shape)
    weights = weights_of(cfg)
    people = [
        Stream(number, begin(weights, cfg, number)[0], begin(weights, cfg, 50 + number)[0], 4 + 3 * number, number == 2)
        for number in range(6)
    ]
    assert visit(pool_of(weights, cfg), people, cfg, 90, 0) >= 2
    for person in people:
        expected = person.alone(weights, cfg)
        assert len(expected) == person.blocks if not person.hasty else len(expected) < person.blocks
        for number, (one, two) in enumerate(zip(expected, person.drawn, strict=True)):
            np.testing.assert_allclose(two, one, atol=2e-5, err_msg=f"stream {person.number}, block {number}")


def test_a_full_pool_says_so():
    cfg = with_seats(small("clean"), 2)
    weights = weights_of(cfg)
    seats = pool_of(weights, cfg)
    act = seats.act(begin(weights, cfg)[0])
    first, _ = seats.join(act), seats.join(act)
    with pytest.raises(pool.Full, match="all 2 seats are taken"):
        seats.join(act)
    first.close()
    first.close()
    assert seats.join(act).stream == first.stream


def test_streams_of_the_knot_engine():
    """Two rows of one stage; a pause or a new stream leaves every other stream's knot alone."""
    cfg, scene_of = with_seats(algorithm_1.small(), 2, data=2), algorithm_1.scene_of
    people = [
        Stream(number, scene_of(cfg, number), scene_of(cfg, 50 + number), 3 + 2 * number, False, test_knot.block_of)
        for number in range(4)
    ]
    assert visit(pool_of(algorithm_1.weights(), cfg), people, cfg, 70, 0) == 2
    for person in people:
        expected = person.alone(algorithm_1.weights(), cfg)
        np.testing.assert_allclose(np.stack(person.drawn), np.stack(expected), atol=2e-5)
