"""One person's adapters: what is learned from, what is held out, and what becomes of the student."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import check, lora, spec
from avatar_jax.core.config import FinetuneConfig, TrainingConfig
from avatar_jax.data import latents
from avatar_jax.io import weights
from avatar_jax.io.errors import InputError
from avatar_jax.models import dit
from configs import tiny, tiny_driven
from infer import door
from tests.data import films
from tests.train import mini
from train import distill, finetune, optim

ROOT = pathlib.Path(__file__).parents[2]


def small() -> TrainingConfig:
    """The smallest run, with a person to learn."""
    cfg = mini.get_config()
    rates = dataclasses.replace(cfg.train.dit, batch=2, steps=30, rate=0.03, vector_rate=0.03, ema=0.9)
    settings = FinetuneConfig(optim=rates, rank=4, alpha=4.0, held_out=0.2)
    return check.validate(dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, finetune=settings)))


def prepared(folder: pathlib.Path, kept: int) -> Counter[str]:
    """What a preparation of one video leaves, of which so many clips are kept, the next one being silent."""
    mini.write_latents(folder, small())
    rows = [{"source": "me.mp4", "clip": i, "kept": i < kept, "reason": None} for i in range(kept + 1)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Counter({"reason:silent": 1})


def test_what_is_held_out_is_never_learned_from(tmp_path: pathlib.Path):
    """The last fifth is held out, and the clip before it, whose portrait is a frame of theirs, is in neither part."""
    cfg, counts = small(), prepared(tmp_path, mini.CLIPS)
    assert [row["clip"] for row in finetune.split(tmp_path, counts, cfg)] == [5]
    every = list(latents.read_shard(latents.shard_path(tmp_path, 0)))
    for name, wanted in (("train", every[:4]), ("held", every[5:])):
        found = list(latents.read_shard(latents.shard_path(tmp_path / name, 0)))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one["latent"], other["latent"])


def test_too_little_video_is_refused_with_its_reasons(tmp_path: pathlib.Path):
    with pytest.raises(InputError, match=r"2 usable clips of 0\.96 s, at least 3 are needed; not: 1 silent"):
        finetune.split(tmp_path, prepared(tmp_path, 2), small())
    assert not (tmp_path / "train").exists()


def test_videos_are_known_by_their_bytes(tmp_path: pathlib.Path):
    for name, content in (("a.mp4", b"one"), ("b.mp4", b"two"), ("again.mp4", b"one")):
        (tmp_path / name).write_bytes(content)
    names = [str(tmp_path / name) for name in ("b.mp4", "a.mp4", "again.mp4")]
    assert list(finetune.read_videos(names)) == names[:2]
    with pytest.raises(InputError, match="--video is missing"):
        finetune.read_videos([])
    with pytest.raises(InputError, match=r"c\.mp4: cannot be read \(No such file"):
        finetune.read_videos([str(tmp_path / "c.mp4")])


def test_a_configuration_has_to_say_how():
    with pytest.raises(ValueError, match=r"has no config\.train\.finetune"):
        finetune.tuning(tiny.get_config())
    cfg = tiny_driven.get_config()
    assert finetune.tuning(check.validate(cfg)).rank == 16
    for name, value in (("rank", 0), ("held_out", 0.0), ("held_out", 1.0)):
        wrong = dataclasses.replace(finetune.tuning(cfg), **{name: value})
        with pytest.raises(ValueError, match=rf"train\.finetune\.{name}"):
            check.validate(dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, finetune=wrong)))


@pytest.mark.slow
def test_adapters_learn_and_the_merged_weights_are_the_grafted_ones(tmp_path: pathlib.Path):
    """Fresh ones change nothing; after some steps the held-out loss of the same windows is lower, grafted or merged."""
    cfg = small()
    mini.write_latents(tmp_path, cfg)
    p = spec.init(dit.spec(cfg.dit), jax.random.key(0))
    p = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(1), leaf.shape), p)
    base, unlearned = distill.frozen(p, cfg), spec.init(lora.spec(dit.spec(cfg.dit), 4), jax.random.key(0))
    state, data = optim.empty(unlearned, finetune.tuning(cfg).optim), finetune.batches(tmp_path, 2, cfg)
    for i in range(30):
        state, _ = finetune.step(state, next(data), jax.random.key(i), base, cfg=cfg)
    again = spec.init(lora.spec(dit.spec(cfg.dit), 4), jax.random.key(0))
    loss = functools.partial(finetune.held_loss, folder=tmp_path, cfg=cfg)
    before, after = loss(base, again), loss(base, state.average)
    assert after < before - 0.01
    merged = lora.merge(p, state.average, scale=1.0)
    assert loss(merged, again) == pytest.approx(after, rel=1e-4)
    assert loss(p, again) == pytest.approx(before, rel=1e-6)


def test_what_a_stream_needs_comes_along(tmp_path: pathlib.Path):
    source, cfg = door.embedded("tiny_driven"), tiny_driven.get_config()
    for _ in range(2):  # again over what is there
        finetune.accompany(source, tmp_path, cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["vae.safetensors"]
    assert (tmp_path / "vae.safetensors").read_bytes() == (source / "vae.safetensors").read_bytes()


def command(*given: str) -> subprocess.CompletedProcess:
    asked = [sys.executable, "-m", *given]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)


def refused(*given: str) -> str:
    """The line of a refusal, after whatever said how far it had come."""
    ended = command("train.finetune", *given)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr.splitlines()[-1]


def test_a_checkpoint_of_another_geometry_is_one_line(tmp_path: pathlib.Path):
    video, workdir = (
        films.write(tmp_path / "me.mp4", np.zeros((3, 32, 32, 3), np.uint8), films.steady(3, 25), None),
        tmp_path / "me",
    )
    weights.save(tmp_path / "dit.safetensors", {"w": jnp.zeros(3)})
    finetune.accompany(door.embedded("tiny_driven"), tmp_path, tiny_driven.get_config())
    said = refused(f"--video={video}", f"--workdir={workdir}", f"--checkpoint={tmp_path}")
    assert said.startswith(f"{tmp_path}/dit.safetensors: weights do not fit the configuration"), said
    assert not workdir.exists()


@pytest.mark.slow
def test_the_embedded_student_learns_a_person_and_streams(tmp_path: pathlib.Path):
    """A few steps: lower loss on what is held out, the same again on a second call; then it streams."""
    times = films.steady(400, 25)
    frames, truth = films.talking(3, times, seconds=16.0)
    video = films.write(tmp_path / "me.mp4", frames, times, truth["waveform"])
    workdir, rates = tmp_path / "me", "--config.train.finetune.optim"
    given = [f"--video={video}", f"--workdir={workdir}", f"{rates}.batch=2", f"{rates}.steps=20", "--workers=1"]
    first = command("train.finetune", *given)
    assert first.returncode == 0, first.stderr
    scores = json.loads((workdir / "finetune.json").read_text())
    assert scores["after"]["loss"] < scores["before"]["loss"] and "identity distance" in first.stdout
    student = (workdir / "dit.safetensors").read_bytes()
    assert student != (door.embedded("tiny_driven") / "dit.safetensors").read_bytes()
    assert (workdir / "adapters.safetensors").is_file()
    assert command("train.finetune", *given).stdout == first.stdout
    assert (workdir / "dit.safetensors").read_bytes() == student

    other = films.write(tmp_path / "you.mp4", frames[:100], times[:100], truth["waveform"][:64000])
    assert "another videos" in refused(f"--video={other}", *given[1:])
    assert "rank" in refused(*given, "--config.train.finetune.rank=8")
    assert (workdir / "dit.safetensors").read_bytes() == student

    shown = command(
        "infer.stream",
        "--config=configs/tiny_driven.py",
        f"--checkpoint={workdir}",
        f"--output={tmp_path / 'talk.mp4'}",
    )
    assert shown.returncode == 0 and (tmp_path / "talk.mp4").stat().st_size > 10_000, shown.stderr
