"""Runs survive: whatever ends one, the same command goes on to the same bits, and says what it cannot go on from."""

import contextlib
import dataclasses
import functools
import gc
import json
import os
import pathlib
import resource
import signal
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tqdm

from avatar_jax.io.errors import InputError
from tests.train import toy
from train import guard, loop, saves


def same(one: toy.Toy, other: toy.Toy) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def numbers(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def read(workdir: pathlib.Path, step: int) -> Any:
    return ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / "state").absolute())


@pytest.mark.parametrize("at", [0, 1, 4, 5, 6, 29])
def test_ended_anywhere_and_resumed(tmp_path: pathlib.Path, at: int):
    straight = toy.run(tmp_path / "one").fit(toy.start(), toy.rows(), toy.step)
    with contextlib.suppress(toy.Cut):
        toy.run(tmp_path / "two").fit(toy.start(), toy.rows(), toy.cut(at))
    same(toy.run(tmp_path / "two").fit(toy.start(), toy.rows(), toy.step), straight)
    steps = [json.loads(line)["step"] for line in (tmp_path / "two/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 31, 2))


def test_a_checkpoint_holds_its_own_step(tmp_path: pathlib.Path):
    """Written on the side while the next steps reuse the state's memory."""
    seen = {}

    def walk(state: toy.Toy, batch: Any, key: jax.Array):
        state, scalars = toy.step(state, batch, key)
        seen[int(state.step)] = np.array(state.weights["w"])
        return state, scalars

    toy.run(tmp_path, save_every=1).fit(toy.start(), toy.rows(), walk)
    assert numbers(tmp_path) == [29, 30] and not any((tmp_path / "checkpoints" / saves.OLD).iterdir())
    for step in numbers(tmp_path):
        np.testing.assert_array_equal(read(tmp_path, step)["weights"]["w"], seen[step])


def test_sigterm_saves_and_ends_well(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    straight = toy.run(tmp_path / "one").fit(toy.start(), toy.rows(), toy.step)

    def walk(state: toy.Toy, batch: Any, key: jax.Array):
        if int(state.step) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.step(state, batch, key)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        toy.run(tmp_path / "two").fit(toy.start(), toy.rows(), walk)
    assert ended.value.code == 0 and signal.getsignal(signal.SIGTERM) is before
    assert f"stopped at step 7, saved in {tmp_path / 'two' / 'checkpoints'}" in capsys.readouterr().err
    assert numbers(tmp_path / "two")[-1] == 7
    same(toy.run(tmp_path / "two").fit(toy.start(), toy.rows(), toy.step), straight)


@pytest.mark.parametrize("kind", [toy.POISON, toy.PEAK])
@pytest.mark.parametrize("row", [44, 49, 59])
def test_a_bad_batch_is_left_out(tmp_path: pathlib.Path, kind: int, row: int):
    """Back to the last checkpoint, on with other batches; and the same again when it is ended on the way."""
    straight = toy.run(tmp_path / "one").fit(toy.start(), toy.rows({row: kind}), toy.step)
    assert int(straight.step) == 30 and np.isfinite(straight.weights["w"]).all()
    left_out = [json.loads(line).get("left_out") for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    assert sum(found is not None for found in left_out) == 1
    for at in (26, 23, 29):
        with contextlib.suppress(toy.Cut):
            toy.run(tmp_path / "two").fit(toy.start(), toy.rows({row: kind}), toy.cut(at))
    same(toy.run(tmp_path / "two").fit(toy.start(), toy.rows({row: kind}), toy.step), straight)


def test_a_loss_that_does_not_recover(tmp_path: pathlib.Path):
    poisoned = dict.fromkeys(range(13, 1000), toy.POISON)
    with pytest.raises(ValueError, match=r"loss is nan, after 3 returns to step 5; .* checkpoint 5 is whole"):
        toy.run(tmp_path).fit(toy.start(), toy.rows(poisoned), toy.step)
    assert np.isfinite(read(tmp_path, 5)["weights"]["w"]).all() and numbers(tmp_path) == [0, 5]


def test_what_is_usual():
    watch = guard.Guard(10.0)
    assert [watch.judge({"loss": np.float32(loss)}) for loss in (50.0, *[1.0] * 30)] == [""] * 31
    assert watch.judge({"loss": np.float32(40.0)}).startswith("loss is 40")
    assert watch.judge({"loss": np.float32(9.0)}) == "" == watch.judge({})
    assert watch.judge({"loss_fake": np.float32(np.inf)}) == "loss_fake is inf"
    assert watch.judge({"gap": np.float32(np.nan)}) == ""


def test_a_changed_configuration(tmp_path: pathlib.Path):
    cfg = toy.config()
    toy.run(tmp_path, cfg, steps=5).fit(toy.start(), toy.rows(), toy.step)
    hotter = dataclasses.replace(cfg.train.dit, rate=1.0, decay=0.5)
    other = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, dit=hotter))
    named = r"config.train.dit.rate \(was 0.02\), config.train.dit.decay \(was 0.0\) differ"
    with pytest.raises(ValueError, match=named):
        toy.run(tmp_path, other).fit(toy.start(), toy.rows(), toy.step)
    longer = dataclasses.replace(cfg.train.dit, steps=9, minutes=3.0, save_every=2, log_every=3)
    other = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, dit=longer))
    assert int(toy.run(tmp_path, other, steps=7).fit(toy.start(), toy.rows(), toy.step).step) == 7


def test_a_record_from_before_a_field(tmp_path: pathlib.Path):
    """It had the default then."""
    toy.run(tmp_path, steps=2).fit(toy.start(), toy.rows(), toy.step)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["train"]["mesh"], record["train"]["dit"]["accumulate"]
    path.write_text(json.dumps(record))
    cfg = toy.config()
    assert int(toy.run(tmp_path, cfg, steps=4).fit(toy.start(), toy.rows(), toy.step).step) == 4
    path.write_text(json.dumps(record))
    twice = dataclasses.replace(cfg.train.dit, accumulate=2)
    with pytest.raises(ValueError, match=r"config.train.dit.accumulate \(was 1\) differ"):
        loop.claim(tmp_path, dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, dit=twice)), begun=True)


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="the dataset is empty"):
        toy.rows(count=0)


def test_a_checkpoint_of_another_network(tmp_path: pathlib.Path):
    toy.run(tmp_path).fit(toy.start(3), toy.rows(), toy.step)
    with pytest.raises(InputError, match=r"checkpoints/30: .*another network: it holds \(3,\) at weights/w, .* \(4,\)"):
        toy.run(tmp_path).fit(toy.start(4), toy.rows(), toy.step)
    assert numbers(tmp_path) == [25, 30]


def test_a_checkpoint_that_cannot_be_read(tmp_path: pathlib.Path):
    toy.run(tmp_path).fit(toy.start(), toy.rows(), toy.step)
    for path in (tmp_path / "checkpoints/30/state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match=r"checkpoints/30: the checkpoint cannot be read .* remove it to go on"):
        toy.run(tmp_path).fit(toy.start(), toy.rows(), toy.step)


def test_a_checkpoint_from_before_the_guard(tmp_path: pathlib.Path):
    straight = toy.run(tmp_path / "one").fit(toy.start(), toy.rows(), toy.step)
    toy.run(tmp_path / "two", steps=10).fit(toy.start(), toy.rows(), toy.step)
    for step in (5, 10):
        folder = tmp_path / "two/checkpoints" / str(step) / "guard"
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    same(toy.run(tmp_path / "two").fit(toy.start(), toy.rows(), toy.step), straight)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what Orbax leaves unfinished
def test_a_full_disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """No file may grow beyond some bytes, from a step on: as writing fails on a full disk."""
    monkeypatch.setattr(tqdm, "tqdm", functools.partial(tqdm.tqdm, disable=True))  # stderr is a file under pytest
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def walk(state: toy.Toy, batch: Any, key: jax.Array):
        if int(state.step) == 7:
            while not (tmp_path / "two/checkpoints/5").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
        return toy.step(state, batch, key)

    try:
        with pytest.raises(InputError, match="make room, then repeat the command"):
            toy.run(tmp_path / "two", log_every=100).fit(toy.start(), toy.rows(), walk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert numbers(tmp_path / "two") == [0, 5]
    straight = toy.run(tmp_path / "one").fit(toy.start(), toy.rows(), toy.step)
    same(toy.run(tmp_path / "two").fit(toy.start(), toy.rows(), toy.step), straight)
