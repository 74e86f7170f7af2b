"""Training: runs that survive, and meshes that change nothing.

AVATAR_KILLS shortens the row of killed runs; what was run stands in it.
"""

import functools
import os
import pathlib
import random
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from avatar_jax.core.config import TrainMesh
from tests.acceptance import absent, report
from tests.train import mini, test_mesh

KILLS = int(os.environ.get("AVATAR_KILLS", "20"))
STEPS, SAVED_EVERY = 24 * KILLS, 4
row = functools.partial(report.row, "training")


class Stage(NamedTuple):
    """A main that trains: its module and flags, and the networks it leaves beside its checkpoints."""

    name: str
    command: tuple[str, ...]
    leaves: str
    rates: str  # the part of the configuration that says how long it trains


MINI = "--config=tests/train/mini.py"
ONE = Stage("stage one", ("train.pretrain", MINI), "dit.safetensors", "dit")
TWO = Stage("stage two", ("train.distill", MINI, "--teacher={}/teacher.safetensors"), "dit.safetensors", "distill.fake")
STAGES = [ONE, TWO]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of latents for the mini runs."""
    folder = tmp_path_factory.mktemp("latents")
    mini.write_latents(folder, mini.get_config())
    mini.write_teacher(folder / "teacher.safetensors", mini.get_config())
    return folder


def begin(stage: Stage, clips: pathlib.Path, workdir: pathlib.Path, *more: str, devices: int = 1) -> subprocess.Popen:
    """The main, with so many virtual devices; its programs compiled soon rather than fast."""
    told = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": told}
    said = [word.format(clips) for word in stage.command]
    command = [sys.executable, "-m", *said, f"--latents={clips}", f"--workdir={workdir}", *more]
    return subprocess.Popen(command, cwd=absent.ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def end(running: subprocess.Popen) -> None:
    """Waits for its good end."""
    said = running.communicate()[1]
    assert running.returncode == 0, said[-2000:]


def numbered(workdir: pathlib.Path) -> dict[int, pathlib.Path]:
    return {int(path.name): path for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()}


def read(workdir: pathlib.Path, step: int) -> Any:
    """The arrays of a checkpoint, wherever they were before."""
    folder = numbered(workdir)[step].absolute() / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        described = checkpointer.metadata(folder).item_metadata
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), described)
        return jax.tree.map(np.asarray, checkpointer.restore(folder, target))


def unreadable(workdir: pathlib.Path) -> list[str]:
    """Checkpoints that cannot be read whole."""
    bad = []
    for step in numbered(workdir):
        try:
            read(workdir, step)
        except Exception as error:  # whatever Orbax says of a torn file
            bad.append(f"{step}: {error}"[:200])
    return bad


def kill(running: subprocess.Popen, workdir: pathlib.Path, *, saving: bool, delay: float) -> bool:
    """SIGKILL some seconds after it has begun, or finished, its next save; whether it was in time."""
    before = set(numbered(workdir))

    def there() -> bool:
        begun = any((workdir / "checkpoints").glob("*tmp*/*"))
        return begun if saving else bool(set(numbered(workdir)) - before)

    while running.poll() is None and not there():
        time.sleep(0.002)
    time.sleep(delay)
    running.kill()
    running.communicate()
    return running.returncode == -9


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_killed_and_resumed(stage: Stage, clips: pathlib.Path, tmp_path: pathlib.Path):
    """Half of the kills fall on a save."""
    stages = {"steps": STEPS, "save_every": SAVED_EVERY}
    more = [f"--config.train.{stage.rates}.{name}={value}" for name, value in stages.items()]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    end(begin(stage, clips, whole, *more))
    rng, kills, torn, bad = random.Random(0), 0, 0, []
    for number in range(KILLS):
        running = begin(stage, clips, killed, *more)
        saving = number % 2 == 1
        kills += kill(running, killed, saving=saving, delay=rng.uniform(0.0, 0.1 if saving else 0.5))
        torn += any((killed / "checkpoints").glob("*tmp*"))
        bad += unreadable(killed)
    end(begin(stage, clips, killed, *more))
    one, other = read(whole, STEPS), read(killed, STEPS)
    leaves = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
    same = all(leaves) and (whole / stage.leaves).read_bytes() == (killed / stage.leaves).read_bytes()
    figure = (
        f"{kills} kills, {torn} of them in a save; {sum(leaves)} of {len(leaves)} arrays and {stage.leaves} "
        f"{'bit-equal' if same else 'NOT equal'} after {STEPS} steps; {len(bad)} checkpoints unreadable"
    )
    bar = "final parameters bit-equal to the uninterrupted run; no checkpoint unreadable"
    assert row(f"kill -9 at {KILLS} random moments of {stage.name}", figure, bar, same and not bad and kills == KILLS)


def test_eight_devices(clips: pathlib.Path):
    one, eight = (test_mesh.trained(shape, clips, 20) for shape in (TrainMesh(), test_mesh.EIGHT))
    gap = test_mesh.apart(one, eight)
    what = "8 virtual devices (data 2 x fsdp 2 x tensor 2) == 1 device, stage one, mini"
    assert row(what, f"{gap:.1e} after 20 steps", "20 steps, parameters to 1e-5", gap <= 1e-5)


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def weights_apart(one: Any, other: Any) -> float:
    pairs = zip(jax.tree.leaves(one["weights"]), jax.tree.leaves(other["weights"]), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def test_two_processes(clips: pathlib.Path, tmp_path: pathlib.Path):
    """Each reads its share of every batch; together they write each checkpoint once."""
    alone, pair, mesh = tmp_path / "alone", tmp_path / "pair", "--config.train.mesh.data=2"
    end(begin(ONE, clips, alone, mesh, devices=2))
    told = [f"--coordinator=127.0.0.1:{port()}", "--processes=2"]
    running = [begin(ONE, clips, pair, mesh, *told, f"--process={number}") for number in range(2)]
    for process in running:
        end(process)
    gap = weights_apart(read(alone, 20), read(pair, 20))
    same = (alone / ONE.leaves).read_bytes() == (pair / ONE.leaves).read_bytes()
    figure = f"weights {gap:.1e} apart after 20 steps; {ONE.leaves} {'the same bytes' if same else 'differs'}"
    assert row("two-process training on loopback, stage one, mini", figure, "equals one process: 1e-6", gap <= 1e-6)
