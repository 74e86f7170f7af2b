"""A call's recording: the fragments it was sent, whole on disk at any moment; an index in front at the end.

Nothing is encoded for it. Whenever the process is stopped, what was written opens: players read a fragmented file as
far as it goes.
"""

import os
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


def mend(folder: Path) -> list[Path]:
    """Finishes the recordings that a killed process left; returns them."""
    mended = []
    for live in sorted(folder.glob("*" + LIVE)):
        final = live.with_name(live.name.removesuffix(LIVE) + DONE)
        try:
            remux(live, final.with_suffix(".part"))
        except (OSError, ValueError):  # killed before the first whole fragment
            final.with_suffix(".part").unlink(missing_ok=True)
            live.unlink()
            continue
        os.replace(final.with_suffix(".part"), final)
        live.unlink()
        mended.append(final)
    return mended


def expire(folder: Path, before_s: float) -> list[Path]:
    """Deletes finished recordings last written before a time of the wall clock; returns them."""
    old = [path for path in folder.glob("*" + DONE) if path.stat().st_mtime < before_s and LIVE not in path.name]
    for path in old:
        path.unlink(missing_ok=True)
    return old
