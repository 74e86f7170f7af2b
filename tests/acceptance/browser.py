"""Headless Chromium through its own debugging protocol: open a page, run JavaScript in it, take pictures of it."""

import asyncio
import base64
import contextlib
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOW = (1180, 940)


def found() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket, self._numbers = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self._reader = asyncio.ensure_future(self._read())
        self.errors: list[str] = []

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if said.get("method") == "Runtime.exceptionThrown":
                details = said["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description") or details["text"])
            if said.get("id") in self._answers:
                self._answers.pop(said["id"]).set_result(said)

    async def order(self, method: str, **given: Any) -> dict[str, Any]:
        """A command of the protocol; its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": given})
        said = await asyncio.wait_for(asyncio.shield(self._answers[number]), 120.0)
        assert "error" not in said, f"{method}: {said['error']}"
        return said["result"]

    async def run(self, script: str) -> Any:
        """The value of JavaScript, awaited if it is a promise."""
        said = await self.order("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, f"{script}: {said['exceptionDetails']}"
        return said["result"].get("value")

    async def until(self, script: str, seconds: float) -> Any:
        """Waits until JavaScript is true; its value."""
        end = asyncio.get_running_loop().time() + seconds
        while not (value := await self.run(script)):
            assert asyncio.get_running_loop().time() < end, f"{script} not within {seconds} s; {self.errors}"
            await asyncio.sleep(0.1)
        return value

    async def visit(self, address: str) -> None:
        """Opens an address and waits until its scripts ran."""
        await self.order("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'", 60.0)

    async def picture(self, path: Path) -> None:
        """A screenshot."""
        shot = await self.order("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Ends the connection's reader."""
        self._reader.cancel()


async def _port(folder: Path) -> str:
    """Where the browser listens, which it writes into its profile."""
    for _ in range(1200):
        file = folder / "DevToolsActivePort"
        if file.exists() and "\n" in (text := file.read_text()):
            return text.splitlines()[0]
        await asyncio.sleep(0.1)
    raise TimeoutError("Chromium did not start within 2 minutes")


@contextlib.asynccontextmanager
async def opened(sound: Path | None = None) -> AsyncIterator[Page]:
    """A page in a browser of its own.

    Args:
      sound: WAV that its microphone hears, over and over.
    """
    program = found()
    assert program, "no Chromium"
    hears = [f"--use-file-for-fake-audio-capture={sound}"] if sound else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        running = await asyncio.create_subprocess_exec(
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--mute-audio",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            f"--window-size={WINDOW[0]},{WINDOW[1]}",
            "--hide-scrollbars",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            "--autoplay-policy=no-user-gesture-required",
            *hears,
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile))
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                    targets = [one for one in await answer.json() if one["type"] == "page"]
                async with http.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=2**26) as socket:
                    page = Page(socket)
                    await page.order("Runtime.enable")
                    await page.order("Page.enable")
                    yield page
                    page.close()
        finally:
            running.terminate()
            await running.wait()
