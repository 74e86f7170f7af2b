"""Compiles the full-size programs for devices that are not attached, and says what comes out.

    python -m infer.compile --target=h200                       every program of S2V-14B
    python -m infer.compile --target=v5e --devices=4 --program=block --output=report.json
    make compile TARGET=v6e                                     the same, installing the compiler first

A step of stage two on a pod is `python -m train.compile --target=v6e`.
Nothing is allocated and no accelerator is needed: the compilers come as Python packages. On one device it prints the
whole program, on several one device's share of it, weights and memories split over heads and the feed-forward's inner
width. Without --devices it takes the smallest number that fits. Times cannot be had this way; what the program does
can: memory, kernels, copies, layouts, collectives. Exit code 2 if a gate fails or a program does not fit.
"""

import dataclasses
import json
import math
import pathlib
import sys

import jax
from absl import flags
from jax.sharding import Mesh

from avatar_jax.core.config import DitConfig
from avatar_jax.io.convert import wan, wan_vae
from avatar_jax.io.convert.published import Tensors
from avatar_jax.io.errors import InputError
from avatar_jax.stream import mesh as meshes
from infer import door
from infer.aot import measure, programs, targets
from infer.aot import tick as ticks
from infer.aot.measure import Report
from infer.aot.programs import Program, Size
from infer.aot.targets import Target

FLAGS = flags.FLAGS
PROGRAMS = ("block", "prefill", "decode", "teacher", "sound")
TICK = "tick"  # of the pipeline: asked for by name
COLUMNS = ("target", "devices", "program", "GB needed", "arguments", "temporaries", "aliased", "TFLOP", "lowered")
COLUMNS += ("kernels", "a layer", "an injector", "copies", "collectives", "traffic GB", "compile s", "gates")


def define() -> None:
    """The flags."""
    flags.DEFINE_enum("target", None, sorted(targets.TARGETS), "Device to compile for.")
    flags.DEFINE_enum("program", "all", ["all", *PROGRAMS, TICK], "What to compile.")
    flags.DEFINE_enum("model", "s2v_14b", sorted(wan.PUBLISHED), "Published transformer.")
    flags.DEFINE_integer("devices", None, "Devices that share a program or a stage; default: the fewest that it fits.")
    flags.DEFINE_integer("stages", 4, "Stages of a tick: 1, 2 or 4.")
    flags.DEFINE_integer("context", 1, "Bands of a stage of a tick, each on --devices: 1, 2 or 4.")
    flags.DEFINE_integer("height", 704, "Pixels.")
    flags.DEFINE_integer("width", 384, "Pixels.")
    flags.DEFINE_string("plugins", None, "Folder with the target's compiler; default: .targets/<platform>, if there.")
    flags.DEFINE_string("output", None, "JSON file to write.")


def config_of(model: str, platform: str) -> DitConfig:
    """The published transformer as the platform runs it."""
    loop, kernel = {"gpu": ("unroll", "cudnn"), "tpu": ("scan", "splash"), "cpu": ("unroll", "reference")}[platform]
    described = wan.PUBLISHED[model]
    cfg = wan.dit_config(described, Tensors({}), layer_loop=loop, compute_dtype="bfloat16")
    return dataclasses.replace(cfg, attention=kernel)


Split = tuple[int, int]  # stages of a tick, and bands of each


def mesh_of(target: Target, count: int, split: Split = (1, 1)) -> Mesh:
    """`count` of the target's devices a band of each stage, sharing each layer's work."""
    stages, context = split
    devices = targets.devices(target, stages * context * count)
    return meshes.make_mesh(devices, stages=stages, context=context, tensor=count)


def program_of(name: str, target: Target, mesh: Mesh | None, size: Size, model: str) -> Program:
    """A program laid out on the target, or with `mesh` None as it is written, to count its operations."""
    place = programs.Place(mesh)
    if name == "decode":
        return programs.decode(wan_vae.config(Tensors({})), size, place, target.platform)
    build = ticks.tick if name == TICK else getattr(programs, name)
    with targets.present(target):  # a tick's state is traced for its shapes
        return build(config_of(model, "cpu" if mesh is None else target.platform), size, place)


def report_of(name: str, target: Target, mesh: Mesh, size: Size, model: str) -> Report:
    """One program, compiled for the mesh."""
    program = program_of(name, target, mesh, size, model)
    lowered = measure.lowered_flops(program_of(name, target, None, size, model))
    injectors = len(config_of(model, target.platform).audio_inject)
    return measure.measure(program, target, mesh, model=model, injectors=injectors, flops_lowered=lowered)


def smallest(name: str, target: Target, size: Size, model: str, split: Split = (1, 1)) -> Report:
    """The report on the fewest devices, of each band of each stage, that the program fits."""
    tried = ""
    for count in targets.COUNTS if name != "decode" else targets.COUNTS[:1]:
        if not target.exists(math.prod(split) * count):
            continue
        mesh = mesh_of(target, count, split)
        needed = program_of(name, target, mesh, size, model).argument_bytes
        if needed > target.memory_gb * 1e9:
            tried = f"{count} devices: arguments alone are {needed / 1e9:.1f} GB each"
            continue
        try:
            report = report_of(name, target, mesh, size, model)
        except jax.errors.JaxRuntimeError as error:  # TPU compilers refuse what does not fit
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            tried = str(error).partition("\n")[0]
            continue
        if report.fits:
            return report
        tried = f"{count} devices: {report.total / 1e9:.1f} GB each"
    raise InputError(f"{name} of {model} does not fit {target.name}: {tried}")


def markdown(reports: list[Report]) -> str:
    """The reports as a table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for r in reports:
        failed = [name for name, (_, held) in measure.gates(r).items() if not held]
        moved = ", ".join(f"{n} {kind} ({size / 1e9:.2f} GB)" for kind, (n, size) in r.collectives.items())
        sizes = (f"{size / 1e9:.2f}" for size in (r.arguments, r.temporaries, r.aliased))
        needed, unrolled = f"{r.total / 1e9:.1f} of {r.capacity / 1e9:.0f}", r.layer_loop == "unroll"
        row = (r.target, str(r.devices), r.program, needed, *sizes, f"{r.flops / 1e12:.2f}")
        row += (f"{r.flops_ratio:.4f}" if r.flops_lowered else "-",)
        row += (str(r.kernels), f"{r.layer_kernels:.1f}" if unrolled else "-")
        row += (f"{r.injector_kernels:.1f}" if unrolled and r.injector_kernels else "-", str(r.copies), moved or "-")
        looped = r.layers and not unrolled  # what a turn reads of a stack cannot be told from the text
        row += ("-" if looped else f"{r.traffic / 1e9:.0f}", f"{r.compile_seconds:.0f}", ", ".join(failed) or "hold")
        lines.append(row)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _split(target: Target) -> Split:
    """Stages and bands as the flags say; raises InputError for others than can be compiled."""
    if FLAGS.program != TICK:
        return 1, 1
    for name in ("stages", "context"):
        if FLAGS[name].value not in (1, 2, 4):
            raise InputError(f"--{name}={FLAGS[name].value}: must be 1, 2 or 4")
    split = FLAGS.stages, FLAGS.context
    count = math.prod(split) * (FLAGS.devices or 1)
    if not target.exists(count):
        raise InputError(f"--stages={split[0]} --context={split[1]}: {target.name} does not come in {count} devices")
    return split


def main() -> None:
    """Compiles, prints a table and the gates."""
    if not FLAGS.target:
        raise InputError(f"--target is needed: one of {', '.join(sorted(targets.TARGETS))}")
    target = targets.TARGETS[FLAGS.target]
    if FLAGS.devices is not None and FLAGS.devices not in targets.COUNTS:
        raise InputError(f"--devices={FLAGS.devices}: must be one of {', '.join(map(str, targets.COUNTS))}")
    split = _split(target)
    for name, pixels in (("height", FLAGS.height), ("width", FLAGS.width)):
        if pixels < 64 or pixels % 16:
            raise InputError(f"--{name}={pixels}: must be a multiple of 16 pixels, 64 at least")
    targets.prepare(target, FLAGS.plugins)
    door.start_jax("")
    size = Size(FLAGS.height, FLAGS.width)
    spoken = wan.PUBLISHED[FLAGS.model]["model_type"] == "s2v"
    names = [name for name in PROGRAMS if FLAGS.program in ("all", name) and (spoken or name != "sound")]
    names = [TICK] if FLAGS.program == TICK else names
    reports = []
    for name in names:
        if FLAGS.devices and name != "decode":
            mesh = mesh_of(target, FLAGS.devices, split)
            reports.append(report_of(name, target, mesh, size, FLAGS.model))
        else:
            reports.append(smallest(name, target, size, FLAGS.model, split))
        for gate, (figure, held) in measure.gates(reports[-1]).items():
            door.say(f"{name}: {gate}: {figure}{'' if held else '  <- NOT MET'}")
    sys.stdout.write(markdown(reports))
    if FLAGS.output:
        rows = [dataclasses.asdict(report) | {"gates": measure.gates(report)} for report in reports]
        pathlib.Path(FLAGS.output).write_text(json.dumps(rows, indent=1))
    broken = [r.program for r in reports if not all(held for _, held in measure.gates(r).values())]
    if broken:
        raise InputError(f"gates not met by {', '.join(broken)}")


if __name__ == "__main__":
    door.run(main, define)
