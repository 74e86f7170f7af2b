"""A call over WebRTC, WHEP-shaped: an SDP offer comes in by POST, the answer goes back, media flows between peers.

The peer gets the very H.264 and Opus that others get as fragmented MP4, so nothing is encoded twice, and frame k has
the time k / fps here too. A microphone in the offer is heard. aiortc does the rest; it is optional.
"""

import asyncio
import secrets
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from absl import logging

from infer.live import boxes
from infer.live.call import Call
from infer.live.desk import Desk
from infer.live.door import Refused
from infer.live.encode import FRAME_UNITS, PICTURES, SOUND_HZ, Fragment
from infer.live.keys import Bucket
from infer.live.viewer import Stalled, Viewer

OFFER_BYTES = 65536
GATHER_S = 10.0  # that an answer may take


class Peer(Viewer):
    """A viewer whose media goes into two tracks. See `Viewer`."""

    def __init__(self, fps: int, *, fragments: int, stall_s: float):
        super().__init__(self._ignore, self._take, fragments=fragments, stall_s=stall_s)
        self._units = {True: Fraction(1, FRAME_UNITS * fps), False: Fraction(1, SOUND_HZ)}
        self.pictures: asyncio.Queue = asyncio.Queue()
        self.sound: asyncio.Queue = asyncio.Queue()
        self.connected = asyncio.Event()
        self._headers = b""

    async def _ignore(self, about: dict[str, Any]) -> None:
        """Events have no way to a WebRTC player."""

    async def _take(self, message: bytes) -> None:
        self._headers = boxes.parameter_sets(message)  # the only bytes that come are the initialisation segment

    async def _show(self, fragment: Fragment) -> None:
        await self.connected.wait()
        for run in fragment.runs:
            seen = run.track == PICTURES
            for number, sample in enumerate(run.samples):
                data = (self._headers if fragment.key else b"") + boxes.byte_stream(sample) if seen else sample
                packet = av.Packet(data)
                packet.pts, packet.time_base = run.time + number * run.duration, self._units[seen]
                (self.pictures if seen else self.sound).put_nowait(packet)


def _track(kind: str, packets: asyncio.Queue) -> Any:
    """What aiortc sends packets from."""
    from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

    class Track(MediaStreamTrack):
        async def recv(self) -> Any:
            packet = await packets.get()
            if packet is None:
                raise MediaStreamError
            return packet

    track = Track()
    track.kind = kind
    return track


async def _hear(track: Any, call: Call) -> None:
    """A microphone, until it ends."""
    from aiortc.mediastreams import MediaStreamError

    resample = av.AudioResampler(format="flt", layout="mono", rate=call.form.audio_hz)
    rate = call.limits.sound_rate * call.form.audio_hz
    bucket, clock = Bucket(rate, 2 * rate), asyncio.get_running_loop().time
    while True:
        try:
            frame = await track.recv()
        except MediaStreamError:
            return
        for piece in resample.resample(frame):
            samples = piece.to_ndarray()[0].astype(np.float32)
            if call.state == "live" and not bucket.wait_s(samples.size, clock()):
                call.hear(samples)


class _Open(NamedTuple):
    """A peer that looks on."""

    call: str
    viewer: Peer


class Peers:
    """All WebRTC connections of a server."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._open: dict[str, _Open] = {}

    async def open(self, call: Call, offer: str) -> tuple[str, str]:
        """A connection that looks on: its name and the SDP answer. Raises Refused."""
        if not call.limits.webrtc:
            raise Refused(501, "webrtc", "webrtc: is off; the server's operator starts it with --webrtc")
        form, limits = call.form, call.limits
        viewer = Peer(form.fps, fragments=2 * form.block_frames, stall_s=limits.stall_s)
        connection = self._connection(call, viewer)
        try:
            async with asyncio.timeout(GATHER_S):
                answer = await _answer(connection, offer)
        except Exception as error:  # whatever an offer of any kind makes of aiortc
            await connection.close()
            logging.debug("an offer was refused: %r", error)
            raise Refused(422, "sdp", "offer: is no SDP that can be answered; H.264 and Opus are sent") from error
        if call.state == "ended":  # meanwhile
            await connection.close()
            raise Refused(410, "over", f"session: is over, {call.reason}")
        name = secrets.token_hex(8)
        self._open[name] = _Open(call.name, viewer)
        call.attach(viewer)
        self._desk.rejoin(call)
        self._desk.spawn(self._run(name, call, viewer, connection))
        return name, answer

    def _connection(self, call: Call, viewer: Peer) -> Any:
        """A connection that offers its own addresses alone, and H.264 alone."""
        import aiortc

        connection: Any = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        capable = aiortc.RTCRtpSender.getCapabilities("video").codecs
        video = connection.addTransceiver(_track("video", viewer.pictures), direction="sendonly")
        video.setCodecPreferences([codec for codec in capable if codec.mimeType.lower() == "video/h264"])
        connection.addTransceiver(_track("audio", viewer.sound), direction="sendrecv")

        @connection.on("track")
        def hear(track: Any) -> None:
            if track.kind == "audio":
                self._desk.spawn(_hear(track, call))

        @connection.on("connectionstatechange")
        def changed() -> None:
            if connection.connectionState == "connected":
                viewer.connected.set()
            elif connection.connectionState in ("failed", "closed"):
                viewer.close()

        return connection

    async def _run(self, name: str, call: Call, viewer: Peer, connection: Any) -> None:
        """A connection until somebody ends it."""
        reason = "over"
        try:
            await viewer.run()
        except Stalled as error:
            reason = f"reader: {error}"
        finally:
            del self._open[name]
            call.detach(viewer)
            for packets in (viewer.pictures, viewer.sound):
                packets.put_nowait(None)
            await connection.close()
            self._desk.audit.note("disconnected", call=call.name, reason=reason)
            self._desk.admit()

    def close(self, call: Call, name: str) -> None:
        """Ends a connection of a call. Raises Refused."""
        found = self._open.get(name)
        if found is None or found.call != call.name:
            raise Refused(404, "webrtc", "connection: not there any more")
        found.viewer.flush()
        found.viewer.close()


async def _answer(connection: Any, offer: str) -> str:
    """The SDP answer, with all candidates in it."""
    import aiortc

    await connection.setRemoteDescription(aiortc.RTCSessionDescription(offer, "offer"))
    if not any(one.kind == "video" and one.mid is not None for one in connection.getTransceivers()):
        raise ValueError("no video")
    await connection.setLocalDescription(await connection.createAnswer())
    return connection.localDescription.sdp
