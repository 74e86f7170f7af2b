"""Timestep-forcing pipeline: what it draws, what its one program does, and what a changed scene costs."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from scipy.io import wavfile

from avatar_jax.core import check
from avatar_jax.core.config import Config
from avatar_jax.models import dit
from avatar_jax.stream import chain, clock, engine, pipeline, rollout, session
from avatar_jax.stream.state import BlockInput, Scene, Speaker, StreamState, Weights
from configs import tiny
from infer import door
from tests.acceptance import absent, report
from tests.stream import test_pipeline as small
from tests.stream import test_published as published
from tests.stream.test_pipeline import lowered, mesh_of, seat_of
from tests.stream.test_pool import Stream, make_mesh, pool_of, visit, with_seats
from tests.stream.test_session import weights_of

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
    return scene, engine.start(weights, scene, cfg)


def block_of(number: int, cfg: Config) -> BlockInput:
    noise, sound = (jax.random.fold_in(jax.random.key(kind), number) for kind in (3, 4))
    heard = (1, cfg.stream.audio_context + cfg.block_frames, cfg.dit.audio_layers, cfg.dit.audio_width)
    return BlockInput(
        speakers=(Speaker(jax.random.normal(sound, heard)),),
        noise=jax.random.normal(noise, (1, cfg.stream.block_latents, *cfg.latent_size, cfg.dit.latent_channels)),
        place=clock.place(number, cfg),
    )


def play(drawer: engine.Engine, other: Scene, cfg: Config) -> tuple[np.ndarray, list[int]]:
    """All latents, with an adapted reference and another scene on the way; and how many blocks each feed gave."""
    drawn, counts = [], []
    for number in range(BLOCKS):
        if number == ADAPTED:
            drawer.adapt()
        if number == PROMPTED:
            drawer.show(other)
        new = [block.latent for block in drawer.feed(block_of(number, cfg))]
        drawn, counts = drawn + new, [*counts, len(new)]
    drawn += [block.latent for block in drawer.drain()]
    return np.stack([np.asarray(latent) for latent in drawn]), counts


def drawers(weights: Weights, scene: Scene, state: StreamState, stages: int, cfg: Config) -> dict[str, engine.Engine]:
    devices = jax.devices()[:stages]
    return {
        "tick": seat_of(weights, scene, mesh_of(stages=stages), cfg),
        "chain": chain.Chained(weights, scene, state, [*devices, devices[-1]], cfg),
    }


@pytest.mark.parametrize(("name", "made"), [("tiny", tiny_run), ("published-layout mini", published_run)])
def test_pipeline_equals_sequential(name: str, made):
    worst = {}
    for steps, meshes in ((4, (2, 4)), (8, (8,))):
        cfg, weights = made(steps)
        scene, state = begin(weights, cfg)
        other = dataclasses.replace(scene, cross=prompt_of(weights.dit, cfg, 5))
        expected, _ = play(engine.Sequential(weights, scene, state, cfg), other, cfg)
        assert len(expected) == BLOCKS and np.isfinite(expected).all()
        for stages in meshes:
            for kind, drawer in drawers(weights, scene, state, stages, cfg).items():
                found, _ = play(drawer, other, cfg)
                worst[f"{kind} of {stages}"] = float(np.abs(found - expected).max() / np.abs(expected).max())
    figure = ", ".join(f"{case} {error:.1e}" for case, error in worst.items())
    bar = "bit-equal, or 1e-6 where a reduction order differs"
    what = f"pipeline == sequential, {name}, {BLOCKS} blocks, ring wrap, AAS swap, prompt change"
    assert row(what, figure, bar, max(worst.values()) <= 1e-6)


def test_one_tick_is_one_transfer():
    cfg, weights = tiny_run(4)
    mesh = mesh_of(stages=4)
    scene, _ = begin(weights, cfg)
    program, first = lowered(weights, scene, mesh, cfg)
    text, memory = program.as_text() or "", program.memory_analysis()
    kinds = r" (collective-permute|all-gather|all-reduce|all-to-all|reduce-scatter|conditional)\("
    found = collections.Counter(re.findall(kinds, text))
    moved = re.search(r"u8\[(\d+)\]\S* collective-permute\(", text)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(first)) // 4
    aliased = memory.alias_size_in_bytes if memory else 0
    drawer = seat_of(weights, scene, mesh, cfg)
    for number in range(1000):
        drawer.feed(block_of(number, cfg))
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
        counts = []
        for number in range(8):
            if number == cfg.stream.adapt_blocks:
                drawer.adapt()
            counts.append(len(drawer.feed(block_of(number, cfg))))
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


def test_sixteen_streams_over_500_ticks():
    """Two rows of two stages, eight seats; streams come, pause, change their scene and go, some in mid-block."""
    cfg = with_seats(small.run(4, adapt_blocks=4), 8, stages=2, data=2)
    weights, rng = weights_of(cfg), np.random.default_rng(0)
    scenes = [small.begin(weights, cfg, seed)[0] for seed in range(32)]
    people = [
        Stream(number, scenes[number], scenes[16 + number], int(rng.integers(20, 90)), number % 5 == 4)
        for number in range(16)
    ]
    most = visit(pool_of(weights, cfg), people, cfg, 500, 1)
    worst, blocks = 0.0, 0
    for person in people:
        expected = np.stack(person.alone(weights, cfg))
        worst = max(worst, float(np.abs(np.stack(person.drawn) - expected).max() / np.abs(expected).max()))
        blocks += len(expected)
    traces = pipeline.make_tick(cfg, make_mesh(cfg))._cache_size()  # type: ignore[attr-defined]
    figure = f"{worst:.1e} over {blocks} blocks, at most {most} at once on 8 seats, {traces} trace"
    bar = "each equals its solo run (1e-6 where a reduction order differs)"
    assert row("16 streams joining and leaving at random over 500 ticks", figure, bar, worst <= 1e-6 and traces == 1)


class Processes:
    """The file command on four stages, in one process or in several that share the virtual devices."""

    def __init__(self, folder: pathlib.Path, count: int, audio: pathlib.Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.output = folder / "talk.mp4"
        more = ("--config.stream.history=timestep", "--config.stream.steps=4", "--config.mesh.stages=4")
        unsigned = "--c2pa=off"  # no two signatures are the same
        command = [sys.executable, "-m", "infer.stream", f"--output={self.output}", f"--audio={audio}", unsigned, *more]
        virtual = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}", "JAX_PLATFORMS": "cpu"}
        told = [f"--coordinator={address}", f"--processes={count}"] if count > 1 else []
        self.running = [
            subprocess.Popen(
                [*command, *told, *([f"--process={number}"] if told else [])],
                cwd=absent.ROOT, env=os.environ | virtual, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for number in range(count)
        ]  # fmt: skip

    def end(self) -> list[str]:
        """What each says at its end; fails where one does not end well."""
        said = [process.communicate(timeout=600) for process in self.running]
        assert all(process.returncode == 0 for process in self.running), said
        return [error for _, error in said]

    def kill_one(self, number: int) -> tuple[float, int, str]:
        """In mid-stream; how long the other lives on, its exit code, and its last line."""
        writing = self.output.with_suffix(".partial.mp4")
        while not (writing.exists() and writing.stat().st_size > 20_000):
            assert all(process.poll() is None for process in self.running)
            time.sleep(0.05)
        self.running[number].kill()
        began, other = time.perf_counter(), self.running[1 - number]
        _, error = other.communicate(timeout=100)
        self.running[number].communicate()
        return time.perf_counter() - began, other.returncode, error.strip().splitlines()[-1]


def folder(inside: pathlib.Path, name: str) -> pathlib.Path:
    (inside / name).mkdir()
    return inside / name


def test_two_processes(tmp_path):
    speech, long = door.embedded("speech.wav"), tmp_path / "long.wav"
    rate, sound = wavfile.read(speech)
    wavfile.write(long, rate, np.tile(sound, 20))
    one, two = (Processes(folder(tmp_path, str(count)), count, speech) for count in (1, 2))
    one.end()
    two.end()
    same = one.output.read_bytes() == two.output.read_bytes()
    bar = "two processes (jax.distributed on loopback) equal one"
    assert row("the video of four stages on two processes", f"every byte the same: {same}", bar, same)
    for number in (1, 0):
        seconds, code, line = Processes(folder(tmp_path, f"without {number}"), 2, long).kill_one(number)
        met = seconds < 30 and code == door.LOST and line.startswith(f"process {number} of 2 on ")
        what = f"process {number} of two killed in mid-stream"
        figure = f"the other ends after {seconds:.1f} s with code {code}: {line}"
        assert row(what, figure, "both end within 30 s with a clear message", met)


def test_every_stage_is_busy(tmp_path):
    """Under JAX's profiler; each stage's ticks are its own operations, as `infer.timeline` reads and draws them."""
    virtual = {"XLA_FLAGS": "--xla_force_host_platform_device_count=5", "JAX_PLATFORMS": "cpu"}
    picture, blocks = absent.ROOT / "docs" / "timeline.png", 12
    more = ("--config.stream.history=timestep", "--config.stream.steps=4", "--config.mesh.stages=4")
    command = [sys.executable, "-m", "infer.timeline", f"--output={picture}", f"--blocks={blocks}", *more]
    done = subprocess.run(command, cwd=absent.ROOT, env=os.environ | virtual, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    after = [ticks[3:] for ticks in told["busy"]]  # once block 0 has reached the last stage
    met = len(after) == 4 and all(len(ticks) >= blocks - 3 and min(ticks) > 0 for ticks in after)
    figure = f"{len(after)} stages, {min(map(len, after))} ticks after the fill, each stage at work in every one; "
    figure += f"operations fill {np.mean(after):.0%} of a stage's tick, {np.min(after):.0%} at least"
    assert row("a traced run, docs/timeline.png", figure, "every stage busy on every tick after the fill", met)
