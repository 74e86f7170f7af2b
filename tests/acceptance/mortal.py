"""A process that streams the embedded avatar into a folder, saves as it goes, and may be killed at any moment.

    python -m tests.acceptance.mortal FOLDER SECONDS

Started again it goes on from its last save and ends with `done`. What it shows twice must be the same.
"""

import os
import pathlib
import sys

import numpy as np

from avatar_jax.core import check
from avatar_jax.io import record
from avatar_jax.io.audio import open_audio
from avatar_jax.io.image import load_portrait
from avatar_jax.stream import session
from configs import tiny
from infer import door

PIECE = 5000  # samples at a time, about two thirds of a block
SAVED_EVERY = 2  # pieces


def speech(seconds: float, audio_hz: int = 16_000) -> np.ndarray:
    """The embedded recording again and again, float32 [n]."""
    with open_audio(door.embedded("speech.wav"), audio_hz=audio_hz) as audio:
        return np.resize(np.concatenate(list(audio.blocks(audio_hz))), int(seconds * audio_hz))


def embedded() -> session.Avatar:
    """The portrait and the weights that come with the package."""
    cfg = check.validate(tiny.get_config())
    portrait = load_portrait(door.embedded("portrait.png"), height=cfg.video.height, width=cfg.video.width)
    return session.make_avatar(cfg, session.load_weights(cfg, door.embedded("tiny")), portrait)


def say(word: str) -> None:
    """Tells whoever watches how far this process is."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def keep(folder: pathlib.Path, first: int, blocks: session.Blocks) -> None:
    """Writes blocks under their numbers; exits with 3 where one was shown before and is another now."""
    for number, block in enumerate(blocks, first):
        path, frames = folder / f"{number:05}.npy", np.asarray(block)
        if path.exists() and not np.array_equal(np.load(path), frames):
            sys.exit(3)
        np.save(path.with_suffix(".part.npy"), frames)
        os.replace(path.with_suffix(".part.npy"), path)


def main() -> None:
    """Streams from the last save to the end."""
    folder, sound = pathlib.Path(sys.argv[1]), speech(float(sys.argv[2]))
    door.start_jax()
    avatar, saves, shown = embedded(), folder / "saved", folder / "shown"
    shown.mkdir(exist_ok=True)
    live = session.Session.resume(avatar, saves) if record.there(saves) else session.Session(avatar)
    say("begins")
    while live.samples < len(sound):
        block, piece = live.samples // avatar.cfg.block_samples, live.samples // PIECE
        keep(shown, block, live.push_audio(sound[live.samples :][:PIECE]))
        if piece % SAVED_EVERY == SAVED_EVERY - 1:
            say("saves")
            live.save(saves)
        say("goes on")
    keep(shown, live.samples // avatar.cfg.block_samples, live.finish())
    say("done")


if __name__ == "__main__":
    main()
