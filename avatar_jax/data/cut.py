"""Raw videos to training clips: one frame rate, cut at scene changes, cropped to the face, silent and still ones left.

Tick k of a video is its picture on screen at (k + 0.5) / fps after the first one began, and samples
[k, k + 1) * audio_hz / fps belong to it, so that a clip's sound and pictures stand as they stood in the file, to half a
source frame.
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from avatar_jax.data import detect
from avatar_jax.io.footage import Pictures, Sound, Unusable

REASONS = {
    "short": "no run of pictures without a cut is as long as a clip",
    "slow": "under half of the clip's frames show something new",
    "silent": "under a fifth of the video frames have sound above -55 dB of full scale",
    "no_face": "no face, or none that stays in its place",
    "small_face": "the crop around the face is under half the model's size",
    "still": "nothing moves",
}
WORK_SIDE = 720  # pixels: pictures are held with a shorter side of at most this, or the model's size
GAP_S = 0.125  # a picture shown for longer hides what a mouth does: the clip ends there
NEW_SHARE = 0.5  # of a clip's frames must not repeat the one before
SCENE_CHANGE = 27.0  # mean change of hue, saturation and value in 0..255, the usual threshold of content detectors
QUIET_DB, HEARD_SHARE = -55.0, 0.2
STILL_LEVELS = 1.0  # of 255: deviation over time of the liveliest twentieth of a 64 x 64 crop
LOOKS = 5  # frames of a clip in which the face is looked for
FACE_SHARE = 0.5  # of the crop's shorter side; a drawn head fills two thirds of its picture, its face box half
SMALLEST = 0.5  # of the model's size


@dataclasses.dataclass(frozen=True)
class Cut:
    """What clips are to be: sizes in pixels, rates a second, what finds faces, what happens where there is none."""

    height: int
    width: int
    video_frames: int
    fps: int
    audio_hz: int
    detector: str  # module:function, see data/detect.py
    faceless: str  # "drop", or "centre": the largest crop in the middle of the picture

    @property
    def samples_per_frame(self) -> int:
        """Audio samples of one video frame."""
        return self.audio_hz // self.fps


@dataclasses.dataclass
class Clip:
    """One clip and where it comes from; with a `reason` it is dropped and has no frames."""

    number: int  # within its file
    start: float  # seconds from the first picture
    reason: str | None = None
    crop: dict[str, Any] | None = None  # "rule" and "box": x, y, columns, rows as fractions of the upright picture
    reference: str | None = None  # where it was taken: "clip n", or "own" where its scene has one clip
    frames: np.ndarray | None = None  # uint8 [1 + T, H, W, 3], the reference first
    waveform: np.ndarray | None = None  # float32 [T samples_per_frame]


def ticks(pictures: Iterator[tuple[float, Any]], fps: int) -> Iterator[tuple[int, Any]]:
    """What is on screen at the middle of every tick: (k, frame), k rising, left out where a picture stands too long.

    The last picture is shown for as long as the one before.
    """
    held, start, shown = None, 0.0, 0.0

    def first(time: float) -> int:  # tick whose middle comes at or after a time
        return math.ceil((time - start) * fps - 0.5 - 1e-6)

    for time, frame in pictures:
        if held is None:
            start = time
        else:
            shown = time - held[0]
            if shown <= GAP_S:
                yield from ((k, held[1]) for k in range(first(held[0]), first(time)))
        held = time, frame
    if held is not None:
        yield from ((k, held[1]) for k in range(first(held[0]), first(held[0] + min(shown, GAP_S))))


def _look(picture: np.ndarray) -> np.ndarray:
    """A small picture in hue, saturation and value, int16."""
    small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2HSV).astype(np.int16)


def runs(pictures: Pictures, how: Cut) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Clip after clip: number of its scene, first tick, and its upright pictures [H, W, 3], all of one scene."""
    scene, after, last, seen = 0, 0, None, []
    side = max(WORK_SIDE, how.height, how.width)
    shown, picture, look = None, np.zeros(0), None
    for k, frame in ticks(iter(pictures), how.fps):
        if frame is not shown:  # a frame on screen for several ticks is converted once
            shown, picture = frame, pictures.upright(frame, side)
            last, look = look, _look(picture)
            if last is not None and np.abs(look - last).mean() > SCENE_CHANGE:
                scene, seen = scene + 1, []
        if k != after:
            scene, seen = scene + 1, []
        after = k + 1
        seen.append(picture)
        if len(seen) == how.video_frames:
            yield scene, after - how.video_frames, seen
            seen = []


def silent(waveform: np.ndarray, samples_per_frame: int) -> bool:
    """Whether too few of the video frames have sound. waveform: [n] of whole frames."""
    power = np.square(waveform.reshape(-1, samples_per_frame), dtype=np.float64).mean(1)
    return bool((power > 10 ** (QUIET_DB / 10)).mean() < HEARD_SHARE)


def still(frames: np.ndarray) -> bool:
    """Whether nothing moves, not even a mouth. frames: uint8 [T, H, W, 3]."""
    small = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in frames])
    return bool(np.percentile(small.mean(-1, dtype=np.float32).std(0), 95) < STILL_LEVELS)


def square(box: np.ndarray, rows: int, columns: int, how: Cut) -> tuple[int, int, int, int]:
    """The crop around a face box, of the model's shape, moved and reduced to lie within the picture: x, y, w, h.

    Args:
      box: x, y, w, h of the face in pixels.
      rows: of the picture.
      columns: of the picture.
      how: the model's shape.
    """
    unit = max(box[2:]) / FACE_SHARE / min(how.height, how.width)  # pixels of one of the model's
    unit = min(unit, columns / how.width, rows / how.height)
    wide, high = max(1, int(unit * how.width + 1e-6)), max(1, int(unit * how.height + 1e-6))
    x, y = box[0] + box[2] / 2 - wide / 2, box[1] + box[3] / 2 - high / 2
    return round(min(max(x, 0), columns - wide)), round(min(max(y, 0), rows - high)), wide, high


def place(pictures: list[np.ndarray], how: Cut, find: detect.Detector) -> tuple[str, tuple[int, int, int, int]]:
    """Rule and crop of a clip: one crop for all of it, so that the picture does not shake. Raises Unusable."""
    rows, columns = pictures[0].shape[:2]
    looks = [pictures[round(at)] for at in np.linspace(0, len(pictures) - 1, LOOKS)]
    box = detect.steady([find(look) for look in looks])
    if box is not None:
        return "face", square(box, rows, columns, how)
    if how.faceless != "centre":
        raise Unusable("no_face", "no face that stays in its place")
    whole = np.array([0, 0, columns, rows], np.float64)
    return "centre", square(whole, rows, columns, how)


def _cropped(pictures: list[np.ndarray], crop: tuple[int, int, int, int], how: Cut) -> np.ndarray:
    x, y, wide, high = crop
    shrinks = wide >= how.width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    parts = [picture[y : y + high, x : x + wide] for picture in pictures]
    return np.stack([cv2.resize(part, (how.width, how.height), interpolation=method) for part in parts])


def _fill(clip: Clip, pictures: list[np.ndarray], how: Cut, find: detect.Detector) -> None:
    """Crops a clip, or says why not."""
    try:
        rule, crop = place(pictures, how, find)
    except Unusable as error:
        clip.reason = error.reason
        return
    rows, columns = pictures[0].shape[:2]
    box = [round(part / whole, 4) for part, whole in zip(crop, (columns, rows) * 2, strict=True)]
    clip.crop = {"rule": rule, "box": box}
    if min(crop[2] / how.width, crop[3] / how.height) < SMALLEST:
        clip.reason = "small_face"
        return
    clip.frames = _cropped(pictures, crop, how)
    if still(clip.frames):
        clip.reason, clip.frames = "still", None


def _raw(path: str | os.PathLike[str], how: Cut, find: detect.Detector) -> Iterator[tuple[int, Clip]]:
    """Every clip with the number of its scene, without references. Raises Unusable."""
    hop, number = how.samples_per_frame, 0
    with Pictures(path) as pictures, Sound(path, audio_hz=how.audio_hz, start=pictures.start) as sound:
        for scene, k, seen in runs(pictures, how):
            clip = Clip(number, round(k / how.fps, 3))
            clip.waveform = sound.read(k * hop, how.video_frames * hop, missing=hop)
            if len(set(map(id, seen))) < NEW_SHARE * len(seen):
                clip.reason = "slow"
            elif silent(clip.waveform, hop):
                clip.reason = "silent"
            else:
                _fill(clip, seen, how, find)
            yield scene, clip
            number += 1
    if not number:
        raise Unusable("short", f"no {how.video_frames / how.fps:.2f} s without a cut")


class _Referrer:
    """Gives clips their references: the middle frame of the next clip of the scene, of the one before for its last."""

    def __init__(self) -> None:
        self._scene, self._waiting, self._before = -1, None, None

    def push(self, scene: int, clip: Clip) -> Iterator[Clip]:
        """Takes a kept clip; gives the one before it."""
        if scene != self._scene:
            yield from self.finish()
            self._scene, self._before = scene, None
        elif self._waiting is not None:
            done, self._before = self._waiting, self._waiting
            yield self._refer(done, clip)
        self._waiting = clip

    def finish(self) -> Iterator[Clip]:
        """Gives the last clip of the scene."""
        if self._waiting is not None:
            done, self._waiting = self._waiting, None
            yield self._refer(done, self._before or done)

    def _refer(self, clip: Clip, other: Clip) -> Clip:
        assert clip.frames is not None and other.frames is not None
        frame = other.frames[-(len(clip.frames) // 2)]  # whether the other has its reference in front or not
        clip.reference = "own" if other is clip else f"clip {other.number}"
        return dataclasses.replace(clip, frames=np.concatenate([frame[None], clip.frames]))


def clips(path: str | os.PathLike[str], how: Cut, find: detect.Detector) -> Iterator[Clip]:
    """Every clip of a video, kept or dropped; a dropped one may come before kept ones with lower numbers.

    Raises:
      Unusable: the video, or the rest of it, cannot be used; the clips that came before are good.
    """
    raw, referrer, end = _raw(path, how, find), _Referrer(), None
    while True:
        try:
            scene, clip = next(raw)
        except StopIteration:
            break
        except Unusable as error:
            end = error
            break
        if clip.frames is None:
            yield clip
        else:
            yield from referrer.push(scene, clip)
    yield from referrer.finish()
    if end is not None:
        raise end
