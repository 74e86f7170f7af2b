"""Live calls: what strangers send, through the routes and the decoding children of a server in a process of its own.

AVATAR_LIVE_CASES shortens the longest check; what was run stands in its row.
"""

import asyncio
import base64
import functools
import io
import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import aiohttp

from tests.acceptance import held, report
from tests.acceptance.malformed import framed, mutated, seeds
from tests.acceptance.test_live import Puppet
from tests.infer.live.house import TOKEN
from tests.infer.live.test_server import look
from tests.io import hostile

CASES = int(os.environ.get("AVATAR_LIVE_CASES", "10000"))
LOOKS = 20  # at the good call, and at what the server holds
PATIENCE_S = 0.2  # with a server that may wait for the rest of a broken request
TEXT = json.dumps({"text": "Good morning, everyone."}).encode()
KINDS = ("picture", "sound", "json", "frame", "framing")
row = functools.partial(report.row, "live")


class Caller:
    """Somebody with a call at a server."""

    def __init__(self, puppet: Puppet, http: aiohttp.ClientSession, about: dict):
        self._puppet, self._http, self._about = puppet, http, about
        self.own = f"/v1/sessions/{about['id']}"

    async def ask(self, method: str, path: str, token: str | None = None, **given) -> tuple[int, dict]:
        """Status and answer."""
        headers = {"Authorization": f"Bearer {token or self._about['token']}"}
        async with self._http.request(method, self._puppet.url + path, headers=headers, **given) as answer:
            return answer.status, await answer.json(content_type=None)

    async def picture(self, data: bytes) -> tuple[int, dict]:
        """Another portrait."""
        asked = json.dumps({"portrait_base64": base64.b64encode(data).decode()}).encode()
        return await self.ask("PATCH", self.own, data=io.BytesIO(asked))

    async def sound(self, data: bytes) -> tuple[int, dict]:
        """Speech, which is not spoken."""
        status, said = await self.ask("POST", self.own + "/speech", data=io.BytesIO(data))
        if status == 200:
            await self.ask("POST", self.own + "/interrupt")
        return status, said

    async def json(self, data: bytes) -> tuple[int, dict]:
        """A body that opens a call, or not."""
        status, said = await self.ask("POST", "/v1/sessions", TOKEN, data=data)
        if status == 201:
            await self.ask("DELETE", f"/v1/sessions/{said['id']}", said["token"])
        return status, said

    async def frame(self, rng: random.Random) -> tuple[int, dict]:
        """A WebSocket of a call of its own that hears noise or reads nonsense."""
        about = await self._puppet.open(self._http, record=False)
        async with self._puppet.stream(self._http, about) as socket:
            size = rng.randrange(1, 200)
            if rng.random() < 0.5:
                await socket.send_bytes(rng.randbytes(size))
            else:
                await socket.send_str("".join(chr(rng.randrange(1, 0xD800)) for _ in range(size)))
        return await self.ask("DELETE", f"/v1/sessions/{about['id']}", about["token"])

    async def framing(self, data: bytes) -> tuple[int, dict]:
        """Bytes that may be a request; 0: no answer."""
        host, _, port = self._puppet.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            line = await asyncio.wait_for(reader.readline(), PATIENCE_S)
        except (ConnectionError, TimeoutError):  # the server waits for more, which does not come
            line = b""
        finally:
            writer.close()
        return int(line.split()[1]) if line.startswith(b"HTTP/") else 0, {}

    async def broken(self, kind: str, good: dict[str, list[bytes]], rng: random.Random) -> int:
        """Sends one broken thing; the status."""
        if kind == "frame":
            return (await self.frame(rng))[0]
        if kind == "json" and rng.random() < 0.5:
            return (await self.ask("POST", self.own + "/text", data=mutated(TEXT, rng)))[0]
        if kind == "framing":
            path, token = self.own + rng.choice(("/speech", "/text", "")), self._about["token"]
            return (await self.framing(framed(path, token, rng.choice(good["sound"]), rng)))[0]
        return (await getattr(self, kind)(mutated(rng.choice(good[kind]), rng)))[0]

    async def alive(self) -> bool:
        """Whether the call's picture goes on."""
        before = (await self.ask("GET", self.own))[1]
        await asyncio.sleep(0.5)
        after = (await self.ask("GET", self.own))[1]
        return after["state"] == "live" and after["frames"] > before["frames"]


async def visited(puppet: Puppet, visit) -> tuple:
    """What a visit with a good call at a server finds; the server ends after it."""
    try:
        async with aiohttp.ClientSession() as http:
            about = await puppet.open(http, record=False)
            async with puppet.stream(http, about) as socket:
                hearing = asyncio.ensure_future(look(socket, lambda event: event["type"] == "ended"))
                await look_until_live(caller := Caller(puppet, http, about))
                found = await visit(caller)
                await socket.send_str(json.dumps({"type": "end"}))
                await hearing
        return found
    finally:
        puppet.running.terminate()


async def look_until_live(caller: Caller) -> None:
    """Waits for the first frames, and for the process that decodes."""
    while not await caller.alive():
        pass
    assert (await caller.picture(hostile.picture("PNG")))[0] == 200


def test_malformed(tmp_path: Path):
    """Uploads of all kinds, JSON, frames of WebSockets and HTTP itself."""
    rng, good, puppet = random.Random(0), seeds(), Puppet(tmp_path)
    pid = puppet.running.pid

    async def visit(caller: Caller) -> tuple:
        statuses, alive, sizes, began = {kind: Counter() for kind in KINDS}, 0, [], time.monotonic()
        for k in range(CASES):
            kind = KINDS[k % len(KINDS)]
            statuses[kind][await caller.broken(kind, good, rng)] += 1
            if (k + 1) % (CASES // LOOKS) == 0:
                alive += await caller.alive()
                sizes.append((held.memory(pid), held.threads(pid), held.descriptors(pid)))
        spent = time.monotonic() - began
        assert (await caller.picture(hostile.picture("JPEG")))[0] == 200
        await asyncio.sleep(1.0)
        decoders = held.children(pid)
        return statuses, alive, sizes, spent, len(decoders), sum(len(held.children(one)) for one in decoders)

    statuses, alive, sizes, spent, forking, left = asyncio.run(asyncio.wait_for(visited(puppet, visit), 7200.0))
    code = puppet.end()
    failed = sum(count for kind in statuses.values() for status, count in kind.items() if status >= 500)
    drift = sizes[-1][0] - sizes[len(sizes) // 4][0]
    more = [max(one[n] for one in sizes) - sizes[len(sizes) // 4][n] for n in (1, 2)]
    said = "; ".join(
        f"{kind} {', '.join(f'{status}: {count}' for status, count in sorted(found.items()))}"
        for kind, found in statuses.items()
    )
    figure = (
        f"{failed} answered 5xx ({said}); a good call seen alive {alive} of {LOOKS} times; {left} decoding children "
        f"left of {forking} process that forks them; memory {drift:+.1f} MB, children included, threads {more[0]:+d} "
        f"and descriptors {more[1]:+d} over the last three quarters; exit {code}; {spent:.0f} s"
    )
    bar = "no 5xx, no leaked worker, memory drift under 50 MB, a good session works throughout"
    what = (
        f"{CASES:,} malformed pictures, recordings, JSON bodies, WebSocket frames and HTTP requests, through the server"
    )
    met = not failed and alive == LOOKS and left == 0 and forking == 1 and drift < 50 and more[0] < 16 and more[1] < 16
    assert row(what, figure, bar, met and code == 0)


def test_bombs(tmp_path: Path):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(hostile.good(tmp_path)["speech.wav"][1])
    bombs, puppet = list(hostile.bombs(secret)), Puppet(tmp_path)

    async def visit(caller: Caller) -> tuple:
        wrong, slowest, largest, total = [], (0.0, ""), (0.0, ""), 0
        for what, kind, data, names in bombs:
            send = caller.picture if kind == "picture" else caller.sound
            with held.Peak(puppet.running.pid) as peak:
                began = time.monotonic()
                status, said = await send(data)
                spent = time.monotonic() - began
            name, total = said.get("error", {}).get("code", "none"), total + 1
            if not 400 <= status < 500 or name not in names:
                wrong.append(f"{what}: {status} {name}")
            slowest, largest = max(slowest, (spent, what)), max(largest, (peak.grown, what))
        return wrong, slowest, largest, total, await caller.alive()

    wrong, slowest, largest, total, alive = asyncio.run(asyncio.wait_for(visited(puppet, visit), 600.0))
    puppet.end()
    figure = (
        f"{total - len(wrong)} of {total} answered 4xx by their name{'; '.join(['', *wrong])}; slowest "
        f"{slowest[0]:.2f} s ({slowest[1]}); most memory {largest[0]:.0f} MB, children included ({largest[1]}); a good "
        f"call goes on: {alive}; load {os.getloadavg()[0]:.1f}"
    )
    met = not wrong and slowest[0] <= 2 and largest[0] < 100 and alive
    what = "bombs and container tricks, through the server"
    assert row(what, figure, "each refused in 2 s, memory growth under 100 MB", met)
