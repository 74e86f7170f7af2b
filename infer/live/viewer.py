"""One connection that looks on: a bounded queue that drops to the next key frame, never grows, and gives up in time."""

import asyncio
import collections
from collections.abc import Awaitable, Callable
from typing import Any

from infer.live.encode import Fragment

Message = dict[str, Any] | bytes | Fragment


class Stalled(Exception):
    """The reader takes nothing any more."""


class Viewer:
    """Messages on their way to a reader.

    Args:
      send_text: of the connection, for events.
      send_bytes: of the connection, for media.
      fragments: that may wait; beyond it all of them go, and the stream goes on with the next key frame.
      stall_s: a message that takes longer ends the connection.
    """

    def __init__(
        self,
        send_text: Callable[[dict[str, Any]], Awaitable[Any]],
        send_bytes: Callable[[bytes], Awaitable[Any]],
        *,
        fragments: int,
        stall_s: float,
    ):
        self._text, self._bytes, self._most, self._stall_s = send_text, send_bytes, fragments, stall_s
        self._waiting: collections.deque[tuple[bool, Message]] = collections.deque()  # media?, message
        self._media, self._wake = 0, asyncio.Event()
        self.told, self.wants_key, self.dropped, self.over = False, True, 0, False

    def _add(self, media: bool, message: Message) -> None:
        self._waiting.append((media, message))
        self._media += media
        self._wake.set()

    def event(self, about: dict[str, Any]) -> None:
        """Sends an event after what waits."""
        self._add(False, about)

    def head(self, mime: str, init: bytes) -> None:
        """Tells the player what comes."""
        self.told = True
        self._add(False, {"type": "media", "mime": mime})
        self._add(False, init)

    def show(self, fragment: Fragment) -> bool:
        """Sends a fragment; False: dropped, because the queue is full or the player could not begin with it."""
        if self._media >= self._most:
            self.flush()
        if self.wants_key and not fragment.key:
            self.dropped += 1
            return False
        self.wants_key = False
        self._add(True, fragment)
        return True

    def flush(self) -> None:
        """Drops the media that waits; the stream goes on with a key frame."""
        self.dropped += self._media
        self._media, self.wants_key = 0, True
        self._waiting = collections.deque(one for one in self._waiting if not one[0])

    def close(self) -> None:
        """Lets `run` end after what waits."""
        self.over = True
        self._wake.set()

    async def _show(self, fragment: Fragment) -> None:
        await self._bytes(fragment.data)

    async def _send(self, message: Message) -> None:
        if isinstance(message, Fragment):
            await self._show(message)
        else:
            await (self._bytes(message) if isinstance(message, bytes) else self._text(message))

    async def run(self) -> None:
        """Sends until the end. Raises Stalled, or what the connection raises."""
        while True:
            while self._waiting:
                media, message = self._waiting.popleft()
                self._media -= media
                try:
                    async with asyncio.timeout(self._stall_s):
                        await self._send(message)
                except TimeoutError as error:
                    raise Stalled(f"took nothing for {self._stall_s:.0f} s") from error
            if self.over:
                return
            self._wake.clear()
            await self._wake.wait()
