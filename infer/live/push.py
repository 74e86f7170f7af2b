"""A call's stream to another server as well, over RTMP or as MPEG-TS.

Where to is the operator's alone: targets have names, a caller gives a name, and addresses neither come from callers nor
are told to them. A child process does the sending, so that a server that takes nothing holds up nobody: its queue drops
to the next key frame, and it is tried again as long as the call lasts.
"""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from avatar_jax.io.errors import InputError
from infer.live.viewer import Stalled, Viewer

FORMATS = {"rtmp": "flv", "rtmps": "flv", "tcp": "mpegts", "udp": "mpegts", "srt": "mpegts"}  # by scheme
NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
STALL_S = 8.0
AGAIN_S = 3.0
END_S = 3.0  # that a child has for what it holds
RELAY = Path(__file__).with_name("relay.py")


class Pushed(Protocol):
    """What is needed of `call.Call`."""

    state: str
    push_state: str

    def push_to(self, viewer: Viewer) -> None:
        """Another place looks on."""
        ...

    @property
    def push_fragments(self) -> int:
        """Fragments that may wait for it."""
        ...


def targets(flags: Sequence[str]) -> dict[str, str]:
    """Addresses by name, from NAME=ADDRESS each. Raises InputError."""
    found: dict[str, str] = {}
    for flag in flags:
        name, _, address = flag.partition("=")
        if not NAME.fullmatch(name) or name in found:
            raise InputError("--push: give each target a name of its own, as --push=studio=rtmp://example.org/app/key")
        if urlsplit(address).scheme not in FORMATS or re.search(r"\s", address):
            raise InputError(f"--push={name}=...: its address must begin with one of {', '.join(FORMATS)}, and ://")
        found[name] = address
    return found


async def _child(address: str) -> asyncio.subprocess.Process:
    """A relay that knows where to."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-P", str(RELAY), stdin=pipe, stdout=pipe, stderr=pipe)
    assert child.stdin
    child.stdin.write(f"{FORMATS[urlsplit(address).scheme]} {address}\n".encode())
    return child


async def _once(call: Pushed, address: str) -> str:
    """Sends until the call or the connection ends; why it ended, "" with the call."""
    child = await _child(address)
    stdin, stdout, stderr = child.stdin, child.stdout, child.stderr
    assert stdin and stdout and stderr

    async def data(message: bytes) -> None:
        stdin.write(message)
        await stdin.drain()

    async def event(about: dict[str, Any]) -> None:
        """The MP4 says it all."""

    async def begun() -> None:
        if await stdout.readline():
            call.push_state = "live"

    viewer = Viewer(event, data, fragments=call.push_fragments, stall_s=STALL_S)
    call.push_to(viewer)
    tasks = [asyncio.ensure_future(work) for work in (viewer.run(), child.wait(), begun())]
    try:
        await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done() and not tasks[0].exception():  # the call is over
            stdin.close()
            await asyncio.wait(tasks[1:2], timeout=END_S)
            return ""
        stalled = tasks[0].done() and isinstance(tasks[0].exception(), Stalled)
        if stalled:
            return "took nothing"
        await asyncio.wait(tasks[1:2], timeout=END_S)
        return (await stderr.read(200)).decode("utf-8", "replace").strip() if child.returncode else "closed"
    finally:
        viewer.close()
        if child.returncode is None:
            child.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(call: Pushed, address: str) -> None:
    """Sends a call to an address until the call ends; tries again after a loss."""
    call.push_state = "connecting"
    while call.state != "ended":
        try:
            reason = await _once(call, address)
        except OSError as error:  # no process can be had now
            reason = error.strerror
        if call.state != "ended":
            call.push_state = f"lost ({reason}); trying again"
            await asyncio.sleep(AGAIN_S)
    call.push_state = "over"
