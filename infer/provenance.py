"""What says of a video that it is generated: the watermark, the badge, the credential; on unless switched off.

--watermark=off      no mark in the pixels; said on stderr and kept in the figures
--watermark_id=7     32 bits that a detector reads back, 0x41565452 ("AVTR") if left out
--badge              a visible badge as well
--c2pa=off           no signed credential; without c2pa-python there is none either, which the figures say
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from avatar_jax.io import badge, credential, golay, watermark
from avatar_jax.io.errors import InputError
from infer import door

FLAGS = flags.FLAGS
Stamp = Callable[[np.ndarray, int], np.ndarray]  # frames uint8 [T, H, W, 3] and the number of the first
Retouch = Callable[[np.ndarray, int], np.ndarray]  # a frame uint8 [H, W, 3] and its number


def define() -> None:
    """The flags."""
    flags.DEFINE_enum("watermark", "on", ["on", "off"], "An invisible mark in the pixels; off is said and recorded.")
    said = "32 bits that the mark carries, as a detector shows them."
    flags.DEFINE_integer("watermark_id", watermark.GENERATED, said, lower_bound=0, upper_bound=golay.PAYLOADS - 1)
    flags.DEFINE_bool("badge", False, "A visible badge in a corner.")
    signs = "Sign the finished video (C2PA): auto where c2pa-python is installed."
    flags.DEFINE_enum("c2pa", "auto", ["auto", "on", "off"], signs)
    flags.DEFINE_string("c2pa_chain", None, "Certificate chain (PEM, ES256, leaf first); a self-made one if left out.")
    flags.DEFINE_string("c2pa_key", None, "Its private key (PEM).")


def watermark_key() -> str:
    """The key of the mark: AVATAR_WATERMARK_KEY, which no command line shows, or the public one."""
    return os.environ.get("AVATAR_WATERMARK_KEY") or watermark.PUBLIC_KEY


def check() -> None:
    """Refuses, before any work, what cannot be done. Raises InputError."""
    if FLAGS.c2pa == "on" and not credential.available():
        raise InputError(f"--c2pa=on: {credential.MISSING}")
    if (FLAGS.c2pa_chain is None) != (FLAGS.c2pa_key is None):
        raise InputError("--c2pa_chain and --c2pa_key: give both, or neither")
    for path in (FLAGS.c2pa_chain, FLAGS.c2pa_key):
        if path is not None and not Path(path).is_file():
            raise InputError(f"{path}: no such file; check --c2pa_chain and --c2pa_key")


def _mark() -> dict[str, Any] | None:
    """What the mark says, and by which key; None where it is off, which is said."""
    if FLAGS.watermark == "on":
        return {"payload": FLAGS.watermark_id, "key": watermark_key()}
    door.say("--watermark=off: nothing in the pixels of this video will say that it is generated")
    return None


def make_stamp(height: int, width: int, frames: int) -> Stamp:
    """What a video's frames go through before they are encoded; compiled for so many at a time."""
    put = badge.make_badge(height=height, width=width) if FLAGS.badge else None
    mark, said = None, _mark()
    if said:
        mark = watermark.make_marker(height=height, width=width, **said)
        mark(np.zeros((frames, height, width, 3), np.uint8), 0)

    def stamp(frames: np.ndarray, first: int) -> np.ndarray:
        shown = frames if put is None else put(frames)
        return shown if mark is None else np.asarray(mark(shown, first))

    return stamp


def make_retouch(height: int, width: int) -> Callable[[str], Retouch | None]:
    """For each live call, what its frames go through one at a time, on the host. Raises ValueError: too small."""
    put = badge.make_badge(height=height, width=width) if FLAGS.badge else None
    said = _mark()

    def retouch_of(call: str) -> Retouch | None:
        mark = watermark.host_marker(height=height, width=width, **said) if said else None

        def retouch(frame: np.ndarray, number: int) -> np.ndarray:
            shown = frame if put is None else put(frame[None])[0]
            return shown if mark is None else mark(shown, number)

        return retouch if put or mark else None

    retouch_of("")  # what is too small is refused now
    return retouch_of


def summary() -> dict[str, Any]:
    """What is put into the pixels, for a record."""
    return {"watermark": f"{FLAGS.watermark_id:08x}" if FLAGS.watermark == "on" else "off", "badge": FLAGS.badge}


def sign(output: Path) -> dict[str, Any]:
    """Signs a finished video as the flags say; what there is to record. Raises InputError."""
    record = summary()
    if FLAGS.c2pa == "off":
        return record | {"c2pa": "off"}
    if not credential.available():
        return record | {"c2pa": f"none: {credential.MISSING}"}
    if FLAGS.c2pa_chain is not None:
        chain, key = Path(FLAGS.c2pa_chain), Path(FLAGS.c2pa_key)
    else:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        chain, key = credential.make_chain(home / "avatar_jax" / "c2pa")
    credential.sign(output, chain, key, {"watermark": record["watermark"]})
    return record | {"c2pa": "self-made certificate" if FLAGS.c2pa_chain is None else FLAGS.c2pa_chain}
