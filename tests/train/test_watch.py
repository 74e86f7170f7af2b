"""Clips that are watched while a run trains."""

import io
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from avatar_jax.core import spec
from avatar_jax.core.check import validate
from avatar_jax.core.config import TrainingConfig, TrainMesh
from avatar_jax.data import source
from avatar_jax.io import weights as weight_files
from avatar_jax.models import dit
from infer import door
from tests.train import mini, toy
from train import distill, mesh, watch
from train.journal import Look


class State(NamedTuple):
    weights: dict


@pytest.fixture(scope="module")
def cfg() -> TrainingConfig:
    return validate(mini.get_config())


@pytest.fixture(scope="module")
def view(cfg: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> watch.View:
    folder = tmp_path_factory.mktemp("watched")
    mini.write_latents(folder, cfg)
    return watch.View(folder, door.embedded("tiny"))


def make(view: watch.View, workdir: pathlib.Path, cfg: TrainingConfig, patience: int = 0) -> watch.Watch:
    devices = mesh.make_mesh(TrainMesh(), jax.devices()[:1])

    def lay(p: dict) -> dict:
        return dit.lay_out(p, cfg.dit)

    return watch.Watch(
        view, lambda state: state.weights, lay, workdir=workdir, mesh=devices, cfg=cfg, patience=patience
    )


def weights_of(cfg: TrainingConfig, seed: int) -> State:
    return State(spec.init(dit.spec(cfg.dit), jax.random.key(seed)))


def test_the_best_look_is_kept(
    cfg: TrainingConfig, view: watch.View, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Its weights, its step, and whether it was long ago; the next start of the run knows them."""
    told = iter([0.5, 0.7, 0.6, 0.7])
    monkeypatch.setattr(watch, "scores", lambda *_: {"watch_score": next(told)})
    seen = make(view, tmp_path, cfg, patience=20)
    late = []
    for number, step in enumerate((0, 10, 20, 30)):
        look = seen.look(weights_of(cfg, number), step)
        late.append(seen.over(step))
    assert late == [False, False, False, True] and seen.best() == {"step": 10, "score": 0.7}
    assert make(view, tmp_path, cfg, patience=20).over(30) and not make(view, tmp_path, cfg).over(1000)
    kept, wanted = weight_files.load(tmp_path / watch.BEST, dit.spec(cfg.dit)), weights_of(cfg, 1).weights
    jax.tree.map(np.testing.assert_array_equal, kept, wanted)
    picture = Image.open(io.BytesIO(look.picture))
    assert (tmp_path / "watch.gif").read_bytes() == look.picture
    frames = cfg.train.dit_blocks * cfg.block_frames
    assert getattr(picture, "n_frames", 0) == frames and picture.size == look.size[::-1] == (4 * 32, 2 * 32)


def test_what_is_measured(cfg: TrainingConfig):
    """Clips that are drawn as they were filmed score what is possible; still ones nothing."""
    clips = [source.clip(7, index, video_frames=24) for index in range(3)]
    filmed, portraits = (np.stack([clip[name] for clip in clips]) for name in ("frames", "reference"))
    same = watch.scores(filmed, filmed, portraits, cfg)
    assert same["watch_sync"] == pytest.approx(1.0) and same["watch_dynamics"] == pytest.approx(1.0)
    assert same["watch_score"] == pytest.approx(same["watch_identity"]) and same["watch_identity"] > 0.9
    still = watch.scores(np.repeat(filmed[:, :1], 24, 1), filmed, portraits, cfg)
    assert still["watch_dynamics"] < 0.05 and still["watch_score"] == pytest.approx(0.0, abs=0.05)
    others = watch.scores(filmed[::-1], filmed, portraits, cfg)
    assert others["watch_identity"] < 0.5


class Tired:
    """A watch that has seen enough at step 10."""

    def look(self, state: Any, step: int) -> Look:
        return Look({"watch_score": float(step)}, watch.gif(np.zeros((2, 8, 8, 3), np.uint8), 25), (8, 8))

    def over(self, step: int) -> bool:
        return step >= 10


def events(workdir: pathlib.Path) -> list[Any]:
    """What is in the TensorBoard file: records of a length, its check, an event, its check."""
    (path,) = (workdir / "tensorboard").iterdir()
    event: Any = event_pb2
    content, found = path.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(event.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_a_run_shows_its_looks_and_ends_when_nothing_is_better(tmp_path: pathlib.Path):
    run = toy.run(tmp_path)
    run.watch = Tired()
    assert int(run.fit(toy.start(), toy.rows(), toy.step).step) == 10
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["watch_score"]) for row in rows if "watch_score" in row] == [(0, 0), (5, 5), (10, 10)]
    shown = [(event.step, value) for event in events(tmp_path) for value in event.summary.value if value.tag == "watch"]
    assert [step for step, _ in shown] == [0, 5, 10]
    assert Image.open(io.BytesIO(shown[0][1].image.encoded_image_string)).format == "GIF"
    assert int(run.fit(toy.start(), toy.rows(), toy.step).step) == 10  # begun again, it is still over


@pytest.mark.slow
def test_a_distillation_ends_with_the_best(
    cfg: TrainingConfig, view: watch.View, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """The scores fall from the start, so what is written is the student of step 0, which is its teacher."""
    told = iter(range(100, 0, -1))
    monkeypatch.setattr(watch, "scores", lambda *_: {"watch_score": float(next(told))})
    teacher = tmp_path / "teacher.safetensors"
    mini.write_teacher(teacher, cfg)
    cfg.train.distill.patience = 10  # type: ignore[union-attr]
    distill.train(cfg, str(view.clips), teacher, tmp_path / "run", view)
    written, base = (weight_files.load(path, dit.spec(cfg.dit)) for path in (tmp_path / "run/dit.safetensors", teacher))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), written, base)
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("1*")] == ["10"]


def test_patience_wants_clips(cfg: TrainingConfig, monkeypatch: pytest.MonkeyPatch):
    class Given(NamedTuple):
        watch: str = ""
        checkpoint: str | None = None

    monkeypatch.setattr(watch, "FLAGS", Given())
    assert watch.asked(cfg) is None
    with pytest.raises(ValueError, match="patience=5: needs --watch=FOLDER; or set it to 0"):
        watch.asked(cfg, 5)


def test_the_vae_is_as_configured(cfg: TrainingConfig, view: watch.View, tmp_path: pathlib.Path):
    weight_files.save(tmp_path / "vae.safetensors", {"alien": np.zeros(3)})
    with pytest.raises(ValueError, match=r"vae\.safetensors"):
        make(view._replace(networks=tmp_path), tmp_path, cfg)
    with pytest.raises(ValueError, match="no encoded clips in"):
        make(view._replace(clips=tmp_path), tmp_path, cfg)
