"""A call's recording: the fragments it was sent, whole on disk at any moment; an index in front at the end.

Nothing is encoded for it. Whenever the process is stopped, what was written opens: players read a fragmented file as
far as it goes.
"""

import os
import struct
from pathlib import Path

from avatar_jax.io.video import remux
from infer.live.encode import Fragment

LIVE, DONE = ".live.mp4", ".mp4"


class Recording:
    """A file that grows with the call.

    Args:
      folder: it lies in.
      name: of the session, made by the server.
    """

    def __init__(self, folder: Path, name: str):
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

    def close(self) -> None:
        """Finishes the file under its final name; an empty one goes."""
        self._file.close()
        if self._begun:
            part = self.path.with_suffix(".part")
            remux(self._live, part)
            os.replace(part, self.path)
        self._live.unlink()


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


def mend(folder: Path) -> list[Path]:
    """Finishes the recordings that a killed process left; returns them."""
    mended = []
    for live in sorted(folder.glob("*" + LIVE)):
        final = live.with_name(live.name.removesuffix(LIVE) + DONE)
        if _cut(live):
            remux(live, final.with_suffix(".part"))
            os.replace(final.with_suffix(".part"), final)
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
