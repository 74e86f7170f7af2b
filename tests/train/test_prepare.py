"""Videos to shards that training reads: whole, the same bytes again, through kills; and who said no to what."""

import dataclasses
import functools
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import check, spec
from avatar_jax.core.config import Signal, TrainingConfig, Wav2Vec2Config
from avatar_jax.data import cut, latents, manifest
from avatar_jax.data.pool import Limits
from avatar_jax.io import weights
from avatar_jax.io.errors import InputError
from avatar_jax.models import dit, mel, umt5, vae, wav2vec
from configs import tiny
from infer import door
from tests.data import films
from tests.data.test_pool import cut_of
from tests.published import folder as published_folder
from tests.published import mini_live_avatar
from train import encode, loop, optim, prepare, pretrain

ROOT = pathlib.Path(__file__).parents[2]
EVERYWHERE = "tests.data.faulty:everywhere"


def small() -> TrainingConfig:
    """The tiny run on clips of 24 frames of 32 x 32 pixels, with a small transformer that reads a signal."""
    cfg = tiny.get_config()
    video, data = dataclasses.replace(cfg.video, height=32, width=32), dataclasses.replace(cfg.data, video_frames=24)
    part = {"width": 32, "heads": 2, "layers": 2, "ffn": 48, "audio_inject": (0,), "freq": 32}
    driven = dataclasses.replace(cfg.dit, signals=(Signal("head", (1.0, 1.0)),), **part)
    rates = dataclasses.replace(cfg.train, dit_blocks=2, dit=dataclasses.replace(cfg.train.dit, warmup=1, steps=4))
    return check.validate(dataclasses.replace(cfg, video=video, data=data, dit=driven, train=rates))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two films of two clips at 25 and 30 frames a second, one without sound, one cut short, a link."""
    folder = tmp_path_factory.mktemp("videos")
    hum = (0.1 * np.sin(np.arange(2 * films.HZ) * 0.1)).astype(np.float32)
    for name, times in (("a.mp4", films.steady(50, 25)), ("b.mkv", films.steady(60, 30))):
        films.write(folder / name, films.talking(1, times, seconds=2.0, size=48)[0], times, hum)
    frames = films.talking(1, films.steady(25, 25), seconds=1.0, size=48)[0]
    films.write(folder / "mute.mp4", frames, films.steady(25, 25), None)
    (folder / "torn.mp4").write_bytes((folder / "a.mp4").read_bytes()[:2000])
    (folder / "z.mp4").symlink_to("a.mp4")
    (folder / "notes.txt").write_text("not a video")
    return folder


def prepared(videos: pathlib.Path, workdir: pathlib.Path, per_shard: int = 2) -> manifest.Books:
    cfg, how = small(), cut_of("everywhere")
    encoder = encode.Encoder(cfg, door.embedded("tiny"))
    books = manifest.Books(workdir, prepare.settings(cfg, how, encoder), manifest.find(videos), per_shard)
    prepare.Preparation(books, videos, encoder, how, Limits(60.0, 500)).run(2)
    books.close()
    return books


@pytest.fixture(scope="module")
def done(videos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("done")
    prepared(videos, workdir)
    return workdir


def rows(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "manifest.jsonl").read_text().splitlines()]


def results(workdir: pathlib.Path) -> dict[str, bytes]:
    """Everything that a preparation leaves, by name."""
    return {path.name: path.read_bytes() for path in sorted(workdir.iterdir()) if path.is_file()}


def test_every_video_and_clip_is_accounted_for(done: pathlib.Path):
    whole = {row["source"]: (row["clips_kept"], row["reason"]) for row in rows(done) if row["clip"] is None}
    assert whole == {
        "a.mp4": (2, None),
        "b.mkv": (2, None),
        "mute.mp4": (0, "no_sound"),
        "torn.mp4": (0, "not_video"),
        "z.mp4": (0, "duplicate"),
    }
    kept = [row for row in rows(done) if row.get("kept")]
    assert [(row["source"], row["clip"], row["shard"], row["record"]) for row in kept] == [
        ("a.mp4", 0, 0, 0), ("a.mp4", 1, 0, 1), ("b.mkv", 0, 0, 2), ("b.mkv", 1, 0, 3)
    ]  # fmt: skip
    assert not list((done / "work").iterdir())
    assert [path.name for path in done.glob("clips-*")] == ["clips-00000.array_record"]  # the others kept nothing


def test_records_are_what_the_networks_make_of_the_clips(videos: pathlib.Path, done: pathlib.Path):
    cfg = small()
    p = weights.load(door.embedded("tiny") / "vae.safetensors", vae.spec(cfg.vae))
    records = list(latents.read_shard(done / "clips-00000.array_record"))
    clips = list(cut.clips(videos / "a.mp4", cut_of("everywhere"), cut.detect.make(EVERYWHERE)))
    encode_whole = jax.jit(functools.partial(vae.encode, cfg=cfg.vae))
    for clip, record in zip(clips, records[:2], strict=True):
        assert clip.frames is not None and clip.waveform is not None
        z = encode_whole(p, vae.from_uint8(clip.frames[None]))[0]
        np.testing.assert_allclose(record["latent"].astype(np.float32), z, atol=0.02)
        features = mel.whole(jnp.asarray(clip.waveform), cfg.mel)
        np.testing.assert_allclose(record["features"].astype(np.float32), features, atol=2e-3)
        assert record["latent"].dtype == record["features"].dtype == np.float16
        assert record["signal.head"].shape == (24, 2) and np.isnan(record["signal.head"]).all()


def test_training_takes_a_step_on_them(done: pathlib.Path):
    cfg = small()
    data = latents.window_dataset(done, cfg, silence=mel.silence(cfg.mel), batch=4)
    batch = next(loop.batches(data, threads=1, prefetch=1))
    assert batch["latent"].shape == (4, 6, 4, 4, 16) and batch["features"].shape[2] == cfg.stream.audio_context + 24
    state = optim.empty(dit.lay_out(spec.init(dit.spec(cfg.dit), jax.random.key(0)), cfg.dit), cfg.train.dit)
    state, scalars = functools.partial(pretrain.step, cfg=cfg)(state, batch, jax.random.key(1))
    assert np.isfinite(float(scalars["loss"])) and int(state.step) == 1


def test_the_same_again_is_the_same_bytes(videos: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path):
    prepared(videos, tmp_path)
    assert results(tmp_path) == results(done)


def test_later_videos_make_shards_of_their_own(videos: pathlib.Path, tmp_path: pathlib.Path):
    growing, workdir = tmp_path / "videos", tmp_path / "shards"
    growing.mkdir()
    shutil.copy(videos / "b.mkv", growing / "m.mkv")
    prepared(growing, workdir)
    before = results(workdir)
    shutil.copy(videos / "a.mp4", growing / "a.mp4")
    books = prepared(growing, workdir)
    assert [[source.name for source in shard] for shard in books.shards] == [["m.mkv"], ["a.mp4"]]
    after = results(workdir)
    assert all(after[name] == before[name] for name in ("clips-00000.array_record", "manifest-00000.jsonl"))
    assert [(row["source"], row["shard"]) for row in rows(workdir) if row.get("kept")] == [
        ("m.mkv", 0), ("m.mkv", 0), ("a.mp4", 1), ("a.mp4", 1)
    ]  # fmt: skip


def test_another_request_wants_another_folder(done: pathlib.Path, videos: pathlib.Path):
    held = json.loads((done / "settings.json").read_text())
    manifest.Books(done, held, manifest.find(videos), 2)
    with pytest.raises(InputError, match="was made with another clips, blocks; name another --workdir"):
        manifest.Books(done, held | {"clips": {}, "blocks": 8}, [], 2)


def test_folders_without_videos_are_refused(tmp_path: pathlib.Path):
    with pytest.raises(InputError, match="no such folder"):
        manifest.find(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no video; it may hold"):
        manifest.find(tmp_path)


def test_every_reason_is_in_the_guide():
    guide = (ROOT / "docs" / "training.md").read_text()
    assert not [name for name, what in manifest.REASONS.items() if f"| {name} | {what} |" not in guide]


def command(videos: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    sizes = ["--config.video.height=32", "--config.video.width=32", "--config.data.video_frames=24"]
    given = [f"--videos={videos}", f"--workdir={workdir}", "--workers=2", "--shard_files=2", f"--detector={EVERYWHERE}"]
    return [sys.executable, "-m", "train.prepare", "--config=configs/tiny.py", *sizes, *given]


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_nothing(videos: pathlib.Path, tmp_path: pathlib.Path):
    """SIGKILL when the first video is done, then when the first shard is; then the rest."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = subprocess.run(command(videos, whole), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.startswith("4 of 4 clips of 5 videos kept, 0.1 minutes; not: "), said
    for first in ("work/*.jsonl", "manifest-00000.jsonl"):
        running = subprocess.Popen(command(videos, killed), cwd=ROOT, stderr=subprocess.DEVNULL)
        while not list(killed.glob(first)) and running.poll() is None:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        running.wait()
        for path in killed.rglob("*.array_record"):
            assert list(latents.read_shard(path))
    subprocess.run(command(videos, killed), cwd=ROOT, capture_output=True, check=True)
    assert results(killed) == results(whole) and not list((killed / "work").iterdir())


def test_a_missing_folder_is_one_line(tmp_path: pathlib.Path):
    asked = command(tmp_path, tmp_path / "out")
    ended = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "holds no video" in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


def test_text_and_wav2vec2_are_encoded_where_the_model_reads_them(tmp_path: pathlib.Path):
    mini, cfg = mini_live_avatar.get_config(), small()
    assert mini.text is not None and isinstance(mini.sound, Wav2Vec2Config)
    reads = dataclasses.replace(cfg.dit, text_width=32, text_tokens=12, signals=())
    ahead = dataclasses.replace(cfg.stream, audio_past=8, audio_ahead=3)
    cfg = dataclasses.replace(cfg, sound=mini.sound, text=mini.text, dit=reads, stream=ahead)
    shutil.copy(door.embedded("tiny") / "vae.safetensors", tmp_path)
    weights.save(tmp_path / "umt5.safetensors", spec.init(umt5.spec(mini.text), jax.random.key(0)))
    weights.save(tmp_path / "wav2vec.safetensors", spec.init(wav2vec.spec(mini.sound), jax.random.key(1)))
    with pytest.raises(InputError, match=r"spiece\.model is missing"):
        encode.Encoder(cfg, tmp_path)
    published_folder.write_tokenizer(tmp_path / "t5" / "spiece.model", mini.text.vocabulary)
    shutil.copy(tmp_path / "t5" / "spiece.model", tmp_path)
    encoder = encode.Encoder(cfg, tmp_path)
    hum = (0.1 * np.sin(np.arange(24 * 640) * 0.1)).astype(np.float32)
    record = encoder.record(np.zeros((25, 32, 32, 3), np.uint8), hum, encoder.text("a woman talks"))
    assert record["features"].shape == (24, mini.sound.feature_layers, 24) and record["text"].shape[1] == 32
    assert 1 < len(record["text"]) < 12 and all(np.isfinite(part).all() for part in record.values())
    assert encoder.digests.keys() == {"vae", "umt5", "wav2vec"}
