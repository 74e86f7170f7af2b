"""Files that are almost good."""

import io
import json
import random
from typing import Any

import av
import numpy as np
from PIL import Image


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a piece taken out, or the end cut."""
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, 12)):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    if rng.random() < 0.3:
        del spoilt[rng.randrange(len(spoilt)) :]
    return bytes(spoilt)


def seeds() -> dict[str, list[bytes]]:
    """Good files, to be broken."""
    image, picture, sound = Image.fromarray(np.zeros((24, 24, 3), np.uint8)), [], []
    for form in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        image.save(file, form)
        picture.append(file.getvalue())
    codecs = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libopus", "webm": "libopus"}
    for form, codec in codecs.items():
        file = io.BytesIO()
        with av.open(file, "w", format=form) as out:
            stream: Any = out.add_stream(codec, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 48000
            for packet in (*stream.encode(frame), *stream.encode(None)):
                out.mux(packet)
        sound.append(file.getvalue())
    order = json.dumps({"consent": True, "portrait": "dark", "prompt": None, "record": False}).encode()
    return {"picture": picture, "sound": sound, "json": [order]}


def framed(path: str, token: str, data: bytes, rng: random.Random) -> bytes:
    """A request over HTTP/1.1, in parts, in chunks or by its length, with some of the usual damage."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}", "Connection: close"]
    how = rng.randrange(3)
    if rng.random() < 0.2:
        head.append("Content-Encoding: gzip")
    if how == 0:
        head.append("Content-Type: multipart/form-data; boundary=part")
        data = b'--part\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + data + b"\r\n--part--\r\n"
    if how == 1:
        head.append("Transfer-Encoding: chunked")
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:100], data[100:], b""))
    else:
        body, length = data, len(data) + rng.choice((0, 0, 1, -1, 1000, -len(data) - 1))
        head.append(f"Content-Length: {length}")
    start = "\r\n".join(head).encode() + b"\r\n\r\n"
    return mutated(start + body[:400], rng) + body[400:] if rng.random() < 0.7 else start + mutated(body, rng)
