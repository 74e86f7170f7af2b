"""The WebSocket of a call: PCM16 and commands in, events and fragmented MP4 out."""

import asyncio
import json
import time
from typing import Any

from absl import logging
from aiohttp import WSMsgType, web

from infer.live import decode
from infer.live.call import Call
from infer.live.desk import Desk
from infer.live.keys import Bucket
from infer.live.viewer import Stalled, Viewer

MESSAGE_BYTES = 65536
MESSAGES_A_SECOND = 200
HEARTBEAT_S = 3.0  # a reader that does not answer within half of it more is gone
PROTOCOL = "avatar.v1"
POLICY, UNSUPPORTED = 1008, 1003


class Misuse(Exception):
    """A connection that breaks the rules: close code and reason."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code, self.reason = code, reason


class Ears:
    """What a connection may say, and how fast."""

    def __init__(self, call: Call):
        rate = call.limits.sound_rate * call.form.audio_hz
        self._call, self._sound, self._messages = call, Bucket(rate, 2 * rate), Bucket(MESSAGES_A_SECOND, 400)

    def sound(self, data: bytes) -> None:
        """Live PCM16. Raises Misuse."""
        self._count()
        if len(data) % 2:
            raise Misuse(UNSUPPORTED, "sound: no whole 16-bit samples")
        if self._sound.wait_s(len(data) // 2, time.monotonic()):
            raise Misuse(POLICY, "sound: faster than twice real time")
        if self._call.state == "live":
            self._call.hear(decode.pcm16(data))

    def word(self, text: str) -> str:
        """A command; returns its type. Raises Misuse."""
        self._count()
        try:
            said = json.loads(text)
            kind = said.get("type") if isinstance(said, dict) else None
        except (ValueError, RecursionError):
            kind = None
        if kind == "interrupt":
            self._call.interrupt()
        elif kind not in ("end", "ping"):
            raise Misuse(UNSUPPORTED, "message: its type is none of interrupt, end, ping")
        return str(kind)

    def _count(self) -> None:
        if self._messages.wait_s(1, time.monotonic()):
            raise Misuse(POLICY, "messages: too many a second")


async def _listen(ws: web.WebSocketResponse, call: Call, viewer: Viewer) -> str:
    """Takes what comes until the connection ends; returns "end" if the caller said so."""
    ears = Ears(call)
    async for message in ws:
        if message.type == WSMsgType.BINARY:
            ears.sound(message.data)
        elif message.type == WSMsgType.TEXT:
            kind = ears.word(message.data)
            if kind == "end":
                return kind
            if kind == "ping":
                viewer.event({"type": "pong"})
    return ""


async def _talk(ws: web.WebSocketResponse, desk: Desk, call: Call, viewer: Viewer) -> tuple[int, str]:
    """Runs both directions until one ends: close code and reason."""
    sending = asyncio.ensure_future(viewer.run())
    hearing = asyncio.ensure_future(_listen(ws, call, viewer))
    try:
        await asyncio.wait((sending, hearing), return_when=asyncio.FIRST_COMPLETED)
        if hearing.done() and hearing.result() == "end":
            await desk.end(call, "the caller has ended it")
            await sending
        return (1000, "") if hearing.done() else (1000, sending.result() or "over")
    except Misuse as error:
        return error.code, error.reason
    except Stalled as error:
        return POLICY, f"reader: {error}"
    except (ConnectionError, RuntimeError) as error:  # the connection went while something was sent
        logging.debug("a connection ended: %s", error)
        return 1000, ""
    finally:
        for task in (sending, hearing):
            task.cancel()
        await asyncio.gather(sending, hearing, return_exceptions=True)


async def serve(request: web.Request, desk: Desk, call: Call) -> web.StreamResponse:
    """One connection from its beginning to its end."""
    if call.state == "ended":
        raise web.HTTPGone(reason="the session is over")
    ws = web.WebSocketResponse(
        max_msg_size=MESSAGE_BYTES, heartbeat=HEARTBEAT_S, timeout=2.0, protocols=(PROTOCOL,), compress=False
    )
    await ws.prepare(request)
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=262_144)

    async def text(about: dict[str, Any]) -> None:
        await ws.send_json(about)

    viewer = Viewer(text, ws.send_bytes, fragments=2 * call.form.block_frames, stall_s=call.limits.stall_s)
    call.attach(viewer)
    desk.rejoin(call)
    reason = "lost"
    try:
        code, reason = await _talk(ws, desk, call, viewer)
    finally:  # also when the server gives the request up because its connection is gone
        call.detach(viewer)
        desk.audit.note("disconnected", call=call.name, reason=reason)
        desk.admit()
    await ws.close(code=code, message=reason.encode()[:120])
    return ws
