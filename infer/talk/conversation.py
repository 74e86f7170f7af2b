"""A voice, and a model behind it, joined to a call: texts in, sound out in order, and everything stopped at once."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from absl import logging

from avatar_jax.io.errors import InputError
from infer.talk.chat import Chat
from infer.talk.voice import Voice

WAITING = 8  # texts
CLOSE_S = 2.0  # that an end waits for the thread; one that still connects to a service ends by itself


class Conversation:
    """Says one text after the other in a thread of its own; a context manager."""

    def __init__(
        self,
        voice: Voice,
        hear: Callable[[np.ndarray], None],
        *,
        chat: Chat | None = None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to wait for texts.

        Args:
          voice: what speaks.
          hear: takes mono float32 sound [n] at 16 kHz; it may block, and holds the voice back by it.
          chat: what answers `ask`.
          failed: is told, on the conversation's thread, that a text could not be said; the log has the reason.
        """
        self._voice, self._hear, self._chat, self._failed = voice, hear, chat, failed
        self._texts: collections.deque[Callable[[], Iterable[str]]] = collections.deque()
        self._turn, self._closed, self._busy = 0, False, False
        self._changed, self._hearing = threading.Condition(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="talk", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Says a text after those that wait. Raises InputError when too many do."""
        self._wait_in_line(lambda: [text])

    def ask(self, text: str) -> None:
        """Says the model's answer to a text. Raises InputError without a model, or when too many texts wait."""
        chat = self._chat
        if chat is None:
            raise InputError("there is no model to answer; name one with --chat and --chat_model")
        self._wait_in_line(lambda: chat.reply(text))

    def _wait_in_line(self, text: Callable[[], Iterable[str]]) -> None:
        with self._changed:
            if len(self._texts) >= WAITING:
                raise InputError(f"{WAITING} texts wait already; cancel them, or wait")
            self._texts.append(text)
            self._changed.notify_all()

    def cancel(self) -> None:
        """Barge-in: forgets every text, stops model and voice; when it returns, nothing of before is heard any more."""
        with self._changed:
            self._turn += 1
            self._texts.clear()
        if self._chat is not None:
            self._chat.cancel()
        self._voice.cancel()
        with self._hearing:
            pass  # a piece that was just being handed over has been

    def idle(self, timeout_s: float | None = None) -> bool:
        """Waits until all is said; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._texts and not self._busy, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._texts or self._closed)
                if self._closed:
                    return
                text, turn, self._busy = self._texts.popleft(), self._turn, True
            try:
                self._speak(text(), turn)
            except Exception as error:  # this text is lost, the call goes on
                bug = None if isinstance(error, InputError) else error  # else a service that failed
                logging.warning("a text could not be said: %s", error, exc_info=bug)
                self._failed()

    def _pieces(self, texts: Iterable[str], turn: int) -> Iterator[np.ndarray]:
        for text in texts:
            if turn != self._turn:
                return
            yield from self._voice.say(text)

    def _speak(self, texts: Iterable[str], turn: int) -> None:
        with contextlib.closing(self._pieces(texts, turn)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                with self._hearing:
                    if turn != self._turn:
                        return
                    self._hear(piece)

    def close(self) -> None:
        """Stops everything and waits for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.cancel()
        self._thread.join(CLOSE_S)
        self._voice.close()

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
