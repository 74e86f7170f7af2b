"""A call over WebRTC: the same frames on the same clock, to a peer that aiortc plays."""

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack

from tests.infer.live.house import House, eventually, pcm, voice
from tests.infer.live.test_server import run

SDP = {"Content-Type": "application/sdp"}


async def connected(house: House, about: dict[str, Any], *, microphone: bool = False) -> tuple[Any, dict, str]:
    """A player of a call: its connection, its tracks, and where the connection lies."""
    player, tracks = RTCPeerConnection(), {}
    player.on("track", lambda track: tracks.setdefault(track.kind, track))
    player.addTransceiver("video", direction="recvonly")
    player.addTransceiver(AudioStreamTrack() if microphone else "audio", "sendrecv" if microphone else "recvonly")
    await player.setLocalDescription(await player.createOffer())
    own = f"/v1/sessions/{about['id']}/whep"
    offer = player.localDescription.sdp
    status, answer, headers = await house.ask("POST", own, about["token"], data=offer, headers=SDP)
    assert status == 201 and headers["Location"].startswith(own)
    await player.setRemoteDescription(RTCSessionDescription(answer.decode(), "answer"))
    return player, tracks, headers["Location"]


def test_a_peer_sees_and_hears_the_call(tmp_path):
    async def test(house: House) -> None:
        about = await house.open(portrait="light", record=True)
        player, tracks, where = await connected(house, about)
        own = f"/v1/sessions/{about['id']}"
        await house.ask(
            "POST", own + "/speech", about["token"], data=pcm(voice(0.96)), headers={"Content-Type": "audio/pcm"}
        )
        seen = [await asyncio.wait_for(tracks["video"].recv(), 10.0) for _ in range(60)]
        heard = [await asyncio.wait_for(tracks["audio"].recv(), 10.0) for _ in range(40)]
        times = [round(frame.time * 25) for frame in seen]
        assert all(after - before == 1 for before, after in itertools.pairwise(times))
        greys = [float(frame.to_ndarray(format="gray").mean()) for frame in seen]
        assert min(greys) == pytest.approx(90, abs=4) and sum(grey > 150 for grey in greys) >= 12  # it speaks
        assert max(np.abs(frame.to_ndarray()).max() for frame in heard) > 1000
        assert (await house.ask("DELETE", where, about["token"]))[0] == 200
        call = house.desk.calls[about["id"]]
        await eventually(lambda: call.viewer is None)
        assert (await house.ask("DELETE", where, about["token"]))[0] == 404
        await player.close()

    run(test, tmp_path, webrtc=True)


def test_a_microphone_is_heard_and_a_lost_peer_pauses_the_call(tmp_path):
    async def test(house: House) -> None:
        about = await house.open()
        player, tracks, _ = await connected(house, about, microphone=True)
        call = house.desk.calls[about["id"]]
        heard: list[int] = []
        call.hear = lambda samples: heard.append(samples.size)
        await asyncio.wait_for(tracks["video"].recv(), 10.0)
        await eventually(lambda: sum(heard) >= 8000)
        await player.close()
        await eventually(lambda: call.viewer is None)
        assert call.state == "live"

    run(test, tmp_path, webrtc=True)


@pytest.mark.parametrize(
    "offer", ["", "no sdp", "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n", "v=0\r\nm=video x"]
)
def test_what_is_no_offer_is_refused(tmp_path, offer: str):
    async def test(house: House) -> None:
        about = await house.open()
        own = f"/v1/sessions/{about['id']}/whep"
        status, said, _ = await house.ask("POST", own, about["token"], data=offer, headers=SDP)
        assert status == 422 and "H.264" in said["error"]["message"]
        assert (await house.ask("POST", own, about["token"], data=offer))[0] == 415
        assert (await house.ask("POST", own, about["token"], data="v" * 70_000, headers=SDP))[0] == 413
        assert house.desk.calls[about["id"]].viewer is None

    run(test, tmp_path, webrtc=True)


def test_it_is_off_unless_it_is_switched_on(tmp_path):
    async def test(house: House) -> None:
        about = await house.open()
        own = f"/v1/sessions/{about['id']}/whep"
        status, said, _ = await house.ask("POST", own, about["token"], data="v=0", headers=SDP)
        assert status == 501 and "--webrtc" in said["error"]["message"]

    run(test, tmp_path)
