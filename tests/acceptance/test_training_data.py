"""Raw videos to training shards: two thousand that are broken or odd go through, and each is accounted for.

AVATAR_BROKEN_VIDEOS changes their number; what was run stands in the row.
"""

import collections
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

from avatar_jax.data import latents, manifest, pool
from tests.acceptance import absent, broken, report

COUNT = int(os.environ.get("AVATAR_BROKEN_VIDEOS", "2000"))
row = functools.partial(report.row, "training")


def prepare(videos: pathlib.Path, workdir: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """The command, on clips of a second of 32 x 32 pixels through the embedded VAE."""
    sizes = ["--config.video.height=32", "--config.video.width=32", "--config.data.video_frames=24"]
    given = [f"--videos={videos}", f"--workdir={workdir}", "--detector=avatar_jax.data.detect:drawn"]
    limits = ["--workers=2", "--file_seconds=60", "--file_megabytes=1024"]
    command = [sys.executable, "-m", "train.prepare", "--config=configs/tiny.py", *sizes, *given, *limits]
    return subprocess.run(command, cwd=absent.ROOT, capture_output=True, text=True)


def test_broken_videos(tmp_path: pathlib.Path) -> None:
    videos, workdir = tmp_path / "videos", tmp_path / "shards"
    whole = broken.make(videos, COUNT)
    began = time.monotonic()
    ran = prepare(videos, workdir)
    minutes = (time.monotonic() - began) / 60
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = [json.loads(line) for line in (workdir / "manifest.jsonl").read_text().splitlines()]
    sources = [line for line in rows if line["clip"] is None]
    kept = [line for line in rows if line.get("kept")]
    reasons = collections.Counter(line["reason"] for line in rows if line["reason"])
    records = sum(len(list(latents.read_shard(path))) for path in workdir.glob("clips-*"))
    listed = {line["source"] for line in sources}
    accounted = len(sources) == len(listed) == COUNT and listed == set(manifest.find(videos))
    explained = all(line["clips_kept"] or line["reason"] or line["clips_dropped"] for line in sources)
    named = set(reasons) <= set(manifest.REASONS) and not reasons["failed"]
    lost = sum(reasons[name] for name in pool.REASONS)
    said = ", ".join(f"{count} {name}" for name, count in reasons.most_common())
    figure = (
        f"{len(sources)} videos ({whole} whole, the others mutated) in {minutes:.1f} min: exit code {ran.returncode}, "
        f"{len(kept)} clips kept, {records} records; {said}; {lost} workers replaced"
    )
    met = ran.returncode == 0 and accounted and explained and named and records == len(kept) > 0
    bar = "none crashes it; each accounted for in the manifest"
    assert row(f"{COUNT:,} broken or odd videos through preprocessing", figure, bar, met), ran.stderr[-2000:]
