"""A call's recording: the fragments it was sent, whole on disk at any moment; an index in front at the end.

Nothing is encoded for it. Whenever the process is stopped, what was written opens: players read a fragmented file as
far as it goes.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

from avatar_jax.io.video import remux
from infer.live.encode import Fragment

LIVE, DONE = ".live.mp4", ".mp4"
Sign = Callable[[Path], dict[str, Any]]  # signs a finished file, and says what there is to keep of it


def _finish(live: Path, final: Path, sign: Sign | None) -> dict[str, Any]:
    """A recording under its final name, signed; one that cannot be signed is kept as it is."""
    part = final.with_suffix(".part")
    remux(live, part)
    os.replace(part, final)
    try:
        return sign(final) if sign else {}
    except (OSError, ValueError) as error:
        logging.warning("a recording is kept without its signature: %s", error)
        return {"c2pa": "failed"}


class Recording:
    """A file that grows with the call.

    Args:
      folder: it lies in.
      name: of the session, made by the server.
      sign: signs it when it is finished.
    """

    def __init__(self, folder: Path, name: str, sign: Sign | None = None):
        self._sign = sign
        folder.mkdir(parents=True, exist_ok=True)
        self._live, self.path = folder / (name + LIVE), folder / (name + DONE)
        self._file = self._live.open("wb", buffering=0)
        self._begun = False

    def write(self, init: bytes, fragments: list[Fragment]) -> None:
        """Appends fragments; the first time with the initialisation segment."""
        if not fragments:
            return
        head = b"" if self._begun else init
        self._begun = True
        self._file.write(head + b"".join(fragment.data for fragment in fragments))

    def close(self) -> dict[str, Any]:
        """Finishes the file under its final name; an empty one goes. What its signature says."""
        self._file.close()
        said = _finish(self._live, self.path, self._sign) if self._begun else {}
        self._live.unlink()
        return said


def _cut(path: Path) -> bool:
    """Cuts a file behind its last whole fragment; whether there is one."""
    whole = 0
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        start = 0
        while start + 8 <= end:
            file.seek(start)
            size, name = struct.unpack(">I4s", file.read(8))
            start += size
            if size < 8 or start > end:
                break
            whole = start if name == b"mdat" else whole
        file.truncate(whole)
    return whole > 0


def mend(folder: Path, sign: Sign | None = None) -> list[Path]:
    """Finishes the recordings that a killed process left; returns them."""
    mended = []
    for live in sorted(folder.glob("*" + LIVE)):
        final = live.with_name(live.name.removesuffix(LIVE) + DONE)
        if _cut(live):
            _finish(live, final, sign)
            mended.append(final)
        live.unlink()
    return mended


def expire(folder: Path, before_s: float) -> list[Path]:
    """Deletes finished recordings last written before a time of the wall clock; returns them."""
    gone = []
    for path in folder.glob("*" + DONE):
        if LIVE not in path.name and path.stat().st_mtime < before_s:  # one that is written may get its name just now
            path.unlink(missing_ok=True)
            gone.append(path)
    return gone
