"""Would this file be taken as an upload? Decodes it as the server does, in a limited child process.

    python -m infer.admit face.png voice.m4a

A line a file: what it becomes, or the name of the refusal and its reason. Exit code 0 if all are taken, 2 otherwise.
"""

import sys
from pathlib import Path

from absl import app

from avatar_jax.io import guard
from infer import door

SIDE = 512  # pixels of the picture that is made


def admit(decoder: guard.Guard, path: Path) -> str:
    """What a file becomes, in words. Raises Refused, or OSError where it cannot be read."""
    with open(path, "rb") as file:  # no more than is looked at
        data = file.read(max(guard.PICTURE_BYTES, guard.SOUND_BYTES) + 1)
    if guard.is_recording(data[:16]):
        samples = decoder.sound(data)
        return f"{samples.size / 16_000:.3f} s of sound"
    decoder.picture(data, height=SIDE, width=SIDE)
    return "a picture"


def main(argv: list[str]) -> int:
    """Tries every file; the exit code."""
    if len(argv) < 2:
        door.say("name a file, as in python -m infer.admit face.png")
        return door.BAD_INPUT
    code = 0
    with guard.Guard() as decoder:
        for name in argv[1:]:
            try:
                line = f"{name}: {admit(decoder, Path(name))}"
            except (guard.Refused, OSError) as error:
                why = f"{error.name}: {error}" if isinstance(error, guard.Refused) else str(error)
                line, code = f"{name}: refused, {why}", door.BAD_INPUT
            sys.stdout.write(" ".join(line.split()) + "\n")
    return code


if __name__ == "__main__":
    app.run(main)
