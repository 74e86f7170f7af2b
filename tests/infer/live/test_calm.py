"""What one call or one error may not do to what is shown and told."""

import struct
import threading

from infer.live.call import Call
from infer.live.desk import Desk
from infer.live.encode import FRAME_UNITS, Fragment
from infer.live.stage import Framed
from tests.infer.live.house import House, eventually
from tests.infer.live.test_server import look, run


def test_a_frame_that_was_being_encoded_is_not_shown_after_an_interruption(monkeypatch):
    encode, going, go = Call._encode, threading.Event(), threading.Event()

    def held(call: Call, framed: Framed) -> list[Fragment]:
        if call.pace.frames == 30:
            going.set()
            go.wait(10.0)
        return encode(call, framed)

    monkeypatch.setattr(Call, "_encode", held)

    async def test(house: House) -> None:
        about = await house.open()
        async with house.stream(about) as socket:
            await eventually(going.is_set)
            await socket.send_str('{"type": "interrupt"}')
            events, _ = await look(socket, lambda event: event["type"] == "flush")
            assert events[-1]["time"] == 30 / 25
            go.set()
            _, media = await look(socket, lambda event: event.get("frames", 0) >= 40)
            call = house.desk.calls[about["id"]]
            first = struct.unpack_from(">Q", media, media.index(b"tfdt") + 8)[0]
            assert first >= 30 * FRAME_UNITS and call.state == "live"

    run(test)


def test_the_watch_outlives_an_error(monkeypatch):
    reaped = []

    async def reap(desk: Desk) -> None:
        reaped.append(desk)
        raise OSError("the disk")

    monkeypatch.setattr(Desk, "reap", reap)

    async def test(house: House) -> None:
        await eventually(lambda: len(reaped) >= 3)

    run(test)
