"""A call that also goes to another server: only where the operator lets it, whole, and again after a loss."""

import asyncio
import io
import socket
import subprocess
import sys
import time
from typing import Any

import av
import numpy as np
import pytest

from avatar_jax.io.errors import InputError
from infer.live import push
from infer.live.encode import Encoder
from tests.infer.live.house import House, eventually, voice
from tests.infer.live.test_server import look, run


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("rtmp://a.example/live/key", "a name of its own"),
        ("studio", "must begin with one of rtmp"),
        ("studio=file:///etc/passwd", "must begin with one of rtmp"),
        ("studio=rtmp://a.example/live/key more", "must begin with one of rtmp"),
        ("bad name=rtmp://a.example/live/key", "a name of its own"),
    ],
)
def test_targets_that_are_refused(flag: str, reason: str):
    with pytest.raises(InputError, match=reason) as error:
        push.targets([flag])
    assert "key" not in str(error.value).partition("as --push")[0]  # an address may hold a secret


def test_targets_have_names():
    assert push.targets(["a=rtmp://x/y/z", "b=tcp://x:1"]) == {"a": "rtmp://x/y/z", "b": "tcp://x:1"}
    with pytest.raises(InputError, match="of its own"):
        push.targets(["a=rtmp://x/y/z", "a=tcp://x:1"])


def test_only_names_of_the_operator_are_taken():
    async def test(house: House) -> None:
        house.desk.pushes = {"studio": "tcp://127.0.0.1:9"}
        for asked in ("tcp://127.0.0.1:9", "other", 3, ["studio"]):
            status, said, _ = await house.ask("POST", "/v1/sessions", json={"consent": True, "push": asked})
            assert (status, said["error"]["code"]) == (422, "push")
        await house.open(push="studio")
        status, said, _ = await house.ask("POST", "/v1/sessions", json={"consent": True, "push": "studio"})
        assert (status, said["error"]["code"]) == (409, "push") and len(house.desk.calls) == 1

    run(test)


def test_a_call_goes_out_and_again_after_a_loss(monkeypatch):
    monkeypatch.setattr(push, "AGAIN_S", 0.1)
    got: list[bytearray] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(bytearray())
        first = len(got) == 1
        while data := await reader.read(65536):
            got[-1] += data
            if first and len(got[0]) > 20_000:
                break
        writer.close()

    async def test(house: House) -> None:
        server = await asyncio.start_server(take, "127.0.0.1", 0)
        house.desk.pushes = {"studio": f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"}
        about = await house.open(push="studio")
        call = house.desk.calls[about["id"]]
        async with house.stream(about) as socket:
            call.say(voice(30.0))
            watching = asyncio.ensure_future(look(socket, lambda event: event["type"] == "ended"))
            await eventually(lambda: len(got) == 2 and call.push_state == "live", 20.0)
            await asyncio.sleep(1.5)
            await house.desk.end(call, "enough")
            await watching
        await eventually(lambda: call.push_state == "over")
        server.close()

    run(test)
    arrived: Any = av.open(io.BytesIO(bytes(got[1])), format="mpegts")
    with arrived:
        times = {stream.type: [] for stream in arrived.streams}
        for packet in arrived.demux():
            for frame in packet.decode():
                times[packet.stream.type].append(frame.time)
    assert len(times["video"]) > 25 and len(times["audio"]) > 30
    steps = [late - early for early, late in zip(times["video"], times["video"][1:], strict=False)]
    assert max(steps) < 0.05 and abs(times["video"][0] - times["audio"][0]) < 0.2


LISTENER = """
import sys, av
with av.open(sys.argv[1], options={"listen": "1"}, timeout=60) as arrived:
    frames = {"audio": 0, "video": 0}
    try:
        for packet in arrived.demux():
            frames[packet.stream.type] += len(list(packet.decode()))
    except OSError:  # so it says that the other side is gone
        pass
    print(*(stream.codec_context.name for stream in arrived.streams), *frames.values())
"""


@pytest.mark.slow
def test_an_rtmp_server_takes_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"rtmp://127.0.0.1:{free.getsockname()[1]}/live/key"
    listener = subprocess.Popen([sys.executable, "-c", LISTENER, address], stdout=subprocess.PIPE, text=True)
    encoder = Encoder(height=32, width=32, fps=25, audio_hz=16000)
    fragments = [encoder.encode(np.full((32, 32, 3), k, np.uint8), np.zeros(640, np.float32)) for k in range(100)]
    media = encoder.init + b"".join(fragment.data for some in fragments for fragment in some)
    command, sent = [sys.executable, "-P", str(push.RELAY)], f"flv {address}\n".encode() + media
    for _ in range(50):  # until the listener listens
        done = subprocess.run(command, input=sent, capture_output=True, timeout=60, check=False)
        if done.returncode == 0:
            break
        time.sleep(0.2)
    said = listener.communicate(timeout=60)[0].split()
    assert done.stdout == b"taken\n" and said[:2] == ["h264", "aac"]
    assert int(said[2]) > 180 and int(said[3]) == 100  # a frame of sound is 21 ms
