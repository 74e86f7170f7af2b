"""Was this video generated here? Reads the watermark, and the credential where c2pa-python is installed.

    python -m infer.detect talk.mp4

One JSON object on stdout; exit code 0 with a watermark, 1 without, 2 for what is no video. The key is the public one,
or AVATAR_WATERMARK_KEY. Neither JAX nor the network is used.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from avatar_jax.io import credential, watermark
from avatar_jax.io.decoder import open_container
from avatar_jax.io.errors import InputError, open_input
from infer import door, provenance

PIECE, GAP = 50, 250  # video frames read at a time; the longest hole that is filled with the frame before it
UNMARKED = 1


def _numbered(path: Path) -> Iterator[np.ndarray]:
    """Frames in grey [H, W], as often as their times say: where one was dropped the one before stands for it."""
    with open_input(path, kind="video") as file, open_container(file) as container:
        track = container.streams.best("video")
        if track is None:
            raise InputError(f"{path}: has no video track; give a video")
        rate, number, start = float(track.average_rate or 25), 0, None
        for frame in container.decode(track):
            start = float(frame.time or 0) if start is None else start
            wanted = round((float(frame.time or 0) - start) * rate)
            grey = frame.to_ndarray(format="gray")
            for _ in range(max(1, min(wanted - number, GAP) + 1) if frame.time is not None else 1):
                yield grey
                number += 1


def read(path: Path, key: str) -> watermark.Finding:
    """What the pixels of a video hold. Raises InputError."""
    detector, waiting = watermark.Detector(key), []
    try:
        for grey in _numbered(path):
            if waiting and grey.shape != waiting[-1].shape:  # the size changes: cells do not
                detector.push(np.stack(waiting))
                waiting = []
            waiting.append(grey)
            if len(waiting) == PIECE:
                detector.push(np.stack(waiting))
                waiting = []
        if waiting:
            detector.push(np.stack(waiting))
    except InputError:
        raise
    except Exception as error:  # decoders raise a dozen types on damaged bytes
        raise InputError(f"{path}: is not a video that can be decoded; give an mp4, webm or mkv file") from error
    try:
        return detector.finish()
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def report(path: Path, found: watermark.Finding) -> dict[str, Any]:
    """The finding in words that programs read."""
    return {
        "video": str(path),
        "watermark": found.marked,
        "payload": None if found.payload is None else f"{found.payload:08x}",
        "score": round(found.score, 2),
        "threshold": round(found.threshold, 2),
        "false_alarms": watermark.FALSE_ALARMS,
        "windows_marked": sum(score >= found.threshold for score in found.windows),
        "windows": len(found.windows),
        "c2pa": credential.verify(path) if credential.available() and path.suffix == ".mp4" else "not looked for",
    }


def main(argv: list[str]) -> int:
    """Reads one video; the exit code."""
    if len(argv) != 2:
        door.say("name one video, as in python -m infer.detect talk.mp4")
        return door.BAD_INPUT
    path = Path(argv[1])
    try:
        found = report(path, read(path, provenance.watermark_key()))
    except ValueError as error:
        door.say(str(error))
        return door.BAD_INPUT
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0 if found["watermark"] else UNMARKED


if __name__ == "__main__":
    from absl import app

    app.run(lambda argv: main(list(argv)), flags_parser=lambda argv: flags.FLAGS(argv))
