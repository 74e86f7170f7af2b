"""Live calls: who comes in, what happens under load, what is left after an end of any kind.

These rows hold whatever the model is, so theirs costs nothing (`tests.infer.live.house`); test_live_browser.py has the
rows that look at the embedded model through a browser, test_live_uploads.py what strangers send. AVATAR_LIVE_SOAK
shortens the longest check; what was run stands in its row.
"""

import asyncio
import base64
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import av
import numpy as np

from infer.live.encode import Encoder
from infer.live.line import Line
from infer.live.pace import Pace
from infer.live.stage import Stage
from tests.acceptance import absent, report
from tests.infer.live.house import FORM, TOKEN, Hall, House, eventually, now, opened, pcm, voice
from tests.infer.live.test_server import ROUTES, look

SOAK_S = int(os.environ.get("AVATAR_LIVE_SOAK", "10000"))
row = functools.partial(report.row, "live")


def run(test, *given, seconds: float = 900.0, **house):
    """A check that wants a running house; what it returns."""

    async def inside():
        async with opened(*given, **house) as one:
            return await test(one)

    return asyncio.run(asyncio.wait_for(inside(), seconds))


def held() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def resident_mb() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def talk(socket: aiohttp.ClientWebSocketResponse, seconds: float) -> None:
    """Live sound in real time."""
    begun = now()
    for k in range(round(seconds * 50)):
        await socket.send_bytes(pcm(voice(0.02)))
        await asyncio.sleep(max(0.0, begun + (k + 1) / 50 - now()))


def test_tokens():
    async def check(house: House) -> tuple[int, int, int]:
        about, other = await house.open(), await house.open()
        house.keys._ttl_s = -1.0
        expired, _ = house.keys.issue(about["id"])
        asked = wrong = told = 0
        for method, path in ROUTES:
            others = TOKEN if "{id}" in path else about["token"]
            for token in (None, "x" * 32, expired, other["token"], others):
                status, said, _ = await house.ask(method, path.format(**about), token)
                asked, wrong = asked + 1, wrong + (status not in (401, 403))
                told += about["id"] in str(said) or "frames" in str(said)
        return asked, wrong, told

    asked, wrong, told = run(check)
    figure = f"{asked} requests to {len(ROUTES)} routes: {asked - wrong} answered 401 or 403, {told} told anything"
    what = "every route without, with a wrong, an expired or another session's token"
    assert row(what, figure, "401 or 403, nothing disclosed", not wrong and not told)


def test_many_clients():
    async def check(house: House) -> tuple:
        answers = await asyncio.gather(*(house.ask("POST", "/v1/sessions", json={"consent": True}) for _ in range(64)))
        opened_, refused = [one for one in answers if one[0] == 201], [one for one in answers if one[0] == 503]
        later = sum("Retry-After" in one[2] for one in refused)
        active = len(house.desk.active)
        waiting = [call.name for call in house.desk.queue]
        order = []
        for _ in waiting:
            first = next(iter(house.desk.active.values()))
            await house.desk.end(first, "enough")
            order.append(list(house.desk.active)[-1])
        for call in list(house.desk.calls.values()):
            await house.desk.end(call, "enough")
        kept = order == waiting
        await asyncio.sleep(0.3)
        before, lost = held(), 0
        for k in range(1000):
            about = await house.open()
            socket = await house.stream(about)
            if k % 2:
                await socket.close()
            elif socket._response.connection and socket._response.connection.transport:
                socket._response.connection.transport.abort()  # a reset
        end = now() + 10.0
        while (house.desk.active or house.hall.guests) and now() < end:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)
        gc.collect()
        after = held()
        lost = len(house.desk.active) + len(house.hall.guests) + len(house.desk.queue)
        return len(opened_), active, len(refused), later, kept, house.hall.most, lost, before, after

    given = {
        "seats": 4,
        "queue": 16,
        "resume_s": 0.5,
        "connect_s": 60.0,
    }  # nobody is sent away while the order is watched
    found, active, refused, later, kept, most, lost, before, after = run(check, **given)
    figure = (
        f"{active} active, {found - active} queued, {refused} refused, {later} with Retry-After; order "
        f"{'kept' if kept else 'broken'}, never more than {most} on seats; afterwards {lost} seats held, threads "
        f"{before[0]} then {after[0]}, descriptors {before[1]} then {after[1]}"
    )
    met = active == 4 and refused == later == 44 and kept and most <= 4 and not lost
    bar = "exactly 4 active, order kept, Retry-After; no seat, thread or descriptor leaked"
    what = "64 clients on 4 seats; 1,000 connect-and-abort cycles, half of them resets"
    assert row(what, figure, bar, met and after[0] <= before[0] + 1 and after[1] <= before[1] + 4)


def test_stalled_reader():
    async def check(house: House) -> tuple[float, float, float, int]:
        good, bad = await house.open(), await house.open()
        async with house.stream(good) as socket:
            other = house.desk.calls[good["id"]]
            await look(socket, lambda event: event.get("frames", 0) > 25 * 3)
            before = other.pace.stalled_s  # what the machine alone does
            watched = asyncio.ensure_future(look(socket, lambda event: event.get("frames", 0) > 25 * 12))
            reader, writer = await asyncio.open_connection(house.server.host, house.server.port)
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET {bad['stream']} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                f"Authorization: Bearer {bad['token']}\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            stopped, call = now(), house.desk.calls[bad["id"]]  # from here on it reads nothing
            while call.viewer is not None and now() < stopped + 20.0:
                await asyncio.sleep(0.05)
            closed = now() - stopped
            writer.transport.abort()
            await watched
            return closed, before, other.pace.stalled_s - before, other.pace.frames

    closed, before, stalled, frames = run(check)
    figure = (
        f"closed after {closed:.1f} s; the other call's picture stood {stalled:.2f} s in {frames} frames, after "
        f"{before:.2f} s in its first 3 s alone"
    )
    assert row(
        "a reader that stops reading", figure, "closed in 5 s, without harm to others", closed <= 5 and stalled < 0.5
    )


def test_half_speed():
    async def check(house: House) -> tuple[float, float, float, float]:
        about = await house.open()

        async def worst(seconds: float) -> float:
            """The most that the call is behind its sound."""
            found, end = 0.0, now() + seconds
            while now() < end:
                found = max(found, call.behind_s + call.line.waiting_s)
                await asyncio.sleep(0.02)
            return found

        async with house.stream(about) as socket:
            seen = asyncio.ensure_future(look(socket, lambda event: event["type"] == "ended"))
            call = house.desk.calls[about["id"]]
            talking = asyncio.ensure_future(talk(socket, 42.0))
            await asyncio.sleep(2.0)
            usual = await worst(2.0)
            house.hall.draw_s = 2 * FORM.block_s
            late = await worst(30.0)
            house.hall.draw_s = 0.05
            released, back = now(), 99.0
            while now() < released + 6.0:
                if await worst(FORM.block_s) <= usual + 0.2:
                    back = now() - released
                    break
            await talking
            await socket.send_str('{"type": "end"}')
            await seen
            apart = abs(call._encoder.frames / 25 - call._encoder.samples / 16000)
            return usual, late, back, apart

    usual, late, back, apart = run(check)
    figure = (
        f"at most {usual:.2f} s behind its sound before, {late:.2f} s meanwhile, as before {back:.1f} s after; picture "
        f"and sound {1e3 * apart:.3f} ms apart"
    )
    what = "a model at half speed for 30 s (two blocks' time a block)"
    assert row(what, figure, "back at the live edge in 5 s with sync", back <= 5 and apart < 1e-3)


class Puppet:
    """The child process of `tests.acceptance.puppet`."""

    def __init__(self, folder: Path):
        command = [sys.executable, "-m", "tests.acceptance.puppet", str(folder)]
        self.running = subprocess.Popen(command, cwd=absent.ROOT, stdout=subprocess.PIPE, text=True)
        assert self.running.stdout
        self.url = self.running.stdout.readline().split()[1].partition("/?")[0]

    def end(self) -> int:
        """Waits for its end; its exit code."""
        self.running.communicate(timeout=60)
        return self.running.returncode

    async def open(self, http: aiohttp.ClientSession, *, record: bool = True) -> dict:
        headers, asked = {"Authorization": f"Bearer {TOKEN}"}, {"consent": True, "record": record}
        async with http.post(self.url + "/v1/sessions", json=asked, headers=headers) as answer:
            return await answer.json()

    def stream(self, http: aiohttp.ClientSession, about: dict):
        return http.ws_connect(self.url + about["stream"], headers={"Authorization": f"Bearer {about['token']}"})


def frames_in(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_killed(tmp_path: Path):
    puppet = Puppet(tmp_path)

    async def check() -> int:
        async with aiohttp.ClientSession() as http:
            about = await puppet.open(http)
            async with puppet.stream(http, about) as socket:
                events, _ = await look(socket, lambda event: event.get("frames", 0) >= 250)
                puppet.running.send_signal(signal.SIGKILL)
                return events[-1]["frames"]

    shown = asyncio.run(check())
    puppet.end()
    (path,) = (tmp_path / "recordings").glob("*.live.mp4")
    found = frames_in(path)
    figure = f"opens with {found} frames of at least {shown} shown"
    assert row("kill -9 while recording", figure, "at least 95 % of its frames", found >= 0.95 * shown)


def test_drained(tmp_path: Path):
    puppet, asked = Puppet(tmp_path), []

    async def check() -> tuple[list[int], list[str]]:
        async with aiohttp.ClientSession() as http:
            calls = [await puppet.open(http) for _ in range(4)]
            sockets = [await puppet.stream(http, about) for about in calls]
            shown = [0] * len(sockets)

            def until(number: int, event: dict) -> bool:
                shown[number] = max(shown[number], event.get("frames", 0))
                return event["type"] == "ended"

            looks = (look(socket, functools.partial(until, number)) for number, socket in enumerate(sockets))
            watched = [asyncio.ensure_future(one) for one in looks]
            await eventually(lambda: min(shown) >= 25, 60.0)
            puppet.running.send_signal(signal.SIGTERM)
            asked.append(time.monotonic())
            await asyncio.sleep(0.1)
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with http.get(puppet.url + "/readyz", headers=headers) as answer:
                ready = answer.status
            ends = await asyncio.gather(*watched)
            last = [events[-1]["type"] + " " * events[-1]["record"] for events, _ in ends]
            return [ready], last

    (ready,), last = asyncio.run(check())
    code = puppet.end()
    seconds = time.monotonic() - asked[0]
    kept = [frames_in(path) for path in (tmp_path / "recordings").glob("*.mp4")]
    figure = (
        f"/readyz {ready} after 0.1 s, {last.count('ended ')} of 4 calls told of their end, {len(kept)} recordings of "
        f"{min(kept, default=0)} frames or more, exit {code} after {seconds:.1f} s"
    )
    met = ready == 503 and last == ["ended "] * 4 and len(kept) == 4 and code == 0
    assert row(
        "SIGTERM under load, 4 calls with recordings",
        figure,
        "not ready at once, sessions close cleanly, exit 0 in time",
        met,
    )


def test_soak():
    """Four parts, their encoders and clocks, driven by a simulated clock; the model costs nothing."""
    clock, hall, seconds = [0.0], Hall(4, draw_s=0.1), SOAK_S / 4
    stage = Stage(hall, beat_s=0.0, now=lambda: clock[0])
    parts = [stage.join(40, Line(audio_hz=16000, live_s=0.96, speech_s=60.0), FORM, ahead=2) for _ in range(4)]
    calls = [
        (part, Pace(25, 4), Encoder(height=32, width=32, fps=25, audio_hz=16000, display_size=32)) for part in parts
    ]
    packet, sizes, fragments = voice(0.02), [], 0
    while clock[0] < seconds:
        for part, pace, encoder in calls:
            part.line.talk(packet, clock[0], keep=FORM.block_samples)
            while part.reel and pace.wait_s(clock[0]) <= 0:
                framed = part.reel.popleft()
                fragments += len(encoder.encode(framed.frame, framed.sound))
                pace.sent(clock[0])
        stage.turn(clock[0])
        clock[0] += 0.02
        if len(sizes) < clock[0] / seconds * 40:
            sizes.append(resident_mb())
    frames = sum(pace.frames for _, pace, _ in calls)
    settled = sizes[10:]
    slope = np.polyfit(np.linspace(0.25 * SOAK_S, SOAK_S, len(settled)) / 1000, settled, 1)[0]
    apart = max(abs(encoder.frames / 25 - encoder.samples / 16000) for _, _, encoder in calls)
    dropped = sum(part.line.dropped for part in parts) / 16000
    figure = (
        f"{frames:,} frames, {frames / 25:,.0f} s of media; memory {slope:+.3f} MB per 1,000 s after a quarter; "
        f"picture and sound {1e3 * apart:.3f} ms apart at the end; {dropped:.2f} s of sound dropped"
    )
    what = f"soak on a simulated clock, {SOAK_S:,} s of media over 4 calls, the host's side: line, stage, pace, encoder"
    bar = "memory slope under 1 MB per 1,000 s, media-clock error under 1 ms"
    assert row(what, figure, bar, slope < 1.0 and apart < 1e-3 and frames / 25 > 0.99 * SOAK_S)
