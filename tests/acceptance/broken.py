"""Two thousand videos that no one should have: good ones of every kind, and what chance and malice make of them."""

import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.data import films

SECONDS, SIZE = 1.2, 64
Mutation = Callable[[random.Random, bytearray], bytearray]


def _sound(seconds: float = SECONDS) -> np.ndarray:
    time = np.arange(round(seconds * films.HZ)) / films.HZ
    return (0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2).astype(np.float32)


def good(folder: Path) -> list[Path]:
    """A few dozen whole files: containers, codecs, rates, rotations, missing tracks, silence, stills, odd sizes."""
    folder.mkdir()
    times = films.steady(round(SECONDS * 25), 25)
    frames, made = films.talking(3, times, seconds=SECONDS, size=SIZE)
    voice, made_files = made["waveform"], []

    def film(name: str, pictures=frames, at=times, sound=voice, **how) -> None:
        made_files.append(films.write(folder / name, pictures, at, sound, **how))

    film("plain.mp4")
    film("fast.mp4", options={"preset": "ultrafast"})
    film("matroska.mkv", acodec="libopus", hz=48_000, sound=np.repeat(voice, 3))
    film("web.webm", vcodec="libvpx-vp9", acodec="libopus", hz=48_000, sound=np.repeat(voice, 3))
    film("quicktime.mov", vcodec="mjpeg", pix_fmt="yuvj420p", acodec="pcm_s16le")
    film("windows.avi", vcodec="mpeg4", acodec="mp3", ticks=25)
    film("flash.flv", vcodec="flv1", acodec="mp3", hz=48_000, sound=np.repeat(voice, 3))
    film("broadcast.ts", acodec="mp2", hz=48_000, sound=np.repeat(voice, 3))
    film("phone.3gp", acodec="aac")
    for turn in (90, 180, -90, 45):
        film(f"turned{turn}.mp4", rotation=turn)
    for fps in (5, 12, 24, 29.97, 50, 120):
        at = films.steady(round(SECONDS * fps), fps)
        film(f"rate{fps}.mp4", pictures=films.talking(4, at, seconds=SECONDS, size=SIZE)[0], at=at)
    uneven = films.variable(SECONDS)
    film("variable.mp4", pictures=films.talking(5, uneven, seconds=SECONDS, size=SIZE)[0], at=uneven)
    film("mute.mp4", sound=None)
    film("silent.mp4", sound=np.zeros_like(voice))
    film("still.mp4", pictures=np.repeat(frames[:1], len(frames), 0))
    film("short.mp4", pictures=frames[:5], at=times[:5], sound=voice[:3200])
    film("single.mp4", pictures=frames[:1], at=times[:1], sound=voice[:640])
    film("tiny.mp4", pictures=frames[:, :16, :16])
    film("sliver.mp4", pictures=np.tile(frames[:, :16], (1, 1, 10, 1)))
    film("noise.mp4", pictures=np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8))
    film("late.mp4", sound=voice, sound_start=0.4)
    film("gap.mp4", at=np.where(times > 0.5, times + 5.0, times))
    film("ended.mp4", sound=voice[: len(voice) // 3])
    film("deaf.mkv", acodec="pcm_f32le", sound=np.full_like(voice, np.nan))
    film("high.mp4", pix_fmt="yuv420p10le")
    film("cut.mp4", pictures=np.concatenate([frames[:15], 255 - frames[15:]]))
    return made_files


def _truncated(rng: random.Random, data: bytearray) -> bytearray:
    return data[: rng.randrange(len(data))]


def _flipped(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 3, 30, 300))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def _head(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 4, 16))):
        data[rng.randrange(min(600, len(data)))] = rng.randrange(256)
    return data


def _tail(rng: random.Random, data: bytearray) -> bytearray:
    """The index of most files lies at the end."""
    for _ in range(rng.choice((1, 4, 16))):
        data[-rng.randrange(1, min(2000, len(data)))] = rng.randrange(256)
    return data


def _hole(rng: random.Random, data: bytearray) -> bytearray:
    at, size = rng.randrange(len(data)), rng.choice((10, 1000, 20_000))
    data[at : at + size] = bytes(len(data[at : at + size]))
    return data


def _cut_out(rng: random.Random, data: bytearray) -> bytearray:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 188, 5000))]
    return data


def _repeated(rng: random.Random, data: bytearray) -> bytearray:
    at = rng.randrange(len(data))
    return data[:at] + data[rng.randrange(len(data)) :]


def _appended(rng: random.Random, data: bytearray) -> bytearray:
    return data + rng.randbytes(rng.choice((1, 500, 50_000)))


def _claims(rng: random.Random, data: bytearray) -> bytearray:
    """Sizes, durations, rates and counts in an MP4's header become the largest, zero, or anything."""
    boxes = (b"tkhd", b"mvhd", b"mdhd", b"stts", b"stsz", b"stsc", b"stco", b"ctts", b"elst", b"avc1", b"mp4a", b"stsd")
    places = [at for box in boxes if (at := data.find(box)) > 0]
    if not places:
        return _flipped(rng, data)
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.choice(places) + 4 * rng.randrange(-1, 24)
        word = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF0000, 0x40000000, rng.randrange(2**32)))
        data[at : at + 4] = struct.pack(">I", word)
    return data


def _text(rng: random.Random, data: bytearray) -> bytearray:
    lines = (
        "#EXTM3U\nfile:///etc/passwd\n",
        "a letter to no one\n" * 40,
        '{"video": true}',
        "\n",
        "ffconcat version 1.0\n",
    )
    return bytearray(rng.choice(lines).encode())


def _empty(rng: random.Random, data: bytearray) -> bytearray:
    return bytearray()


def _masked(rng: random.Random, data: bytearray) -> bytearray:
    """The first bytes of a video, then none of it."""
    return data[: rng.choice((8, 16, 32, 64))] + rng.randbytes(rng.choice((0, 100, 30_000)))


MUTATIONS: tuple[Mutation, ...] = (
    _truncated, _truncated, _flipped, _flipped, _head, _tail, _hole, _cut_out, _repeated, _appended, _claims, _claims,
    _claims, _text, _empty, _masked,
)  # fmt: skip


def _odd_places(folder: Path, film: Path) -> None:
    """Names that are no plain files."""
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "nowhere.mp4").symlink_to("is_not_there.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "link.mp4").symlink_to(film.name)
    (folder / "up.mp4").symlink_to("..")
    os.mkfifo(folder / "pipe.mp4")
    shutil.copy(film, folder / "späte Grüße \n'\".mp4")
    shutil.copy(film, os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.mp4"))
    shutil.copy(film, folder / "UPPER.MP4")
    shutil.copy(film, folder / "other.webm")


def make(folder: Path, count: int) -> int:
    """Fills a folder with `count` files named like videos; returns how many of them are whole."""
    rng, whole = random.Random(0), good(folder)
    kinds = [path.read_bytes() for path in whole]
    _odd_places(folder, whole[0])
    there = len(os.listdir(os.fsencode(folder)))
    for number in range(count - there):
        pick = rng.randrange(len(whole))
        mutate = rng.choice(MUTATIONS)
        suffix = whole[pick].suffix if rng.random() < 0.9 else rng.choice((".mp4", ".avi", ".ts", ".mkv"))
        path = folder / f"{number:04d}-{mutate.__name__.strip('_')}{suffix}"
        path.write_bytes(mutate(rng, bytearray(kinds[pick])))
    return len(whole)
