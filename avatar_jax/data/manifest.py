"""The books of a preparation: which sources there are, which are done, and what became of each clip.

    settings.json             what was asked for; another request wants another folder
    sources.json              the sources of each shard, in order; sources that appear later make shards of their own
    work/00012.jsonl          source 12 is done: its rows; beside it its clips, if it has any
    clips-00000.array_record  a shard whose sources are all done
    manifest-00000.jsonl      its rows; with it the shard is done and its parts in work/ go
    manifest.jsonl            all rows, when all shards are done

Everything is written under another name first, so that what has its name is whole.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from avatar_jax.data import cut, latents, pool
from avatar_jax.io import footage
from avatar_jax.io.errors import InputError

CAMERAS = (".3g2", ".3gp", ".m2ts", ".m4v", ".mov", ".mp4", ".mts", ".ts")
SUFFIXES = (*CAMERAS, ".asf", ".avi", ".flv", ".mkv", ".ogv", ".webm", ".wmv")
REASONS = (
    footage.REASONS
    | cut.REASONS
    | pool.REASONS
    | {
        "duplicate": "leads to a file that is listed under another name",
        "no_caption": "the model reads text, and no .txt of this name holds any",
    }
)
Row = dict[str, Any]


def write(path: pathlib.Path, text: str) -> None:
    """A file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def find(folder: pathlib.Path) -> list[str]:
    """Everything under a folder that is named like a video, relative to it, sorted; links to folders are not entered.

    Raises InputError for a folder that is missing or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the folder of the videos")
    found = []
    for place, folders, files in os.walk(folder):
        names = (name for name in (*folders, *files) if pathlib.PurePath(name).suffix.lower() in SUFFIXES)
        found += [os.path.relpath(os.path.join(place, name), folder) for name in names]
    if not found:
        raise InputError(f"{folder}: holds no video; it may hold {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


def duplicates(folder: pathlib.Path, sources: Iterable[str]) -> dict[str, str]:
    """Sources that lead to a file listed before them, and the name it has there."""
    first: dict[str, str] = {}
    real = {source: os.path.realpath(folder / source) for source in sources}
    plain = sorted(real, key=lambda source: (os.path.islink(folder / source), source))  # a link is the duplicate
    for source in plain:
        first.setdefault(real[source], source)
    return {source: first[path] for source, path in real.items() if first[path] != source}


def row_of(source: str, clip: cut.Clip, seconds: float) -> Row:
    """What became of a clip."""
    return {
        "source": source,
        "clip": clip.number,
        "kept": clip.reason is None,
        "reason": clip.reason,
        "start": clip.start,
        "seconds": seconds,
        "crop": clip.crop,
        "reference": clip.reference,
    }


def row_of_source(source: str, rows: Sequence[Row], reason: str | None, detail: str | None) -> Row:
    """What became of a source: how many clips it gave, and why it gave none or ended early."""
    kept = sum(row["kept"] for row in rows)
    counts = {"clips_kept": kept, "clips_dropped": len(rows) - kept}
    return {"source": source, "clip": None, **counts, "reason": reason, "detail": detail}


@dataclasses.dataclass(frozen=True)
class Source:
    """One video of the plan."""

    number: int
    name: str


class Books:
    """A preparation's folder."""

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any], sources: Sequence[str], per_shard: int):
        """Opens or begins it. Raises InputError where it was begun with other settings, or cannot be written."""
        self.folder, self.work = folder, folder / "work"
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); name another --workdir") from error
        self._agree(dict(settings))
        self.shards = self._plan(list(sources), per_shard)

    def _agree(self, settings: dict[str, Any]) -> None:
        path, wanted = self.folder / "settings.json", json.loads(json.dumps(settings))
        if not path.exists():
            write(path, json.dumps(wanted, indent=1) + "\n")
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in wanted | found if wanted.get(name) != found.get(name)]
        if other:
            raise InputError(f"{path}: was made with another {', '.join(other)}; name another --workdir")

    def _plan(self, sources: list[str], per_shard: int) -> list[list[Source]]:
        path = self.folder / "sources.json"
        planned = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        known = set(itertools.chain.from_iterable(planned))
        fresh = [source for source in sources if source not in known]
        planned += [fresh[at : at + per_shard] for at in range(0, len(fresh), per_shard)]
        write(path, json.dumps(planned))
        number = itertools.count()
        return [[Source(next(number), name) for name in names] for names in planned]

    def rows_path(self, shard: int) -> pathlib.Path:
        """Where a finished shard's rows lie."""
        return self.folder / f"manifest-{shard:05d}.jsonl"

    def part(self, source: Source) -> pathlib.Path:
        """Where the clips of one source lie until its shard is made."""
        return self.work / f"{source.number:05d}.array_record"

    def done(self, source: Source) -> bool:
        """Whether a source needs no work, its shard being unfinished."""
        return self.part(source).with_suffix(".jsonl").exists()

    def finish(self, source: Source, rows: list[Row]) -> None:
        """Enters a source's rows: it is done."""
        ordered = sorted(rows, key=lambda row: -1 if row["clip"] is None else row["clip"])
        write(self.part(source).with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in ordered))

    def assemble(self, shard: int) -> None:
        """Makes a shard of its sources' parts, all done, and then forgets them."""
        sources = self.shards[shard]
        if not self.rows_path(shard).exists():
            parts = [self.part(source) for source in sources if self.part(source).exists()]
            if parts:
                records = itertools.chain.from_iterable(map(latents.read_shard, parts))
                latents.write_shard(latents.shard_path(self.folder, shard), records)
            rows, record = [], itertools.count()
            for source in sources:
                for line in self.part(source).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    rows.append(row | {"shard": shard, "record": next(record)} if row.get("kept") else row)
            write(self.rows_path(shard), "".join(json.dumps(row) + "\n" for row in rows))
        for source in sources:
            for path in self.work.glob(f"{source.number:05d}.*"):
                path.unlink()

    def close(self) -> Counter[str]:
        """Joins the shards' rows, all done; counts sources, clips, kept clips, and reasons as "reason:name"."""
        for path in (*self.work.iterdir(), *self.folder.glob("*.partial")):  # a kill left them
            path.unlink()
        text = "".join(self.rows_path(shard).read_text(encoding="utf-8") for shard in range(len(self.shards)))
        write(self.folder / "manifest.jsonl", text)
        counts: Counter[str] = Counter()
        for row in map(json.loads, text.splitlines()):
            kind = "sources" if row["clip"] is None else "clips"
            counts.update({kind: 1, "kept": int(row.get("kept", False))})
            if row["reason"]:
                counts[f"reason:{row['reason']}"] += 1
        return counts
