"""A step of stage two as a program for a pod: what lies where, what it counts, what it refuses."""

import dataclasses
import math
import subprocess
import sys

import jax
import pytest

from avatar_jax.core.config import TrainMesh, sized
from infer import compile as command
from infer.aot import counts, measure, targets
from train import compile as pods
from train import distill
from train import mesh as meshes


@pytest.mark.slow
def test_a_small_step_of_stage_two_compiles():
    """On every device a share of the base, which is half as large as trained, and of the adapters."""
    shape = TrainMesh(fsdp=2, tensor=2)
    target, mesh = targets.TARGETS["cpu"], meshes.make_mesh(shape, jax.devices()[:4])
    cfg = pods.config_of("cpu", shape, layers=2)
    cfg.dit = dataclasses.replace(cfg.dit, width=64, heads=4, ffn=128, freq=32)
    cfg = sized(cfg, 64, 64)
    settings = dataclasses.replace(cfg.train.distill, rank=4, blocks=2)
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, dit_blocks=2, distill=settings))
    program = pods.step(cfg, mesh)
    report = measure.measure(program, target, mesh, model="small", injectors=1)
    assert report.fits and report.aliased >= program.state_bytes - 8 > 0  # flags of the optimiser are made anew
    assert report.arguments == pytest.approx(program.argument_bytes, rel=0.01)
    adapters = jax.tree.leaves(program.args[0].student.weights)
    assert all(math.prod(leaf.sharding.shard_shape(leaf.shape)) * 2 == leaf.size for leaf in adapters)
    assert "G7 flops" not in measure.gates(report) and measure.gates(report)["fits"][1]
    assert command.markdown([report]).count("distill") == 1


def test_operations_of_stage_two():
    """Six rounds of seven blocks, and five windows seen whole, whose reference looks at itself alone."""
    cfg = pods.config_of("tpu", pods.SHAPES["v5p"])
    frame, rings = 1056, [3168 * min(n + 1, 4) for n in range(7)]
    blocks = sum(counts.block(cfg.dit, 3168, ring, frame) for ring in rings)
    whole = counts.distill(cfg) - 6 * blocks
    window = counts.joint(cfg.dit, 21 * frame, 21, frame)
    assert 0.97 * window < whole / 5 < window


def test_a_mean_step_of_stage_two():
    """Where the student moves in every step and a block is one call, it costs what is counted at most."""
    cfg = pods.config_of("tpu", pods.SHAPES["v5p"])
    mean = distill.cost(cfg)
    assert mean.tokens == 4 * 21 * 1056 and mean.flops < 4 * counts.distill(cfg)
    always = dataclasses.replace(distill.rates(cfg), every=1)
    once = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, distill=always))
    once.stream = dataclasses.replace(cfg.stream, steps=1)
    assert distill.cost(once).flops == pytest.approx(4 * counts.distill(once))


def test_bad_input_is_one_line():
    command_line = [sys.executable, "-m", "train.compile", "--target=v6e", "--plugins=/nowhere"]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "--plugins=/nowhere: no such folder" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
