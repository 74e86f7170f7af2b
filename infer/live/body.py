"""What callers send, read within bounds of size and time."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from avatar_jax.io import guard
from infer.live.door import Refused

BODY_S = 60.0  # that an upload may take
JSON_BYTES = guard.PICTURE_BYTES * 4 // 3 + 32768
MANY_BYTES = 65536  # whose parsing takes a while


async def aside(job: Callable[[Any], Any], data: Any) -> Any:
    """What a job makes of bytes; of many of them on a thread, because other calls' frames wait for the event loop."""
    return await asyncio.to_thread(job, data) if len(data) > MANY_BYTES else job(data)


async def read(request: web.Request, most: int) -> bytes:
    """A request's body. Raises Refused, with 413 as soon as it is larger."""
    if (request.content_length or 0) > most:
        raise Refused(413, "too_large", f"body: at most {most} bytes")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused(415, "encoding", "body: must come as it is, without Content-Encoding")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.content.iter_any():
                data += piece
                if len(data) > most:
                    raise Refused(413, "too_large", f"body: at most {most} bytes")
    except TimeoutError as error:
        raise Refused(408, "slow", f"body: did not come within {BODY_S:.0f} s") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Refused(400, "broken", "body: breaks off, or is not framed as its header says") from error
    return bytes(data)


async def read_json(request: web.Request, most: int = JSON_BYTES) -> dict[str, Any]:
    """A request's body as a JSON object. Raises Refused."""
    try:
        found = await aside(json.loads, await read(request, most))
    except (ValueError, RecursionError) as error:
        raise Refused(422, "json", "body: is not JSON") from error
    if not isinstance(found, dict):
        raise Refused(422, "json", "body: is not a JSON object")
    return found


def check_text(text: Any, what: str) -> str:
    """Text in normal form, "" where there is none. Raises Refused or guard.Refused."""
    if not isinstance(text, str | None):
        raise Refused(422, what, f"{what}: must be text")
    try:
        return guard.clean_text(text or "")
    except guard.Refused as refusal:
        raise guard.Refused(refusal.name, f"{what}: {refusal}") from refusal
