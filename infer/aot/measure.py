"""Compiles a program and says what came out: memory, kernels, layouts, operations, and the gates it must hold."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
from jax.experimental.layout import Format, Layout

from avatar_jax.core import platform
from infer.aot import hlo, programs
from infer.aot.targets import Target, present

TEMPORARIES = 200e6  # bytes, of a 14B step
KERNELS = {40: 22, 30: 28}  # a layer of the 14B and the 1.3B transformer, by their number of layers
VAE_KERNELS = 155
FLOPS = (1.0, 1.03)  # lowered over counted


@dataclasses.dataclass(frozen=True)
class Report:
    """One compiled program. Bytes are of one device."""

    target: str
    devices: int
    model: str
    program: str
    layer_loop: str
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    capacity: int
    state: int  # donated, of one device
    flops: int  # counted, all devices
    flops_lowered: float
    compile_seconds: float
    kernels: int
    kinds: dict[str, int]
    layers: int
    layer_kernels: float  # of a layer without an injector
    injector_kernels: float
    copies: int
    relaid: list[str]
    fused: int  # attention calls of the blocks; an injector's, over five keys, are not among them
    scores: list[str]
    convolutions: dict[str, int]
    collectives: dict[str, tuple[int, int]]
    traffic: int

    @property
    def total(self) -> int:
        """Bytes that a device needs to run it."""
        return self.arguments + self.outputs - self.aliased + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether the device has them."""
        return self.total <= self.capacity

    @property
    def flops_ratio(self) -> float:
        """Operations in the lowered program over those counted."""
        return self.flops_lowered / self.flops


def lowered_flops(program: programs.Program) -> float:
    """Operations of a program as written, in XLA's own count before it optimises. Takes a program without a mesh."""
    cost = jax.jit(program.fn).lower(*program.args).cost_analysis() or {}
    return cost["flops"]


def compiled(program: programs.Program, target: Target, mesh: Any) -> tuple[Any, float]:
    """The executable and the seconds it took. All arguments are kept, so that its memory is the whole model's."""
    started = time.perf_counter()
    sees_mesh = target.platform == "tpu" and not program.jitted
    with present(target), jax.set_mesh(mesh) if sees_mesh else contextlib.nullcontext():
        lowered = make_jit(program).lower(*program.args)
    options: Any = platform.compiler_options(target.platform, program.name)
    return lowered.compile(compiler_options=options), time.perf_counter() - started


def make_jit(program: programs.Program) -> Any:
    """The program as it would run: its state donated, and laid out in memory as the compiler likes it best."""
    if program.jitted:
        return program.fn
    if program.donated is None:
        return jax.jit(program.fn, keep_unused=True)
    state = jax.tree.map(lambda leaf: Format(Layout.AUTO, leaf.sharding), program.args[program.donated])
    given = tuple(state if at == program.donated else None for at in range(len(program.args)))
    return jax.jit(
        program.fn, donate_argnums=program.donated, keep_unused=True, in_shardings=given, out_shardings=(state, None)
    )


def measure(
    program: programs.Program, target: Target, mesh: Any, *, model: str, injectors: int, flops_lowered: float = 0.0
) -> Report:
    """Compiles and reads the result. flops_lowered: from `lowered_flops`, 0 where nobody counted."""
    executable, seconds = compiled(program, target, mesh)
    memory, module = executable.memory_analysis(), hlo.parse(executable.as_text())
    kinds = hlo.kinds(module)
    total = sum(kinds.values())
    inside, injected = hlo.scoped(module, "layer"), hlo.scoped(module, "injector")
    return Report(
        target=target.name,
        devices=mesh.size,
        model=model,
        program=program.name,
        layer_loop=program.loop,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        capacity=int(target.memory_gb * 1e9),
        state=program.state_bytes,
        flops=program.flops,
        flops_lowered=flops_lowered,
        compile_seconds=round(seconds, 1),
        kernels=total,
        kinds=kinds,
        layers=program.layers,
        layer_kernels=inside / program.layers if program.layers else 0.0,
        injector_kernels=injected / injectors if injectors else 0.0,
        copies=hlo.copies(module),
        relaid=hlo.relaid(module),
        fused=sum(number for keys, number in hlo.attention(module).items() if keys in program.keys),
        scores=hlo.scores(module, program.heads, program.queries, set(program.keys)) if program.heads else [],
        convolutions=hlo.convolutions(module),
        collectives=hlo.collectives(module),
        traffic=hlo.traffic(module),
    )


def gates(report: Report) -> dict[str, tuple[str, bool]]:
    """Program-shape gates by name: the figure, and whether it holds. Kernels and layouts are judged on GPU alone."""
    found = {"fits": (f"{report.total / 1e9:.1f} of {report.capacity / 1e9:.0f} GB", report.fits)}
    if report.program == "tick":
        number, size = report.collectives.get("collective-permute", (0, 0))
        found["G8 transfers"] = (f"{number} between stages, {size:,} bytes", number == 1)
    low, high = FLOPS
    if report.flops_lowered:
        found["G7 flops"] = (f"{report.flops_ratio:.4f}", low <= report.flops_ratio <= high)
    if report.target not in ("h200", "h100"):
        return found
    if report.program == "block":
        most = KERNELS[report.layers]
        found["G1 kernels a layer"] = (f"{report.layer_kernels:.1f} of {most}", report.layer_kernels <= most)
        moved = f"{report.copies} copies, {len(report.relaid)} weights or memories rewritten"
        found["G2 copies"] = (moved, report.copies == 0 and not report.relaid)
        aliased = report.aliased == report.state and report.temporaries <= TEMPORARIES
        figure = f"{report.temporaries / 1e6:.0f} MB, aliased {report.aliased:,} of {report.state:,} bytes"
        found["G3 temporaries"] = (figure, aliased)
        right = report.fused == 2 * report.layers and not report.scores
        found["G4 fused attention"] = (
            f"{report.fused} of {2 * report.layers}, {len(report.scores)} score buffers",
            right,
        )
    if report.program == "decode":
        planar = sum(number for layout, number in report.convolutions.items() if layout.index("f") == 1)
        figure = f"{planar} planar convolutions, {report.kernels} kernels"
        found["G6 VAE"] = (figure, planar == 0 and report.kernels <= VAE_KERNELS)
    return found
