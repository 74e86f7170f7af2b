"""The process that cuts one video after another, at the other end of `data/pool.py`.

It has the memory it was given and no more, and knows no JAX, so that it starts in a second and can be killed at any
moment. Paths come in on stdin, a JSON string a line. Answers go out on stdout: a line of JSON, and after the line of a
clip that is kept its frames and its sound as bytes.
"""

import dataclasses
import json
import os
import resource
import sys
import threading
import time
from typing import Any, BinaryIO

from avatar_jax.data import cut, detect
from avatar_jax.io.footage import Unusable

WATCH_S = 2.0


def _limit(megabytes: int) -> None:
    """Allows so much memory beyond what is mapped now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    most = mapped + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _watch(parent: int) -> None:
    """Ends this process with the one that started it, whatever file it is in."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(1)


def _send(out: BinaryIO, header: dict[str, Any], *arrays: Any) -> None:
    out.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
        out.write(memoryview(array).cast("B"))
    out.flush()


def _cut(path: str, how: cut.Cut, find: detect.Detector, out: BinaryIO) -> None:
    """Sends every clip of a file, then why it ended."""
    reason = detail = None
    try:
        for clip in cut.clips(path, how, find):
            about = {name: getattr(clip, name) for name in ("number", "start", "reason", "crop", "reference")}
            kept = (clip.frames, clip.waveform) if clip.frames is not None else ()
            arrays = [array for array in kept if array is not None]
            _send(out, {"clip": about, "shapes": [array.shape for array in arrays]}, *arrays)
    except Unusable as error:
        reason, detail = error.reason, str(error)
    except MemoryError:
        reason, detail = "memory", "needs more memory than a file is given"
    except BrokenPipeError:
        raise
    except Exception as error:  # a detector that someone else wrote, a fault of ours: one file is lost, not the run
        reason, detail = "failed", f"{type(error).__name__}: {error}"
    _send(out, {"end": {"reason": reason, "detail": detail}})


def main(settings: str) -> None:
    """Serves until stdin ends. settings: JSON, `cut.Cut` as "cut", "megabytes" for each file."""
    import cv2
    from av.logging import set_level

    parent = os.getppid()
    told = json.loads(settings)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints does not speak for us
    how = cut.Cut(**told["cut"])
    find = detect.make(how.detector)
    set_level(None)
    cv2.setNumThreads(1)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _limit(told["megabytes"])
    _send(out, {"ready": dataclasses.asdict(how)})
    for line in sys.stdin.buffer:
        _cut(json.loads(line), how, find, out)


if __name__ == "__main__":
    main(sys.argv[1])
