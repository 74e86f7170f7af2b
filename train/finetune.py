"""One person: adapters on a trained avatar, learned from a few minutes of their video.

    python -m train.finetune --config=configs/tiny_driven.py --video=me.mp4 --workdir=runs/me
    python -m infer.stream --config=configs/tiny_driven.py --checkpoint=runs/me --image=me.png --output=talk.mp4

The videos become clips as in `train.prepare`; the last of them are held out. Adapters on the teacher's weights learn
stage one's loss, and at the end the same adapters are merged into the student. That loss fits the teacher and not the
student: it teaches the velocity at any noise level, and minimised on the student itself it would undo the few-step
sampling that stage two made. The student is the teacher's weights moved a little, so a change that is small and of low
rank means nearly the same on both. Nothing proves that it does; the figures before and after, of streams of the student
on held-out speech, are there to tell.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from avatar_jax.core import axes, check, lora, spec
from avatar_jax.core import config as configs
from avatar_jax.data import latents, manifest
from avatar_jax.data.cut import Cut
from avatar_jax.data.pool import Worker
from avatar_jax.io import checkpoint
from avatar_jax.io import weights as weight_files
from avatar_jax.io.errors import InputError
from avatar_jax.io.footage import Unusable
from avatar_jax.metrics import identity, mouth, sync
from avatar_jax.models import dit, layout, mel
from avatar_jax.stream import session
from infer import door
from train import distill, loop, optim, prepare, pretrain, windows
from train import mesh as meshes
from train.encode import Encoder, digest
from train.journal import writing

FLAGS = flags.FLAGS
FEWEST = 3  # clips: one to learn from, one held out, and one between them
LOOKS = 4  # batches of held-out windows that the loss is the mean of
NAMES = {"loss": "held-out loss", "sync": "lip sync r", "identity": "identity distance"}
Wanted = dict[tuple[str, int], Any]  # rows of captions or None, by source and number of clip


class Held(NamedTuple):
    """A held-out clip as it was filmed."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    waveform: np.ndarray  # float32 [T samples_per_frame]
    text: jax.Array | None  # rows of its caption [1, n, D], where the model reads one


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny_driven.py")
    flags.DEFINE_multi_string("video", [], "A video of the person; may be given several times.")
    flags.DEFINE_string("checkpoint", None, "Folder of the student and its VAE. Default: the embedded one.")
    flags.DEFINE_string("teacher", None, "Weights to learn on. Default: the checkpoint's teacher, or its student.")
    flags.DEFINE_string("workdir", None, "Where clips, checkpoints and the adapted student go.")
    prepare.define_reading()


def tuning(cfg: Any) -> configs.FinetuneConfig:
    """The settings of this stage. Raises ValueError: the configuration has none."""
    settings = cfg.train.finetune if isinstance(cfg, configs.TrainingConfig) else None
    if settings is None:
        raise ValueError(f"config {cfg.name!r} has no config.train.finetune; see configs/tiny_driven.py")
    return settings


def read_videos(named: list[str]) -> dict[str, str]:
    """Digest of each video by its absolute path, in order; of files with the same bytes the first one.

    Raises:
      InputError: no video is named, or one cannot be read.
    """
    if not named:
        raise InputError("--video is missing; name a video of the person, as in --video=me.mp4")
    found: dict[str, str] = {}
    for name in named:
        try:
            with open(name, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"--video={name}: cannot be read ({error.strerror}); name a video file") from error
        found.setdefault(content, os.path.abspath(name))
    return {path: content for content, path in found.items()}


def network(base: dict, adapters: dict, cfg: configs.TrainingConfig) -> dict:
    """The adapters grafted on the base, laid out to run."""
    settings = tuning(cfg)
    return dit.lay_out(lora.graft(base, adapters, scale=settings.alpha / settings.rank), cfg.dit)


def loss_fn(adapters: dict, batch: windows.Batch, key: jax.Array, base: dict, *, cfg: configs.TrainingConfig):
    """Stage one's loss of the adapted base, and scalars."""
    return pretrain.loss_fn(network(base, adapters, cfg), batch, key, cfg=cfg)


@functools.partial(jax.jit, static_argnames="cfg", donate_argnums=0)
def step(state: optim.TrainState, batch: windows.Batch, key: jax.Array, base: dict, *, cfg: configs.TrainingConfig):
    """One step of the adapters. base: from `distill.frozen`. Returns the state and scalars."""
    rates, loss = tuning(cfg).optim, functools.partial(loss_fn, base=base, cfg=cfg)
    gradient, scalars = optim.gradient(loss, state.weights, batch, key, pieces=rates.accumulate)
    return optim.step(state, gradient, cfg=rates), scalars


def batches(folder: pathlib.Path, rows: int, cfg: configs.TrainingConfig) -> Any:
    """Batches of windows of a folder's clips. One person speaks: no pairs."""
    silence = mel.silence(cfg.sound) if isinstance(cfg.sound, configs.MelConfig) else None
    data = latents.window_dataset(folder, cfg, silence=silence, batch=rows)
    return loop.batches(data, threads=cfg.data.workers, prefetch=4)


@functools.lru_cache(maxsize=2)
def make_judge(cfg: configs.TrainingConfig) -> Callable[..., jax.Array]:
    """The loss alone, compiled: (adapters, batch, key, base) -> []."""
    return jax.jit(lambda *given: loss_fn(*given, cfg=cfg)[1]["loss"])


def held_loss(base: dict, adapters: dict, folder: pathlib.Path, cfg: configs.TrainingConfig) -> float:
    """Mean loss of the same windows at the same noise, whatever the adapters."""
    judge = make_judge(cfg)
    data, key = batches(folder, tuning(cfg).optim.batch, cfg), jax.random.key(cfg.data.seed)
    return float(np.mean([judge(adapters, next(data), jax.random.fold_in(key, i), base) for i in range(LOOKS)]))


def split(folder: pathlib.Path, counts: Any, cfg: configs.TrainingConfig) -> list[dict[str, Any]]:
    """Writes `train/` and `held/` from the shards of a preparation; the manifest's rows of what is held out.

    Between them one clip is left out: its reference picture is a frame of the first that is held out.

    Raises:
      InputError: too few clips, and why.
    """
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if row.get("kept")]
    if len(kept) < FEWEST:
        length = cfg.data.video_frames / cfg.video.fps
        told = (
            f"{len(kept)} usable clips of {length:.2f} s, at least {FEWEST} are needed; not: {prepare.reasons(counts)}"
        )
        raise InputError(f"{folder / 'manifest.jsonl'}: {told}; give more of the person, and another --workdir")
    held = min(max(1, round(tuning(cfg).held_out * len(kept))), len(kept) - FEWEST + 1)
    shards = sorted(folder.glob("clips-*.array_record"))
    records = [record for shard in shards for record in latents.read_shard(shard)]
    for name, part in (("train", records[: -held - 1]), ("held", records[-held:])):
        path = latents.shard_path(folder / name, 0)
        if not path.exists():
            latents.write_shard(path, part)
    return kept[-held:]


def filmed(rows: list[dict[str, Any]], folder: pathlib.Path, how: Cut, cfg: configs.TrainingConfig) -> list[Held]:
    """The clips of manifest rows, cut out of their videos again. Raises InputError where one is not there any more."""
    records = list(latents.read_shard(latents.shard_path(folder / "held", 0)))
    texts = [latents.caption(record, cfg).get("text") for record in records]
    wanted = {(row["source"], row["clip"]): text for row, text in zip(rows, texts, strict=True)}
    found = [clip for source in dict.fromkeys(row["source"] for row in rows) for clip in _cut_out(source, wanted, how)]
    if len(found) < len(rows):
        told = f"{len(found)} of {len(rows)} held-out clips can be read now"
        raise InputError(f"{folder}: {told}; repeat the command, with more --file_seconds and --file_megabytes")
    return found


def _cut_out(source: str, wanted: Wanted, how: Cut) -> Iterator[Held]:
    """The wanted clips of one video."""
    with Worker(how, prepare.limits()) as worker, contextlib.suppress(Unusable):  # as it ended when it was prepared
        for clip in worker.clips(source):
            if clip.frames is not None and clip.waveform is not None and (source, clip.number) in wanted:
                text = wanted[source, clip.number]
                yield Held(clip.frames[1:], clip.waveform, None if text is None else jnp.asarray(text)[None])


def streamed(folder: pathlib.Path, held: list[Held], cfg: configs.TrainingConfig) -> dict[str, float]:
    """How a checkpoint streams held-out speech, each clip from its own first frame.

    "sync": r of the mouths' opening, streamed and filmed. "identity": mean distance of embeddings, of streamed frames
    to the mean of the filmed ones.
    """
    weights, hearing, rs, gaps = session.load_weights(cfg, folder), session.load_hearing(cfg, folder), [], []
    for clip in held:
        avatar = session.make_avatar(cfg, weights, clip.frames[0], text=clip.text, hearing=hearing)
        live = session.Session(avatar)
        drawn = np.concatenate([np.asarray(part) for part in live.push_audio(clip.waveform) + live.finish()])
        rs.append(sync.pearson(mouth.read_frames(drawn).opening, mouth.read_frames(clip.frames).opening))
        person = identity.embed(clip.frames).mean(0)
        gaps.append(np.linalg.norm(identity.embed(drawn) - person, axis=-1).mean())
    return {"sync": float(np.mean(rs)), "identity": float(np.mean(gaps))}


def _link(source: str, target: str) -> str:
    """A second name for a file, or a copy where the file system has none."""
    pathlib.Path(target).unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)  # of a link, what it leads to
    except OSError:
        shutil.copy2(source, target)
    return target


def accompany(folder: pathlib.Path, workdir: pathlib.Path, cfg: configs.TrainingConfig) -> None:
    """Puts what a stream needs beside the transformer next to it: the other networks, and the tokenizer."""
    for name, _ in checkpoint.parts(cfg):
        if name != "dit" and (folder / name).is_dir():
            shutil.copytree(folder / name, workdir / name, copy_function=_link, dirs_exist_ok=True)
            _link(str(folder / f"{name}.json"), str(workdir / f"{name}.json"))
        elif name != "dit":
            _link(str(folder / f"{name}.safetensors"), str(workdir / f"{name}.safetensors"))
    if cfg.text:
        _link(str(folder / checkpoint.TOKENIZER), str(workdir / checkpoint.TOKENIZER))


def learn(base: dict, data: pathlib.Path, workdir: pathlib.Path, cfg: configs.TrainingConfig) -> tuple[dict, dict]:
    """Trains to the end; the averaged adapters, and the held-out loss before and after."""
    rates, mesh = tuning(cfg).optim, meshes.make_mesh(cfg.train.mesh)
    adapters = lora.spec(dit.spec(cfg.dit), tuning(cfg).rank)
    where = layout.shardings(meshes.RULES, mesh, unrolled=False, cfg=cfg.dit)
    base = jax.device_put(distill.frozen(base, cfg), where)

    def fresh() -> optim.TrainState:
        return optim.empty(spec.init(adapters, jax.random.key(cfg.data.seed)), rates)

    state = meshes.make_state(fresh, axes.shardings(adapters, meshes.RULES, mesh), mesh)
    stepped = meshes.make_step(functools.partial(step, cfg=cfg), state, mesh)

    def walk(state: optim.TrainState, batch: windows.Batch, key: jax.Array) -> Any:
        return stepped(state, batch, key, base)

    state = loop.Run(cfg, rates, workdir, mesh).fit(state, batches(data / "train", rates.batch, cfg), walk)
    done = meshes.whole(state.average)
    unlearned = spec.init(adapters, jax.random.key(cfg.data.seed))
    each = {"before": unlearned, "after": done}
    return done, {when: held_loss(base, given, data / "held", cfg) for when, given in each.items()}


def table(scores: dict[str, dict[str, float]]) -> str:
    """The figures before and after, a line each."""
    lines = [f"{'':<20}{'before':>8}{'after':>8}"]
    lines += [f"{said:<20}{scores['before'][name]:8.3f}{scores['after'][name]:8.3f}" for name, said in NAMES.items()]
    return "\n".join(lines) + "\n"


def load(cfg: configs.TrainingConfig, folder: pathlib.Path, teacher: pathlib.Path | None) -> tuple[dict, dict]:
    """The student of a checkpoint, and the weights to learn on. Raises ValueError for those of another geometry."""
    student = checkpoint.load(folder, "dit", cfg.dit)
    return student, weight_files.load(teacher, dit.spec(cfg.dit)) if teacher else student


def tune(
    cfg: configs.TrainingConfig,
    videos: dict[str, str],
    folder: pathlib.Path,
    teacher: pathlib.Path | None,
    workdir: pathlib.Path,
) -> dict[str, dict[str, float]]:
    """Prepares, learns, merges and measures; what is there already is kept. Returns the scores before and after.

    Args:
      cfg: the run.
      videos: from `read_videos`.
      folder: the checkpoint.
      teacher: weights to learn on; None: the student's own.
      workdir: of this person, and of nothing else.

    Raises:
      ValueError: weights of another geometry, too few clips, or a workdir of another run.
    """
    settings, how = tuning(cfg), prepare.cut_of(cfg)
    student, base = load(cfg, folder, teacher)
    encoder, data = Encoder(cfg, folder), workdir / "data"
    asked = prepare.settings(cfg, how, encoder) | {
        "videos": videos,
        "held_out": settings.held_out,
        "transformers": [digest(student), digest(base)],
    }
    books = manifest.Books(data, asked, list(videos), len(videos))
    rows = split(data, prepare.prepare(books, pathlib.Path(), encoder, how), cfg)
    adapters, losses = learn(base, data, workdir, cfg)
    with writing(workdir):
        accompany(folder, workdir, cfg)
        weight_files.save(workdir / "adapters.safetensors", adapters)
        merged = lora.merge(student, adapters, scale=settings.alpha / settings.rank)
        weight_files.save(workdir / "dit.safetensors", merged, dtype="float16")
    held = filmed(rows, data, how, cfg)
    each = {"before": folder, "after": workdir}
    scores = {when: {"loss": losses[when]} | streamed(place, held, cfg) for when, place in each.items()}
    with writing(workdir):
        manifest.write(workdir / "finetune.json", json.dumps(scores | {"held_out_clips": len(held)}, indent=1) + "\n")
    return scores


def main() -> None:
    """Adapts, then says what has changed."""
    cfg = check.validate(FLAGS.config)
    tuning(cfg)
    videos = read_videos(FLAGS.video)
    if not FLAGS.workdir:
        raise InputError("--workdir is missing; name a folder for this person, as in --workdir=runs/me")
    folder = pathlib.Path(FLAGS.checkpoint) if FLAGS.checkpoint else door.embedded(cfg.name)
    if folder.resolve() == pathlib.Path(FLAGS.workdir).resolve():
        raise InputError(f"--workdir={folder}: is the checkpoint to start from; name another folder for this person")
    checkpoint.verify(folder, cfg, origin=f"--checkpoint={folder}")
    beside = folder / "teacher.safetensors"
    teacher = pathlib.Path(FLAGS.teacher) if FLAGS.teacher else beside if beside.is_file() else None
    door.start_jax()
    sys.stdout.write(table(tune(cfg, videos, folder, teacher, pathlib.Path(FLAGS.workdir))))


if __name__ == "__main__":
    door.run(main, define)
