"""Frames of several videos as one picture: a row a video, evenly spaced in time.

python -m infer.contact_sheet --videos=one.mp4,two.mp4 --output=sheet.png
"""

import pathlib

import cv2
import numpy as np
from absl import flags

from infer import door

FLAGS = flags.FLAGS
COLUMNS, SIZE = 8, 192  # frames a row, pixels a frame


def define() -> None:
    """The flags."""
    flags.DEFINE_list("videos", [], "Videos, one row each.")
    flags.DEFINE_string("output", "contact_sheet.png", "The picture to write.")


def save(path: pathlib.Path, clips: list[np.ndarray]) -> None:
    """Writes a PNG of `COLUMNS` frames of each clip uint8 [T, H, W, 3]."""
    rows = []
    for frames in clips:
        chosen = frames[np.linspace(0, len(frames) - 1, COLUMNS).astype(int)]
        rows.append(
            np.concatenate([cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for frame in chosen], 1)
        )
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])


def main() -> None:
    """Reads the videos and writes the sheet."""
    from avatar_jax.io.video import read_video

    if not FLAGS.videos:
        raise ValueError("--videos is missing; name one or more, as in --videos=one.mp4,two.mp4")
    save(pathlib.Path(FLAGS.output), [read_video(video)[0] for video in FLAGS.videos])


if __name__ == "__main__":
    door.run(main, define)
