"""A whole server with a model that costs nothing: every frame is as bright as the sound under it is loud."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aiohttp import ClientSession, CookieJar
from aiohttp.test_utils import TestServer

from infer.live import app as apps
from infer.live.audit import Audit
from infer.live.call import Limits, Look
from infer.live.desk import Desk
from infer.live.keys import Keys
from infer.live.stage import Form, Stage
from infer.live.studio import Gallery

FORM = Form(height=32, width=32, fps=25, audio_hz=16000, block_frames=12)
TOKEN = "t" * 32
GALLERY = Gallery({name: np.full((32, 32, 3), grey, np.uint8) for name, grey in (("dark", 30), ("light", 90))})


class Block(NamedTuple):
    """As `avatar_jax.stream.live.Shown`."""

    frames: np.ndarray
    sound: np.ndarray


def paint(sound: np.ndarray, ground: int, form: Form = FORM) -> np.ndarray:
    """Frames [T, H, W, 3] of a ground, brighter with the sound."""
    loud = np.sqrt(np.mean(sound.reshape(-1, form.hop) ** 2, axis=1))
    grey = np.clip(ground + 400 * loud, 0, 255).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (len(grey), form.height, form.width, 3))


class Guest:
    """As `avatar_jax.stream.live.Guest`."""

    def __init__(self, ground: int, hall: "Hall"):
        self.ground, self._hall, self.waiting = ground, hall, []  # (when it is drawn, block)

    def push_audio(self, samples: np.ndarray, now_s: float) -> None:
        self._hall.entered.append(now_s)
        frames = paint(samples, self.ground, self._hall.form)
        self.waiting.append((now_s + self._hall.draw_s, Block(frames, samples)))

    def fetch(self) -> list[Block]:
        ready = [block for when, block in self.waiting if when <= self._hall.now_s]
        self.waiting = self.waiting[len(ready) :]
        return ready

    def show(self, scene: int) -> None:
        self.ground = scene


class Hall:
    """As `avatar_jax.stream.live.Live`; `draw_s` is what a block takes."""

    def __init__(self, seats: int, draw_s: float = 0.01, form: Form = FORM):
        self.seats, self.draw_s, self.form = seats, draw_s, form
        self.guests: list[Guest] = []
        self.now_s, self.most = 0.0, 0
        self.entered: list[float] = []  # when blocks came

    def join(self, avatar: int) -> Guest:
        assert len(self.guests) < self.seats, "more guests than seats"
        self.guests.append(Guest(avatar, self))
        self.most = max(self.most, len(self.guests))
        return self.guests[-1]

    def leave(self, guest: Guest) -> None:
        self.guests.remove(guest)

    def beat(self, now_s: float) -> None:
        self.now_s = now_s


class Studio:
    """As `infer.live.studio.Studio`."""

    def __init__(self, form: Form = FORM):
        self.form = form

    def prepare(self, look: Look) -> int:
        return int(look.portrait.mean())

    scene = prepare

    def check_prompt(self, prompt: str | None) -> str | None:
        if prompt:
            raise ValueError("prompt: the model reads no text; leave it out")
        return None


class House(NamedTuple):
    """A server that runs, and a client of it."""

    server: TestServer
    desk: Desk
    hall: Hall
    keys: Keys
    client: ClientSession

    def url(self, path: str) -> str:
        return str(self.server.make_url(path))

    async def ask(self, method: str, path: str, token: str | None = TOKEN, **given: Any) -> tuple[int, Any, Any]:
        """Status, JSON and headers of an answer."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.client.request(
            method, self.url(path), headers=headers | given.pop("headers", {}), **given
        ) as a:
            return a.status, await a.json() if a.content_type == "application/json" else await a.read(), a.headers

    async def open(self, **asked: Any) -> dict[str, Any]:
        """A new session."""
        status, about, _ = await self.ask("POST", "/v1/sessions", json={"consent": True, **asked})
        assert status == 201, about
        return about

    def stream(self, about: dict[str, Any], **given: Any) -> Any:
        """Its WebSocket."""
        headers = {"Authorization": f"Bearer {about['token']}"}
        return self.client.ws_connect(self.url(about["stream"]), headers=headers, **given)


@contextlib.asynccontextmanager
async def opened(
    folder: Path | None = None,
    *,
    draw_s: float = 0.01,
    ttl_s: float = 600.0,
    desk_has: dict[str, Any] | None = None,
    **given: Any,
) -> AsyncIterator[House]:
    """A house with the given limits; `desk_has`: more of what its desk is made with."""
    limits = Limits(**{"seats": 2, "opened_a_minute": 1e6, "uploads_a_minute": 1e6, **given})
    hall, keys = Hall(limits.seats, draw_s), Keys([TOKEN], ttl_s=ttl_s)
    desk = Desk(
        Studio(),
        Stage(hall, beat_s=0.0),
        limits,
        audit=Audit(folder / "audit.jsonl" if folder else None),
        folder=folder / "recordings" if folder else None,
        **(desk_has or {}),
    )
    server = TestServer(apps.make_app(desk, keys, GALLERY, origins=("https://friend.example",)))
    await server.start_server()
    desk.start()
    try:
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as client:
            yield House(server, desk, hall, keys, client)
    finally:
        await desk.drain(0.0)
        await server.close()
        desk.audit.close()


async def eventually(true: Callable[[], Any], seconds: float = 10.0) -> None:
    """Waits until something is true."""
    end = now() + seconds
    while not true():
        assert now() < end, "never came true"
        await asyncio.sleep(0.02)


def voice(seconds: float, form: Form = FORM) -> np.ndarray:
    """A tone, float32 [n]."""
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * form.audio_hz)) / form.audio_hz)).astype(
        np.float32
    )


def pcm(samples: np.ndarray) -> bytes:
    """PCM16."""
    return (samples * 32767).astype("<i2").tobytes()


def now() -> float:
    """Seconds."""
    return time.monotonic()
