"""Raw videos to training shards: cut, cropped to the face, filtered, encoded; and a manifest of what became of each.

    python -m train.prepare --config=configs/tiny.py --videos=videos --workdir=runs/mine/latents

Restartable: videos that are done are kept. `train.pretrain --latents=runs/mine/latents` trains on what it writes.
"""

import concurrent.futures
import itertools
import os
import pathlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tqdm
from absl import flags

from avatar_jax.core import check
from avatar_jax.core import config as configs
from avatar_jax.data import detect, latents, manifest
from avatar_jax.data.cut import Cut
from avatar_jax.data.pool import Limits, Lost, Worker
from avatar_jax.io.errors import InputError
from avatar_jax.io.footage import Unusable
from infer import door
from train.encode import Encoder

FLAGS = flags.FLAGS


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    flags.DEFINE_string("videos", None, "Folder of the videos; NAME.txt beside a video is its text.")
    flags.DEFINE_string("checkpoint", None, "Folder of the VAE and what else encodes; the embedded one if it has them.")
    flags.DEFINE_string("workdir", None, "Where the shards and the manifest go.")
    flags.DEFINE_integer("shard_files", 64, "Videos of one shard.", lower_bound=1)
    define_reading()


def define_reading() -> None:
    """The flags that say how videos are read, for every main that reads some."""
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Videos read at once, each by a process.", lower_bound=1)
    flags.DEFINE_float("file_seconds", 900.0, "Time that one video is given.", lower_bound=0.0)
    flags.DEFINE_integer("file_megabytes", 2048, "Memory that one video is given.", lower_bound=64)
    flags.DEFINE_string("detector", "avatar_jax.data.detect:faces", "What finds faces, module:function.")
    flags.DEFINE_enum("faceless", "drop", ["drop", "centre"], "Clips without a face: left out, or cropped centrally.")


class Preparation:
    """A run over the sources of a folder, several at once; the networks encode one clip at a time."""

    def __init__(self, books: manifest.Books, videos: pathlib.Path, encoder: Encoder, how: Cut, limits: Limits):
        self._books, self._videos, self._encoder = books, videos, encoder
        self._how, self._limits = how, limits
        self._lock, self._own = threading.Lock(), threading.local()
        self._workers: list[Worker] = []
        self._stopped = threading.Event()
        self.duplicates = manifest.duplicates(videos, (source.name for shard in books.shards for source in shard))

    def _worker(self) -> Worker:
        """This thread's own."""
        if not hasattr(self._own, "worker"):
            self._own.worker = Worker(self._how, self._limits)
            self._workers.append(self._own.worker)
        return self._own.worker

    def _caption(self, source: manifest.Source) -> str | None:
        path = (self._videos / source.name).with_suffix(".txt")
        try:
            return path.read_text(encoding="utf-8").strip() or None
        except (OSError, ValueError):
            return None

    def _text(self, source: manifest.Source) -> Any:
        """The caption's rows, None for a model that reads none. Raises Unusable."""
        if not self._encoder.reads:
            return None
        caption = self._caption(source)
        if caption is None:
            raise Unusable("no_caption", f"{pathlib.PurePath(source.name).with_suffix('.txt')} holds no text")
        with self._lock:
            return self._encoder.text(caption)

    def _records(self, source: manifest.Source, rows: list[manifest.Row]) -> Iterator[latents.Record]:
        """The records of a source's kept clips; a row for every clip, and one for the source. Raises Lost."""
        reason = detail = None
        try:
            if source.name in self.duplicates:
                raise Unusable("duplicate", f"is {self.duplicates[source.name]}")
            text = self._text(source)
            for clip in self._worker().clips(self._videos / source.name):
                rows.append(manifest.row_of(source.name, clip, self._how.video_frames / self._how.fps))
                if clip.frames is not None and clip.waveform is not None:
                    with self._lock:
                        record = self._encoder.record(clip.frames, clip.waveform, text)
                    yield record
        except Lost:
            raise
        except Unusable as error:
            reason, detail = error.reason, str(error)
        rows.append(manifest.row_of_source(source.name, rows, reason, detail))

    def take(self, source: manifest.Source) -> None:
        """Prepares one source and enters it as done."""
        rows: list[manifest.Row] = []
        try:
            records = self._records(source, rows)
            first = next(records, None)
            if first is not None:
                latents.write_shard(self._books.part(source), itertools.chain([first], records))
        except Lost as error:
            if self._stopped.is_set():  # it was us who ended the worker
                return
            rows = [manifest.row_of_source(source.name, [], error.reason, str(error))]
        self._books.finish(source, rows)

    def run(self, threads: int) -> None:
        """Every source that is not done, shard by shard."""
        todo = [(n, shard) for n, shard in enumerate(self._books.shards) if not self._books.rows_path(n).exists()]
        left = [source for _, shard in todo for source in shard if not self._books.done(source)]
        total = sum(map(len, self._books.shards))
        bar = tqdm.tqdm(total=total, initial=total - len(left), unit="video", mininterval=5)
        with concurrent.futures.ThreadPoolExecutor(threads) as executor:
            try:
                jobs = {source: executor.submit(self.take, source) for source in left}
                for number, shard in todo:
                    for source in shard:
                        if source in jobs:
                            jobs[source].result()
                            bar.update()
                    self._books.assemble(number)
            finally:
                self._stopped.set()
                executor.shutdown(wait=False, cancel_futures=True)
                for worker in self._workers:
                    worker.kill()
        for worker in self._workers:
            worker.close()
        bar.close()


def settings(cfg: configs.Config, how: Cut, encoder: Encoder) -> dict[str, Any]:
    """What a record depends on beside its video."""
    return {
        "clips": vars(how),
        "vae": vars(cfg.vae),
        "sound": vars(cfg.sound),
        "text": cfg.text and vars(cfg.text),
        "signals": cfg.dit.signals,
        "blocks": cfg.block_frames,
        "weights": encoder.digests,
    }


def cut_of(cfg: configs.TrainingConfig) -> Cut:
    """The clips that a configuration trains on. Raises ValueError for a detector that cannot be had."""
    detect.make(FLAGS.detector)
    video = cfg.video
    return Cut(
        height=video.height,
        width=video.width,
        video_frames=cfg.data.video_frames,
        fps=video.fps,
        audio_hz=cfg.sound.audio_hz,
        detector=FLAGS.detector,
        faceless=FLAGS.faceless,
    )


def limits() -> Limits:
    """What each video is given, as the flags say."""
    return Limits(FLAGS.file_seconds, FLAGS.file_megabytes)


def prepare(books: manifest.Books, videos: pathlib.Path, encoder: Encoder, how: Cut) -> Counter[str]:
    """Every source of the books that is not done; the counts of all. Raises InputError where it cannot be written."""
    try:
        Preparation(books, videos, encoder, how, limits()).run(FLAGS.workers)
        return books.close()
    except OSError as error:
        told = f"cannot be written ({error.strerror}), free some space and run again"
        raise InputError(f"{books.folder}: {told}") from error


def reasons(counts: Counter[str]) -> str:
    """Why what was not kept was not: "3 silent, 1 no_face", or "none"."""
    named = (f"{n} {key.partition(':')[2]}" for key, n in counts.most_common() if key.startswith("reason:"))
    return ", ".join(named) or "none"


def main() -> None:
    """Prepares what is not prepared yet, then says what was kept and what was dropped."""
    cfg = check.validate(FLAGS.config)
    if not isinstance(cfg, configs.TrainingConfig):
        raise ValueError(f"config {cfg.name!r} is not for training, it has no config.data; start from configs/tiny.py")
    for name in ("videos", "workdir"):
        if not FLAGS[name].value:
            raise InputError(f"--{name} is missing; name the folder, as in --{name}={name}")
    videos, workdir = pathlib.Path(FLAGS.videos), pathlib.Path(FLAGS.workdir)
    sources, how = manifest.find(videos), cut_of(cfg)
    folder = pathlib.Path(FLAGS.checkpoint) if FLAGS.checkpoint else door.embedded(cfg.name)
    door.start_jax()
    encoder = Encoder(cfg, folder)
    books = manifest.Books(workdir, settings(cfg, how, encoder), sources, FLAGS.shard_files)
    counts = prepare(books, videos, encoder, how)
    kept = f"{counts['kept']} of {counts['clips']} clips of {counts['sources']} videos kept"
    length = f"{counts['kept'] * how.video_frames / how.fps / 60:.1f} minutes"
    sys.stdout.write(f"{kept}, {length}; not: {reasons(counts)}\n{workdir / 'manifest.jsonl'}\n")


if __name__ == "__main__":
    door.run(main, define)
