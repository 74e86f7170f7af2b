"""A small client: open a call, talk, take what comes.

async with Client("http://127.0.0.1:8000", token) as client:
    call = await client.open(portrait="Ada", consent=True, record=True)
    async with client.connect(call) as stream:
        await stream.say(samples)                    # float32 at call.audio_hz, to its end
        await stream.type("Good morning.")           # where the server has a voice
        async for event in stream:                   # dicts; media as {"type": "data", "data": bytes}
            ...
    data = await client.record(call)
    data = await client.make(portrait="Ada", consent=True, speech=Path("speech.wav"))
"""

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import numpy as np

WAIT_S = 0.2  # between two looks at a job


class Answer(Exception):
    """The server said no: status, code, message, and after how many seconds to ask again."""

    def __init__(self, status: int, error: dict[str, str], retry_s: int | None):
        super().__init__(f"{status}: {error.get('message', '')}")
        self.status, self.code, self.retry_s = status, error.get("code", ""), retry_s


@dataclasses.dataclass
class Opened:
    """A call that was opened."""

    id: str
    token: str
    state: str
    position: int
    audio_hz: int
    fps: int


def to_pcm16(samples: np.ndarray) -> bytes:
    """Float samples [n] in [-1, 1] as little-endian PCM16."""
    return (np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes()


def _asked(consent: bool, portrait: str | Path | None, prompt: str | None) -> dict[str, Any]:
    """What is shown, as the server is asked for it."""
    asked: dict[str, Any] = {"consent": consent}
    if prompt:
        asked["prompt"] = prompt
    if isinstance(portrait, Path):
        asked["portrait_base64"] = base64.b64encode(portrait.read_bytes()).decode()
    elif portrait:
        asked["portrait"] = portrait
    return asked


class Stream:
    """A call's connection; iterate over it for what comes."""

    def __init__(self, client: "Client", call: Opened, socket: aiohttp.ClientWebSocketResponse):
        self._client, self._call, self._socket = client, call, socket

    async def talk(self, samples: np.ndarray) -> None:
        """Live sound [n], as it comes: packets of 20 ms are usual."""
        await self._socket.send_bytes(to_pcm16(samples))

    async def say(self, samples: np.ndarray) -> None:
        """Speech [n], all at once; it is spoken to its end."""
        headers = {"Content-Type": "audio/pcm"}
        await self._client.ask("POST", self._call, "/speech", data=to_pcm16(samples), headers=headers)

    async def type(self, text: str) -> None:
        """Text, which the server's voice says, or its model answers. Raises Answer (501 without a voice)."""
        await self._client.ask("POST", self._call, "/text", json={"text": text})

    async def interrupt(self) -> None:
        """Empties every queue."""
        await self._socket.send_str('{"type": "interrupt"}')

    async def end(self) -> None:
        """Ends the call."""
        await self._socket.send_str('{"type": "end"}')

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Events until the connection ends; media as events of type "data"."""
        async for message in self._socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                yield {"type": "data", "data": message.data}
            elif message.type == aiohttp.WSMsgType.TEXT:
                yield json.loads(message.data)


class Client:
    """A caller.

    Args:
      server: its address.
      token: that it was started with.
    """

    def __init__(self, server: str, token: str):
        self._server, self._token = server.rstrip("/"), token
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http:
            await self._http.close()

    async def _ask(self, method: str, path: str, token: str, **given: Any) -> aiohttp.ClientResponse:
        if self._http is None:
            raise RuntimeError("the client is used outside `async with`")
        headers = {"Authorization": f"Bearer {token}", **given.pop("headers", {})}
        answer = await self._http.request(method, self._server + path, headers=headers, **given)
        if answer.status >= 400:
            said = await answer.json() if answer.content_type == "application/json" else {}
            retry = answer.headers.get("Retry-After")
            raise Answer(answer.status, said.get("error", {}), int(retry) if retry else None)
        return answer

    async def ask(self, method: str, call: Opened, path: str = "", **given: Any) -> aiohttp.ClientResponse:
        """One of a call's routes. Raises Answer."""
        return await self._ask(method, f"/v1/sessions/{call.id}{path}", call.token, **given)

    async def open(
        self,
        *,
        consent: bool,
        portrait: str | Path | None = None,
        prompt: str | None = None,
        record: bool = False,
        push: str | None = None,
    ) -> Opened:
        """A new call. Raises Answer.

        Args:
          consent: whoever is shown has agreed.
          portrait: a name of the house's, or a picture's path; the first of the house's if left out.
          prompt: for models that read text.
          record: whether a recording is kept.
          push: name of a target of the operator's.
        """
        asked = _asked(consent, portrait, prompt) | {"record": record} | ({"push": push} if push else {})
        house = await (await self._ask("GET", "/v1/portraits", self._token)).json()
        about = await (await self._ask("POST", "/v1/sessions", self._token, json=asked)).json()
        known = about | house  # both have `fps`: what goes out now, and what the pictures are made for
        return Opened(**{field.name: known[field.name] for field in dataclasses.fields(Opened)})

    @contextlib.asynccontextmanager
    async def connect(self, call: Opened) -> AsyncIterator[Stream]:
        """The call's connection; a second one takes the call over, one after a loss takes it up."""
        if self._http is None:
            raise RuntimeError("the client is used outside `async with`")
        headers, path = {"Authorization": f"Bearer {call.token}"}, f"/v1/sessions/{call.id}/stream"
        async with self._http.ws_connect(self._server + path, headers=headers, max_msg_size=2**24) as socket:
            yield Stream(self, call, socket)

    async def make(
        self,
        *,
        consent: bool,
        speech: Path | None = None,
        text: str | None = None,
        portrait: str | Path | None = None,
        prompt: str | None = None,
    ) -> bytes:
        """A video, made offline when a seat is free: MP4. Raises Answer; RuntimeError if it fails.

        Args:
          consent: whoever is shown has agreed.
          speech: a recording's path; or
          text: what the server's voice says.
          portrait: as in `open`.
          prompt: for models that read text.
        """
        asked = _asked(consent, portrait, prompt) | ({"text": text} if text else {})
        job = await (await self._ask("POST", "/v1/jobs", self._token, json=asked)).json()
        own = f"/v1/jobs/{job['id']}"
        if speech:
            headers = {"Content-Type": "application/octet-stream"}
            await self._ask("PUT", own + "/speech", self._token, data=io.BytesIO(speech.read_bytes()), headers=headers)
        while job["state"] not in ("done", "failed"):
            await asyncio.sleep(WAIT_S)
            job = await (await self._ask("GET", own, self._token)).json()
        if job["state"] == "failed":
            raise RuntimeError(f"job: {job['reason']}")
        return await (await self._ask("GET", own + "/result.mp4", self._token)).read()

    async def record(self, call: Opened) -> bytes:
        """The recording of a call that has ended. Raises Answer."""
        return await (await self.ask("GET", call, "/record.mp4")).read()
