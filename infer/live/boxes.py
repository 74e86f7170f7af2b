"""The boxes of fragmented MP4 (ISO/IEC 14496-12): a live stream's fragments, written by hand.

FFmpeg's muxer has to guess how long the packet lasts that ends a fragment, and with a fragment a frame it guesses wrong
for one of the two tracks. Here every sample says how long it lasts.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

KEY, NO_KEY = 0x02000000, 0x01010000  # sample flags: depends on no other; depends on others, is no sync sample
_START = b"\0\0\1"  # before every unit of an H.264 byte stream (ISO/IEC 14496-10, annex B)


class Box(NamedTuple):
    """One box: its name, where its content begins, and where the box ends."""

    name: bytes
    body: int
    end: int


def boxes(data: bytes) -> Iterator[Box]:
    """The whole boxes of the uppermost level; a box that is cut off ends them."""
    start, end = 0, len(data)
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            return
        yield Box(name, start + 8, start + size)
        start += size


def codec(init: bytes) -> str:
    """The RFC 6381 name of the H.264 or VP9 in an initialisation segment, as "avc1.42C01E" or "vp09.00.21.08"."""
    at = init.find(b"avcC") + 4
    if at >= 4:
        return "avc1." + init[at + 1 : at + 4].hex().upper()
    at = init.index(b"vpcC") + 8  # version and flags come first
    return f"vp09.{init[at]:02d}.{init[at + 1]:02d}.{init[at + 2] >> 4:02d}"


def avc_sample(stream: bytes) -> bytes:
    """Units of an H.264 byte stream as MP4 holds them: each after its length."""
    units = [unit.rstrip(b"\0") for unit in stream.split(_START)[1:]]  # a unit never ends with a zero
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


def byte_stream(sample: bytes) -> bytes:
    """The inverse of `avc_sample`."""
    units, at = [], 0
    while at < len(sample):
        (length,) = struct.unpack_from(">I", sample, at)
        units.append(sample[at + 4 : at + 4 + length])
        at += 4 + length
    return b"".join(b"\0" + _START + unit for unit in units)


def parameter_sets(init: bytes) -> bytes:
    """The H.264 parameter sets of an initialisation segment (ISO/IEC 14496-15, avcC) as a byte stream."""
    at, found = init.index(b"avcC") + 9, b""
    for mask in (0x1F, 0xFF):  # of the counts: sequence sets, then picture sets
        count, at = init[at] & mask, at + 1
        for _ in range(count):
            (length,) = struct.unpack_from(">H", init, at)
            found += b"\0" + _START + init[at + 2 : at + 2 + length]
            at += 2 + length
    return found


class Run(NamedTuple):
    """Samples of one track that follow each other: track number, time of the first, and a duration for each."""

    track: int
    time: int
    duration: int
    samples: Sequence[bytes]
    flags: int = KEY  # of every sample


def _box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, name) + body


def _traf(run: Run, offset: int) -> bytes:
    head = _box(b"tfhd", struct.pack(">II", 0x020000, run.track))  # offsets count from the moof
    time = _box(b"tfdt", struct.pack(">IQ", 0x01000000, run.time))
    table = b"".join(struct.pack(">III", run.duration, len(sample), run.flags) for sample in run.samples)
    return _box(b"traf", head, time, _box(b"trun", struct.pack(">IIi", 0x701, len(run.samples), offset), table))


def fragment(number: int, runs: Sequence[Run]) -> bytes:
    """A moof and its mdat.

    Args:
      number: of the fragment in the stream, from 1.
      runs: of the tracks that have samples in it.
    """
    head = _box(b"mfhd", struct.pack(">II", 0, number))
    size = 8 + len(_box(b"moof", head, *(_traf(run, 0) for run in runs)))
    trafs, data = [], b""
    for run in runs:
        trafs.append(_traf(run, size + len(data)))
        data += b"".join(run.samples)
    return _box(b"moof", head, *trafs) + _box(b"mdat", data)
