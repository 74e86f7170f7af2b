"""Timestep-forcing pipeline: what it draws, what its one program does, and what a changed scene costs."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import check
from avatar_jax.core.config import Config
from avatar_jax.models import dit
from avatar_jax.stream import chain, clock, engine, pipeline, rollout, session
from avatar_jax.stream.state import BlockInput, Place, Scene, Speaker, StreamState, Weights
from configs import tiny
from infer import door
from tests.acceptance import absent, report
from tests.stream import test_published as published
from tests.stream.test_pipeline import mesh_of

row = functools.partial(report.row, "pipeline")
BLOCKS, ADAPTED, PROMPTED = 40, 8, 20


def tiny_run(steps: int) -> tuple[Config, Weights]:
    """The embedded model, its history at each step's own level."""
    cfg = tiny.get_config()
    stream = dataclasses.replace(cfg.stream, steps=steps, history="timestep", adapt_blocks=ADAPTED)
    cfg = check.validate(dataclasses.replace(cfg, stream=stream))
    return cfg, session.load_weights(cfg, door.embedded("tiny"))


def published_run(steps: int) -> tuple[Config, Weights]:
    """Live Avatar's configuration with the golden transformer."""
    p, cfg = published.golden_size("unroll")
    cfg = dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, steps=steps, adapt_blocks=ADAPTED))
    vae = published.spec.init(published.vae.spec(cfg.vae), jax.random.key(0))
    return cfg, Weights(p, vae)


def prompt_of(p: dict, cfg: Config, seed: int):
    if not cfg.dit.text_width:
        return None
    return dit.remember(p, jax.random.normal(jax.random.key(seed), (1, 9, cfg.dit.text_width)), cfg=cfg.dit)


def begin(weights: Weights, cfg: Config) -> tuple[Scene, StreamState]:
    portrait = jax.random.uniform(jax.random.key(1), (1, 1, cfg.video.height, cfg.video.width, 3)) * 2 - 1
    scene = dataclasses.replace(rollout.view(weights.vae, portrait, cfg=cfg), cross=prompt_of(weights.dit, cfg, 2))
    return scene, rollout.start(weights, scene, cfg=cfg)


def block_of(number: int, cfg: Config) -> BlockInput:
    noise, sound = (jax.random.fold_in(jax.random.key(kind), number) for kind in (3, 4))
    heard = (1, cfg.stream.audio_context + cfg.block_frames, cfg.dit.audio_layers, cfg.dit.audio_width)
    return BlockInput(
        speakers=(Speaker(jax.random.normal(sound, heard)),),
        noise=jax.random.normal(noise, (1, cfg.stream.block_latents, *cfg.latent_size, cfg.dit.latent_channels)),
        place=Place(*clock.phases(number, cfg), *map(jnp.asarray, clock.place(number, cfg))),
    )


def play(drawer: engine.Engine, scene: Scene, other: Scene, cfg: Config) -> tuple[np.ndarray, list[int]]:
    """All latents, with an adapted reference and another prompt on the way; and how many blocks each feed gave."""
    drawn, counts, first = [], [], None
    for number in range(BLOCKS):
        if number == ADAPTED:
            scene = dataclasses.replace(scene, reference=first)
            drawer.show(scene)
        if number == PROMPTED:
            drawer.show(dataclasses.replace(scene, cross=other.cross))
        new = [block.latent for block in drawer.feed(block_of(number, cfg))]
        first, drawn, counts = (new[0][:, :1] if first is None and new else first), drawn + new, [*counts, len(new)]
    drawn += [block.latent for block in drawer.drain()]
    return np.stack([np.asarray(latent) for latent in drawn]), counts


def drawers(weights: Weights, scene: Scene, state: StreamState, stages: int, cfg: Config) -> dict[str, engine.Engine]:
    mesh = mesh_of(stage=stages)
    devices = jax.devices()[:stages]
    return {
        "tick": engine.Pipelined(engine.place(weights, mesh, cfg), scene, state, mesh, cfg),
        "chain": chain.Chained(weights, scene, state, [*devices, devices[-1]], cfg),
    }


@pytest.mark.parametrize(("name", "made"), [("tiny", tiny_run), ("published-layout mini", published_run)])
def test_pipeline_equals_sequential(name: str, made):
    worst = {}
    for steps, meshes in ((4, (2, 4)), (8, (8,))):
        cfg, weights = made(steps)
        scene, state = begin(weights, cfg)
        other = dataclasses.replace(scene, cross=prompt_of(weights.dit, cfg, 5))
        expected, _ = play(engine.Sequential(weights, scene, state, cfg), scene, other, cfg)
        assert len(expected) == BLOCKS and np.isfinite(expected).all()
        for stages in meshes:
            for kind, drawer in drawers(weights, scene, state, stages, cfg).items():
                found, _ = play(drawer, scene, other, cfg)
                worst[f"{kind} of {stages}"] = float(np.abs(found - expected).max() / np.abs(expected).max())
    figure = ", ".join(f"{case} {error:.1e}" for case, error in worst.items())
    bar = "bit-equal, or 1e-6 where a reduction order differs"
    what = f"pipeline == sequential, {name}, {BLOCKS} blocks, ring wrap, AAS swap, prompt change"
    assert row(what, figure, bar, max(worst.values()) <= 1e-6)


def test_one_tick_is_one_transfer():
    cfg, weights = tiny_run(4)
    mesh = mesh_of(stage=4)
    placed, entering = engine.place(weights, mesh, cfg), block_of(0, cfg)
    scene, state = begin(weights, cfg)
    first = pipeline.start(placed.dit, state.caches[0], None, entering, mesh=mesh, cfg=cfg)
    program = pipeline.make_tick(cfg, mesh).lower(placed.dit, first, entering).compile()
    text, memory = program.as_text() or "", program.memory_analysis()
    kinds = r" (collective-permute|all-gather|all-reduce|all-to-all|reduce-scatter|conditional)\("
    found = collections.Counter(re.findall(kinds, text))
    moved = re.search(r"u8\[(\d+)\]\S* collective-permute\(", text)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(first)) // 4
    aliased = memory.alias_size_in_bytes if memory else 0
    drawer = engine.Pipelined(placed, scene, state, mesh, cfg)
    for _ in range(1000):
        drawer.feed(entering)
    traces = pipeline.make_tick(cfg, mesh)._cache_size()  # type: ignore[attr-defined]
    figure = (
        f"{dict(found)}, {moved and moved[1]} bytes; {aliased} of {held} bytes aliased; {traces} trace, 1,000 ticks"
    )
    bar = "one collective-permute outside any conditional, no all-gather, caches aliased, no retrace"
    assert row(
        "one tick's program", figure, bar, found == {"collective-permute": 1} and aliased == held and traces == 1
    )


def test_a_changed_scene_misses_no_tick():
    cfg, weights = published_run(4)
    cfg = dataclasses.replace(cfg, stream=dataclasses.replace(cfg.stream, adapt_blocks=4))
    scene, state = begin(weights, cfg)
    drawn = {}
    for kind, drawer in drawers(weights, scene, state, 4, cfg).items():
        counts, first = [], None
        for number in range(8):
            if number == cfg.stream.adapt_blocks:
                drawer.show(dataclasses.replace(scene, reference=first))
            new = drawer.feed(block_of(number, cfg))
            first, counts = (new[0].latent[:, :1] if first is None and new else first), [*counts, len(new)]
        drawn[kind] = counts
    figure = "; ".join(f"{kind}: blocks out at each tick {counts}" for kind, counts in drawn.items())
    met = all(counts == [0, 0, 0, 1, 1, 1, 1, 1] for counts in drawn.values())
    assert row("AAS swap on 4 stages", figure, "no extra tick between blocks 3 and 4", met)


@pytest.mark.parametrize(("name", "devices"), [("h200", 1), ("v5p", 2), ("v6e", 4), ("v5e", 4)])
def test_compile_for_absent_devices(name: str, devices: int, tmp_path):
    """A tick of the 14B transformer over four stages; docs/meshes.md holds the table."""
    held, (found,) = absent.compile_for(name, tmp_path / "report.json", "--program=tick", f"--devices={devices}")
    figure = "; ".join(f"{gate}: {figure}" for gate, (figure, _) in found["gates"].items())
    what = f"a tick of 14B on 4 stages x {devices} {name}"
    assert row(what, figure, "fits; one transfer between stages, of the latents and what rides with them", held)
