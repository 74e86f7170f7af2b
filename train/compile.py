"""Compiles a step of stage two for a pod that is not attached, and says whether it fits.

    python -m train.compile --target=v5p        16 chips, 2 x 2 x 4
    python -m train.compile --target=v6e        32 chips, 4 x 8

The step is the one that `train.distill` runs, through the mesh that it runs on, with the shapes of
`configs/distill_14b.py` in the place of arrays: the student's rollout and its replay, the guided teacher, and the fake
score's update. Options and columns are those of `infer.compile`, bytes those of one chip.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from avatar_jax.core import axes, check
from avatar_jax.core import config as configs
from avatar_jax.core import spec as specs
from avatar_jax.io.errors import InputError
from avatar_jax.models import dit
from infer import compile as command
from infer import door
from infer.aot import counts, measure, programs, targets
from train import distill, windows
from train import mesh as meshes

FLAGS = flags.FLAGS
CONFIG = Path(__file__).parents[1] / "configs" / "distill_14b.py"
SHAPES = {  # the pod of each target: 2 x 2 x 4 chips, and 4 x 8
    "v5p": configs.TrainMesh(fsdp=4, tensor=4),
    "v6e": configs.TrainMesh(fsdp=4, tensor=8),
}
KERNELS = {"tpu": "splash", "gpu": "cudnn", "cpu": "reference"}


def define() -> None:
    """The flags."""
    flags.DEFINE_enum("target", "v5p", sorted(SHAPES), "Device to compile for.")
    flags.DEFINE_string("plugins", None, "Folder with the target's compiler; default: .targets/<platform>, if there.")
    flags.DEFINE_string("output", None, "JSON file to write.")


def config_of(platform: str, shape: configs.TrainMesh, layers: int = 0) -> configs.TrainingConfig:
    """The run of `configs/distill_14b.py` on so many devices, with its first `layers` layers alone if not 0."""
    cfg = door.load_config(str(CONFIG))
    cfg.dit = dataclasses.replace(cfg.dit, attention=KERNELS[platform])
    if layers:
        inject = tuple(layer for layer in cfg.dit.audio_inject if layer < layers)
        cfg.dit = dataclasses.replace(cfg.dit, layers=layers, audio_inject=inject)
    return check.validate(dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, mesh=shape)))


def batch_of(cfg: configs.TrainingConfig, mesh: Mesh) -> windows.Batch:
    """Shapes of a batch of windows, spread over the mesh."""
    size, frames, d = distill.rates(cfg).student.batch, cfg.window_latents, cfg.dit

    def rows(*shape: int, dtype: Any = jnp.float16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=meshes.rows(mesh))

    heard = cfg.stream.audio_context + cfg.vae.temporal_stride * frames
    picture = (*cfg.latent_size, d.latent_channels)
    batch = {
        "latent": rows(frames, *picture),
        "reference": rows(1, *picture),
        "features": rows(1, heard, d.audio_layers, d.audio_width),
        "signals": {s.name: rows(1, cfg.vae.temporal_stride * frames, s.width) for s in d.signals},
    }
    return batch | ({"text": rows(d.text_tokens, d.text_width)} if d.text_width else {})


def _lying(tree: Any, where: Any) -> Any:
    return jax.tree.map(lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on), tree, where)


def step(cfg: configs.TrainingConfig, mesh: Mesh) -> programs.Program:
    """One step that moves the student and the fake score; the state is given up."""
    whole = dit.spec(cfg.dit)
    base = jax.eval_shape(functools.partial(distill.frozen, cfg=cfg), specs.abstract(whole))
    state = jax.eval_shape(functools.partial(distill.begin, cfg=cfg), base)
    over = axes.shardings(distill.moving(cfg), meshes.RULES, mesh)
    state = _lying(state, meshes.lying(state, over, mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = (
        state,
        batch_of(cfg, mesh),
        jax.ShapeDtypeStruct((), key.dtype, sharding=meshes.everywhere(mesh)),
        _lying(base, axes.shardings(whole, meshes.RULES, mesh)),
    )
    fn = meshes.make_step(functools.partial(distill.step, cfg=cfg), state, mesh)
    flops = distill.rates(cfg).student.batch * counts.distill(cfg)
    return programs.Program("distill", fn, args, flops, donated=0, loop=cfg.dit.layer_loop, jitted=True)


def report_of(target: targets.Target) -> measure.Report:
    """The step on the target's pod, compiled."""
    shape = SHAPES[target.name]
    mesh = meshes.make_mesh(shape, targets.devices(target, shape.devices))
    cfg = config_of(target.platform, shape)
    with targets.present(target):
        program = step(cfg, mesh)
    return measure.measure(program, target, mesh, model=cfg.name, injectors=len(cfg.dit.audio_inject))


def main() -> None:
    """Compiles, prints a table, and refuses what does not fit."""
    target = targets.TARGETS[FLAGS.target]
    targets.prepare(target, FLAGS.plugins)
    door.start_jax("")
    report = report_of(target)
    sys.stdout.write(command.markdown([report]))
    if FLAGS.output:
        rows = [dataclasses.asdict(report) | {"gates": measure.gates(report)}]
        Path(FLAGS.output).write_text(json.dumps(rows, indent=1))
    if not report.fits:
        needed = f"{report.total / 1e9:.1f} of {report.capacity / 1e9:.0f} GB a chip"
        raise InputError(f"a step of stage two does not fit {report.devices} {target.name}: {needed}")


if __name__ == "__main__":
    door.run(main, define)
