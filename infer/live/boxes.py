"""The boxes of fragmented MP4 (ISO/IEC 14496-12), as far as a live stream has to look into them."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

NOT_A_KEY = 0x10000  # of the sample flags: sample_is_non_sync_sample
_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")


class Box(NamedTuple):
    """One box: its name, where its content begins, and where the box ends."""

    name: bytes
    start: int
    body: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The whole boxes of one level; a box that is cut off ends them."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            return
        yield Box(name, start, start + 8, start + size)
        start += size


def find(data: bytes, name: bytes) -> Iterator[Box]:
    """Every box of a name, at any depth."""

    def below(start: int, end: int) -> Iterator[Box]:
        for box in boxes(data, start, end):
            if box.name == name:
                yield box
            if box.name in _PARENTS:
                yield from below(box.body, box.end)

    return below(0, len(data))


def _sample_flags(data: bytes, traf: Box) -> int | None:
    """Flags of a track fragment's first sample."""
    found = None
    for box in boxes(data, traf.body, traf.end):
        if box.name not in (b"tfhd", b"trun"):
            continue
        flags = struct.unpack_from(">I", data, box.body)[0] & 0xFFFFFF
        if box.name == b"tfhd":
            before = (8 if flags & 1 else 0) + sum(4 for bit in (0x2, 0x8, 0x10) if flags & bit)
            if flags & 0x20:
                found = struct.unpack_from(">I", data, box.body + 8 + before)[0]
        elif flags & 0x4:
            found = struct.unpack_from(">I", data, box.body + 8 + (4 if flags & 1 else 0))[0]
        elif flags & 0x400:
            before = (4 if flags & 1 else 0) + sum(4 for bit in (0x100, 0x200) if flags & bit)
            found = struct.unpack_from(">I", data, box.body + 8 + before)[0]
    return found


def is_key(moof: bytes, track: int) -> bool:
    """Whether a fragment begins with a frame of the track that a player can begin with."""
    for traf in find(moof, b"traf"):
        for box in boxes(moof, traf.body, traf.end):
            if box.name == b"tfhd" and struct.unpack_from(">I", moof, box.body + 4)[0] == track:
                flags = _sample_flags(moof, traf)
                return flags is not None and not flags & NOT_A_KEY
    return False


def has_track(moof: bytes, track: int) -> bool:
    """Whether a fragment holds samples of the track."""
    return any(struct.unpack_from(">I", moof, box.body + 4)[0] == track for box in find(moof, b"tfhd"))


def avc_codec(init: bytes) -> str:
    """The RFC 6381 name of the H.264 in an initialisation segment, as "avc1.42C01E"."""
    at = init.index(b"avcC") + 4
    return "avc1." + init[at + 1 : at + 4].hex().upper()
