"""Uploads to arrays: the one place where bytes of strangers meet a decoder."""

import tempfile
from pathlib import Path

import numpy as np

from avatar_jax.io.audio import open_audio
from avatar_jax.io.errors import InputError
from avatar_jax.io.image import load_portrait

PORTRAIT_BYTES = 8 * 2**20
SOUND_BYTES = 32 * 2**20


def portrait(data: bytes, *, height: int, width: int) -> np.ndarray:
    """A PNG, JPEG or WebP as uint8 [H, W, 3]. Raises InputError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "portrait"
        path.write_bytes(data)
        try:
            return load_portrait(path, height=height, width=width)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "portrait")) from error


def sound(data: bytes, *, audio_hz: int, seconds: float) -> np.ndarray:
    """A recording as float32 [n] at `audio_hz`, of at most so many seconds. Raises InputError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech"
        path.write_bytes(data)
        try:
            with open_audio(path, audio_hz=audio_hz) as stream:
                samples = stream.read(round(seconds * audio_hz) + 1)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "speech")) from error
    if samples.size > seconds * audio_hz:
        raise InputError(f"speech: is longer than {seconds:.0f} s; send it in parts")
    return samples


def pcm16(data: bytes) -> np.ndarray:
    """Little-endian PCM16 as float32 [n] in [-1, 1]. Raises InputError."""
    if len(data) % 2:
        raise InputError(f"sound: {len(data)} bytes are no whole 16-bit samples")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0
