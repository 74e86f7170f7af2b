"""Ahead-of-time compilation: the counts, the reading of HLO, and the whole path on the CPU with a small transformer."""

import dataclasses
import math
import subprocess
import sys

import jax
import pytest

from avatar_jax.core import axes
from avatar_jax.core.config import DitConfig
from avatar_jax.io.convert import wan, wan_vae
from avatar_jax.io.convert.published import Tensors
from avatar_jax.nn import rope
from avatar_jax.stream import mesh as meshes
from infer import compile as command
from infer.aot import counts, hlo, measure, programs, targets, tick

SMALL = {**wan.PUBLISHED["s2v_14b"], "dim": 64, "num_heads": 4, "num_layers": 3, "ffn_dim": 128, "freq_dim": 32}
SMALL |= {"audio_dim": 32, "audio_inject_layers": [0, 1], "text_len": 16, "text_dim": 32}
SIZE = programs.Size(64, 64)

TEXT = """HloModule jit_step

%fused_write (param_0: bf16[8,1024,1024], param_1: bf16[1,1024,1024]) -> bf16[8,1024,1024] {
  %param_0 = bf16[8,1024,1024]{2,1,0} parameter(0)
  %param_1 = bf16[1,1024,1024]{2,1,0} parameter(1)
  %at = s32[] constant(0)
  ROOT %write = bf16[8,1024,1024]{2,1,0} dynamic-update-slice(%param_0, %param_1, %at, %at, %at)
}

%fused_turn (param_0.1: bf16[1024,2048]) -> bf16[2048,1024] {
  %param_0.1 = bf16[1024,2048]{1,0} parameter(0)
  ROOT %turn = bf16[2048,1024]{1,0} transpose(%param_0.1), dimensions={1,0}
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %sum = f32[4]{0} all-reduce(%x), to_apply=%add, metadata={op_name="s/layer1/add"}
  ROOT %next = (s32[], f32[4]{0}) tuple(%i, %sum)
}

%condition (state.1: (s32[], f32[4])) -> pred[] {
  %state.1 = (s32[], f32[4]{0}) parameter(0)
  %limit = s32[] constant(5)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (w: bf16[1024,2048], k: bf16[8,1024,1024], q: bf16[1,1024,1024]) -> f32[4] {
  %w = bf16[1024,2048]{1,0} parameter(0)
  %k = bf16[8,1024,1024]{2,1,0} parameter(1)
  %q = bf16[1,1024,1024]{2,1,0} parameter(2)
  %p = bf16[1,3,8,8,16]{3,2,1,4,0} parameter(3)
  %held = bf16[8,1024,1024]{2,1,0} fusion(%k, %q), kind=kLoop, calls=%fused_write, metadata={op_name="s/layer0/w"}
  %turned = bf16[2048,1024]{1,0} fusion(%w), kind=kLoop, calls=%fused_turn
  %moved = bf16[2048,1024]{0,1} copy(%turned)
  %heads = bf16[1,12672,40,128]{3,2,1,0} broadcast(%q), dimensions={}
  %mixed = bf16[1,40,3168,128]{3,1,2,0} custom-call(%q, %heads), custom_call_target="__cudnn$fmhaSoftmax"
  %seen = f32[40,3168,12672]{2,1,0} dot(%q, %q), lhs_contracting_dims={2}, rhs_contracting_dims={2}
  %conv = bf16[1,3,8,8,16]{4,3,2,1,0} convolution(%p, %w), dim_labels=b012f_o012i->b012f
  %start = (s32[], f32[4]{0}) tuple(%w, %w)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def test_hlo_is_read():
    module = hlo.parse(TEXT)
    kinds = hlo.kinds(module)
    assert module.entry == "main"
    assert kinds["fusion Loop"] == 2 and kinds["copy"] == 1 and kinds["__cudnn$fmhaSoftmax"] == 1
    assert kinds["all-reduce"] == 5  # the loop's trips, from its condition
    assert hlo.collectives(module) == {"all-reduce": (5, 5 * 16)}
    assert hlo.copies(module) == 1
    assert hlo.relaid(module) == ["turned"]  # the write in place is no rewriting
    assert hlo.attention(module) == {12672: 1}
    assert hlo.scores(module, 40, 3168, {12672}) == ["seen f32[40,3168,12672]{2,1,0}"]
    assert hlo.convolutions(module) == {"bf012": 1}
    assert hlo.scoped(module, "layer") == 6


def test_traffic_charges_a_write_in_place_for_its_part():
    module = hlo.parse(TEXT)
    entry = module.computations["main"]
    held = entry["held"]
    assert hlo._read(held, entry, module) + hlo._written(held, module) == 2 * (2 << 20)


def published() -> DitConfig:
    return command.config_of("s2v_14b", "cpu")


def test_counts_of_the_published_models():
    """The figures of an independent roofline, 704 x 384: 120.83 TFLOP a step with what is cached, 9.159 a latent."""
    cfg, size = published(), programs.Size()
    step = counts.block(cfg, size.block, size.ring, size.held(cfg))
    once = counts.hear(cfg, 3) + counts.level(cfg, 6) + 2 * size.block * 64 * cfg.width
    assert (size.block, size.ring, size.held(cfg)) == (3168, 12672, 2640)
    assert step == 120_800_225_525_760
    assert step + once == 120_827_168_686_080
    assert counts.decode(wan_vae.config(Tensors({})), 1, 88, 48) == 9_159_228_063_744


def small(layer_loop: str) -> DitConfig:
    cfg = wan.dit_config(SMALL, Tensors({}), layer_loop=layer_loop)
    return dataclasses.replace(cfg, attention="reference")


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("name", "layer_loop"), [("block", "unroll"), ("block", "scan"), ("prefill", "unroll")])
def test_small_programs_compile(name: str, layer_loop: str, devices: int):
    target, cfg = targets.TARGETS["cpu"], small(layer_loop)
    mesh = axes.make_mesh(targets.devices(target, devices), {axes.TENSOR: devices})
    program = getattr(programs, name)(cfg, SIZE, programs.Place(mesh, "float32"))
    report = measure.measure(program, target, mesh, model="small", injectors=2, flops_lowered=program.flops)
    assert report.fits and report.total > program.argument_bytes > 0
    assert report.aliased == program.state_bytes  # the memory is written in place, on every device
    assert bool(report.collectives) == (devices > 1)
    assert command.markdown([report]).count("\n") == 3


@pytest.mark.parametrize("shape", [{"stages": 4}, {"stages": 2, "tensor": 2}, {"stages": 2, "context": 2}])
@pytest.mark.parametrize("layer_loop", ["unroll", "scan"])
def test_a_small_tick_compiles(layer_loop: str, shape: dict[str, int]):
    """Latents, the tokens of their sound and where they stand move, once; memories and prompts stay where they are."""
    target, cfg = targets.TARGETS["cpu"], small(layer_loop)
    mesh = meshes.make_mesh(targets.devices(target, 4), **shape)
    program = tick.tick(cfg, SIZE, programs.Place(mesh, "float32"))
    report = measure.measure(program, target, mesh, model="small", injectors=2, flops_lowered=program.flops)
    sent = SIZE.block_latents * (SIZE.latent[0] * SIZE.latent[1] * 16 + (cfg.audio_tokens + 2) * cfg.width)
    time = rope.pairs(cfg.head_size)[0] * 2 * (SIZE.block_latents + 4)
    assert report.collectives["collective-permute"] == (1, 4 * (sent + time + 2))
    assert report.aliased == program.state_bytes
    gathered = 4 * (2 * cfg.layers * SIZE.block * cfg.width + SIZE.block_latents * math.prod(SIZE.latent) * 16)
    calls = 2 if "context" in shape else 0  # of a stage: one a step
    crossed = (calls * (2 * cfg.layers + 1), calls * gathered)
    assert report.collectives.get("all-gather", (0, 0)) == crossed or "tensor" in shape
    held = {name for name, (_, held) in measure.gates(report).items() if held}
    assert held >= {"fits", "G8 transfers"}


@pytest.mark.parametrize("name", ["block", "prefill", "teacher", "sound"])
def test_small_programs_do_what_is_counted(name: str):
    """Elementwise work weighs more in a small network, so the bound is wider than the one of the full size."""
    cfg = dataclasses.replace(small("unroll"), width=256, ffn=1024)
    program = getattr(programs, name)(cfg, SIZE, programs.Place(None, "float32"))
    assert 1.0 <= measure.lowered_flops(program) / program.flops < 1.25


def test_gates_fall(monkeypatch):
    """Every gate reports a breach."""
    target = targets.TARGETS["h200"]
    monkeypatch.setattr(measure, "compiled", lambda *_: (_Fake(), 1.0))
    mesh = axes.make_mesh(jax.devices()[:1], {axes.TENSOR: 1})
    program = programs.Program("block", len, (), 100, layers=40, heads=40, queries=3168, keys=frozenset({12672}))
    report = measure.measure(program, target, mesh, model="s2v_14b", injectors=12, flops_lowered=110.0)
    failed = [name for name, (_, held) in measure.gates(report).items() if not held]
    assert failed == ["fits", "G7 flops", "G2 copies", "G3 temporaries", "G4 fused attention"]
    crowded = dataclasses.replace(report, layer_kernels=23.0)
    assert not measure.gates(crowded)["G1 kernels a layer"][1]
    vae = dataclasses.replace(report, program="decode")
    assert not measure.gates(vae)["G6 VAE"][1]


class _Fake:
    def as_text(self) -> str:
        return TEXT

    def memory_analysis(self):
        return self

    argument_size_in_bytes = 200 * 10**9
    output_size_in_bytes = alias_size_in_bytes = 1
    temp_size_in_bytes = 3 * 10**8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--target is needed"),
        (["--target=h200", "--plugins=/nowhere"], "pip install --no-deps --target /nowhere 'jax-cuda13-pjrt=="),
        (["--target=v5e", "--devices=3"], "--devices=3: must be one of 1, 2, 4, 8"),
        (["--target=h200", "--height=700"], "--height=700: must be a multiple of 16 pixels"),
        (["--target=h200", "--plugins=tests"], "no compiler for h200 here"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str):
    command_line = [sys.executable, "-m", "infer.compile", *arguments]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
