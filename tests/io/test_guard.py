"""Uploads: good files decode as without the guard, bad ones are refused by name, nothing is left behind."""

import io
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avatar_jax.io import guard
from avatar_jax.io.audio import open_audio
from avatar_jax.io.image import load_portrait
from tests.io import hostile

SIZE = {"height": 96, "width": 64}
NAMES = {"empty", "too_large", "not_allowed", "too_many_pixels", "too_long", "damaged", "out_of_time"}


@pytest.fixture(scope="module")
def decoder() -> Iterator[guard.Guard]:
    with guard.Guard() as running:
        yield running


def decode(decoder: guard.Guard, kind: str, data: bytes) -> np.ndarray:
    return decoder.picture(data, **SIZE) if kind == "picture" else decoder.sound(data)


def refusal(decoder: guard.Guard, kind: str, data: bytes) -> str:
    with pytest.raises(guard.Refused) as refused:
        decode(decoder, kind, data)
    assert "/" not in str(refused.value) and str(refused.value).count("\n") == 0
    return refused.value.name


def children(decoder: guard.Guard) -> list[str]:
    assert decoder._process
    pid = decoder._process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_good_files_are_what_they_are(decoder: guard.Guard, tmp_path: Path):
    for name, (kind, data) in hostile.good(tmp_path).items():
        (tmp_path / "file").write_bytes(data)
        found = decode(decoder, kind, data)
        if kind == "picture":
            np.testing.assert_array_equal(found, load_portrait(tmp_path / "file", **SIZE), name)
        else:
            with open_audio(tmp_path / "file") as stream:
                np.testing.assert_array_equal(found, stream.read(10**6), name)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16"])
def test_the_largest_picture_fits_the_limit(decoder: guard.Guard, mode: str):
    out = io.BytesIO()
    Image.new(mode, (4096, 4096)).save(out, "PNG", **({"transparency": 0} if mode == "P" else {}))
    assert decoder.picture(out.getvalue(), **SIZE).shape == (96, 64, 3)


@pytest.mark.slow
def test_bombs_and_tricks_are_refused_by_name(decoder: guard.Guard, tmp_path: Path):
    (tmp_path / "secret.wav").write_bytes(hostile.good(tmp_path)["speech.wav"][1])
    for what, kind, data, names in hostile.bombs(tmp_path / "secret.wav", hours=0.2):
        assert refusal(decoder, kind, data) in names, what


def test_damage_never_reaches_the_caller(decoder: guard.Guard, tmp_path: Path):
    rng, files = random.Random(0), list(hostile.good(tmp_path).values())
    decoder.start()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(90):
        kind, data = files[number % len(files)]
        try:
            decode(decoder, kind, hostile.spoil(data, rng))
        except guard.Refused as refused:
            assert refused.name in NAMES
    assert len(os.listdir("/proc/self/fd")) == before
    decoder.picture(hostile.picture("PNG"), **SIZE)
    ends = time.monotonic() + 5
    while children(decoder) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not children(decoder)


def test_limits_hold():
    large = hostile.picture("JPEG", (2400, 2400))
    with guard.Guard(memory_mib=8) as small:
        assert refusal(small, "picture", large) in ("too_large", "damaged")
    with guard.Guard(wall_s=0.005) as short:
        began = time.monotonic()
        assert refusal(short, "picture", large) == "out_of_time"
        assert time.monotonic() - began < guard.START_S


def test_a_decoder_that_dies_is_replaced(tmp_path: Path):
    with guard.Guard() as decoder:
        decoder.start()
        assert decoder._process
        decoder._process.kill()
        decoder._process.wait()
        assert decoder.picture(hostile.picture("JPEG"), **SIZE).shape == (96, 64, 3)
        pid = decoder._process.pid
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [("a" * 2001, "too_long"), ("bell\x07", "not_allowed"), ("half \ud800", "not_allowed"), ("e\u0301 ", "")],
)
def test_text(text: str, name: str):
    if name:
        with pytest.raises(guard.Refused) as refused:
            guard.clean_text(text)
        assert refused.value.name == name
    else:
        assert guard.clean_text(text) == "\xe9"
