"""Files that nobody should decode without care, and good ones to spoil."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from tests.io import sounds
from tests.io.pictures import bomb

SOUNDS = ("speech.wav", "speech.flac", "speech.mp3", "speech.opus", "speech.m4a", "speech.webm")
PICTURES = ("PNG", "JPEG", "WEBP")


def picture(kind: str, size: tuple[int, int] = (120, 90)) -> bytes:
    """A small good picture."""
    out = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (size[1] // 6, size[0] // 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(out, kind)
    return out.getvalue()


def good(folder: Path, seconds: float = 0.4) -> dict[str, tuple[str, bytes]]:
    """Good files, name -> ("picture" or "sound", bytes)."""
    found = {kind: ("picture", picture(kind)) for kind in PICTURES}
    return found | {name: ("sound", sounds.write_recording(folder, name, seconds).read_bytes()) for name in SOUNDS}


def spoil(data: bytes, rng: random.Random) -> bytes:
    """A file with some of the usual damage: bits, lengths, cuts, doubled and foreign parts."""
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(spoilt)) if rng.random() < 0.5 else rng.randrange(min(len(spoilt), 200))
        how = rng.randrange(6)
        if how == 0:
            spoilt[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            spoilt[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"))
        elif how == 2 and at > 16:
            del spoilt[at:]
        elif how == 3:
            spoilt[at:at] = spoilt[at : at + rng.randrange(1, 4000)]
        elif how == 4:
            spoilt[at : at + 16] = rng.randbytes(16)
        else:
            del spoilt[at : at + rng.randrange(1, 64)]
        if not spoilt:
            spoilt += b"\x00"
    return bytes(spoilt)


def _wav(channels: int, audio_hz: int, samples: bytes, kind: int = 1, bits: int = 16) -> bytes:
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, audio_hz, audio_hz * frame, frame, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _flac(seconds: float, *, says: int | None = None) -> bytes:
    """Silence at 8 kHz; `says`: samples that its header claims instead."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 8000, 1, format="FLAC") as file:
        for _ in range(round(seconds / 60)):
            file.write(np.zeros(8000 * 60, np.float32))
    data = bytearray(out.getvalue())
    if says is not None:  # 36 bits at the end of STREAMINFO's first 18 bytes
        data[21] = data[21] & 0xF0 | says >> 32
        data[22:26] = struct.pack(">I", says & 0xFFFFFFFF)
    return bytes(data)


def _text_bomb() -> bytes:
    """A PNG whose text chunk unpacks to 200 MB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    whole, packer = picture("PNG"), zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    return whole[:33] + chunk(b"zTXt", b"Comment\x00\x00" + packed) + whole[33:]


def bombs(secret: Path, hours: float = 10.0) -> Iterator[tuple[str, str, bytes, set[str]]]:
    """(what, "picture" or "sound", bytes, the refusals that are right), of service.md 6.2 and its like.

    Args:
      secret: a file of this machine that a playlist asks for.
      hours: length of the audio bomb.
    """
    pixels, kind, damaged = {"too_many_pixels"}, {"not_allowed"}, {"damaged"}
    yield "PNG of 13,000 x 13,000 in 20 KB", "picture", bomb(13_000, 13_000), pixels
    yield "PNG of 9,000 x 9,000, below Pillow's own limit", "picture", bomb(9_000, 9_000), pixels
    yield "PNG of 4,097 x 4,096", "picture", bomb(4_097, 4_096), pixels
    yield (
        "PNG of 1 x 2^31 - 1 rows",
        "picture",
        bomb(1, 1)[:16] + struct.pack(">II", 1, 2**31 - 1) + bytes(99),
        {
            "damaged",
            "too_many_pixels",
        },
    )
    yield "PNG text that unpacks to 200 MB", "picture", _text_bomb(), damaged
    yield "GIF", "picture", picture("GIF"), kind
    yield "SVG that names a file", "picture", f'<svg><image href="file://{secret}"/></svg>'.encode(), kind
    yield "picture of 9 MB", "picture", picture("PNG") + bytes(9 * 2**20), {"too_large"}
    yield f"FLAC of {hours:g} h", "sound", _flac(3600 * hours), {"too_long"}
    yield "FLAC of 1 h that states no length", "sound", _flac(3600, says=0), {"too_long"}
    yield "FLAC of 1 h that says 1 s", "sound", _flac(3600, says=8000), {"too_long", "damaged"}
    yield "recording of 33 MB", "sound", _wav(1, 16_000, bytes(33 * 2**20)), {"too_large"}
    yield "WAV of 1 sample a second", "sound", _wav(1, 1, bytes(10**6)), kind
    yield "WAV of 64 channels", "sound", _wav(64, 16_000, bytes(10**5)), kind
    wild = np.array([0.1, np.nan, np.inf, 1e30] * 4000, np.float32)
    yield "WAV of NaN and infinity", "sound", _wav(1, 16_000, wild.tobytes(), kind=3, bits=32), damaged
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n".encode()
    yield "playlist that names a file", "sound", playlist, kind
    yield (
        "the same after an ID3 tag",
        "sound",
        b"ID3\x04\x00\x00\x00\x00\x00\x00" + playlist,
        {"damaged", "not_allowed"},
    )
    yield "concat script", "sound", f"ffconcat version 1.0\nfile '{secret}'\n".encode(), kind
    yield "picture as a recording", "sound", picture("JPEG"), kind
    yield "nothing", "picture", b"", {"empty"}
