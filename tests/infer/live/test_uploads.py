"""Uploads through the routes and the limited children: refusals, a child that hangs, nothing left at the end."""

import asyncio
import base64
import contextlib
import os
import random
import signal
from pathlib import Path

import aiohttp
import pytest

from avatar_jax.io import guard
from infer.live import decode
from tests.infer.live.house import House, eventually, now, opened
from tests.io import hostile

FROZEN_S = 1.0  # of processor and time that a child has in these tests


def children(uploads: decode.Uploads) -> list[int]:
    """The processes that decode at this moment."""
    process = uploads._guard._process
    if process is None:
        return []
    with contextlib.suppress(FileNotFoundError):
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def runs(pid: int) -> bool:
    """Whether there is such a process, and not just its name until somebody asks after it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def send(house: House, about: dict, kind: str, data: bytes) -> tuple[int, dict]:
    """Status and answer of an upload to a call."""
    own = f"/v1/sessions/{about['id']}"
    if kind == "picture":
        asked = {"portrait_base64": base64.b64encode(data).decode()}
        return (await house.ask("PATCH", own, about["token"], json=asked))[:2]
    return (await house.ask("POST", own + "/speech", about["token"], data=data))[:2]


async def freeze(house: House) -> int:
    """Stops the child that decodes, so that not even its alarm ends it."""
    await eventually(lambda: children(house.desk.uploads))
    (child,) = children(house.desk.uploads)
    os.kill(child, signal.SIGSTOP)
    return child


def test_good_files_are_taken_and_bad_ones_refused_in_a_line(tmp_path):
    rng, files = random.Random(3), hostile.good(tmp_path)

    async def test() -> None:
        async with opened() as house:
            about = await house.open()
            for kind, data in files.values():
                assert (await send(house, about, kind, data))[0] == 200
                for spoilt in (hostile.spoil(data, rng), data[:40], b"", b"\0" * 50):
                    status, said = await send(house, about, kind, spoilt)
                    assert status in (200, 413, 422), said
                    if status != 200:
                        line = said["error"]["message"]
                        assert line.startswith(("portrait: ", "speech: ")) and "\n" not in line and "/" not in line
            assert house.desk.uploads._guard._process
            pid = house.desk.uploads._guard._process.pid
        await eventually(lambda: not runs(pid))

    asyncio.run(asyncio.wait_for(test(), 60.0))


def test_a_child_that_hangs_is_ended_and_nobody_waits_for_it():
    endless, face = hostile._flac(1800, says=0), hostile.picture("PNG")

    async def test() -> None:
        async with opened() as house:
            house.desk.uploads = decode.Uploads(guard.Guard(workers=decode.WORKERS, wall_s=FROZEN_S))
            house.desk.uploads.start()
            first, second = await house.open(), await house.open()
            hanging = asyncio.ensure_future(send(house, first, "sound", endless))
            child = await freeze(house)
            assert (await send(house, second, "picture", face))[0] == 200
            assert not hanging.done()
            status, said = await hanging
            assert (status, said["error"]["code"]) == (422, "out_of_time")
            await eventually(lambda: not children(house.desk.uploads))
            await eventually(lambda: not runs(child))
            assert (await send(house, first, "picture", face))[0] == 200

    asyncio.run(asyncio.wait_for(test(), 60.0))


def test_an_end_does_not_wait_for_what_is_decoded():
    endless = hostile._flac(1800, says=0)

    async def test() -> None:
        async with opened() as house:
            about = await house.open()
            hanging = asyncio.ensure_future(send(house, about, "sound", endless))
            child = await freeze(house)
        with contextlib.suppress(aiohttp.ClientError, asyncio.CancelledError):
            await hanging
        await eventually(lambda: not runs(child))

    began = now()
    asyncio.run(asyncio.wait_for(test(), 60.0))
    assert now() - began < guard.WALL_S


def test_more_than_may_wait_are_told_to_come_back(monkeypatch):
    monkeypatch.setattr(decode, "WAITING", -decode.WORKERS)

    async def test() -> None:
        async with opened() as house:
            about = await house.open()
            status, said = await send(house, about, "picture", hostile.picture("PNG"))
            assert status == 429 and said["error"]["code"] == "busy"

    asyncio.run(asyncio.wait_for(test(), 30.0))


@pytest.mark.parametrize("room", [True, False])
def test_a_full_house_decodes_nothing(room: bool):
    asked = {"consent": True, "portrait_base64": base64.b64encode(hostile.picture("PNG")).decode()}

    async def test() -> None:
        async with opened(seats=1, queue=int(room)) as house:
            await house.open()
            assert (await house.ask("POST", "/v1/sessions", json=asked))[0] == (201 if room else 503)
            assert (house.desk.uploads._guard._process is not None) == room

    asyncio.run(asyncio.wait_for(test(), 30.0))


def test_bodies_that_are_packed_or_break_off_are_no_error_of_the_server():
    async def test() -> None:
        async with opened() as house:
            about = await house.open()
            own = f"/v1/sessions/{about['id']}"
            packed = {"data": b"no gzip", "headers": {"Content-Encoding": "gzip"}}
            assert (await house.ask("POST", own + "/speech", about["token"], **packed))[0] == 415
            _, writer = await asyncio.open_connection(house.server.host, house.server.port)
            head = f"POST {own}/speech HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {about['token']}\r\n"
            writer.write(head.encode() + b"Content-Length: 100\r\n\r\nRIFF")
            await asyncio.sleep(0.1)
            writer.close()
            await writer.wait_closed()
            assert (await send(house, about, "picture", hostile.picture("PNG")))[0] == 200

    asyncio.run(asyncio.wait_for(test(), 30.0))
