"""What a call says of typed text: a voice, a model behind it, and how far they may run ahead of what is spoken."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from infer.live.line import Line
from infer.talk.chat import Chat
from infer.talk.conversation import Conversation
from infer.talk.voice import Voice

AHEAD_S, POLL_S = 2.0, 0.05  # of speech in the line, beyond which the voice waits; how often that is looked at


class Talk(NamedTuple):
    """What makes a voice, and the model that answers, for each call that types."""

    voice: Callable[[], Voice]
    chat: Callable[[], Chat] | None = None


class Patient:
    """A voice that waits between its pieces for what it said to be spoken.

    So a long text is held in the voice and not in memory, and a model is reminded of what was heard and no more.

    Args:
      voice: what speaks.
      line: of the call.
    """

    def __init__(self, voice: Voice, line: Line):
        self._voice, self._line, self._stopped = voice, line, threading.Event()

    def say(self, text: str) -> Iterator[np.ndarray]:
        """As `Voice.say`."""
        self._stopped.clear()
        with contextlib.closing(self._voice.say(text)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                while self._line.waiting_s > AHEAD_S and not self._stopped.wait(POLL_S):
                    pass
                if self._stopped.is_set():
                    return
                yield piece

    def cancel(self) -> None:
        """As `Voice.cancel`."""
        self._stopped.set()
        self._voice.cancel()

    def close(self) -> None:
        """As `Voice.close`."""
        self._stopped.set()
        self._voice.close()


class Tongue:
    """Typed text of one call, said in order; nothing runs before the first. Belongs to the event loop's thread.

    Args:
      talk: makes voice and model.
      line: what the call hears.
      hear: takes pieces of speech, float32 [n]; on another thread.
      failed: is told that a text could not be said.
    """

    def __init__(self, talk: Talk, line: Line, hear: Callable[[np.ndarray], None], failed: Callable[[], None]):
        self._talk, self._line, self._hear, self._failed = talk, line, hear, failed
        self._conversation: Conversation | None = None

    def _begun(self) -> Conversation:
        if self._conversation is None:
            loop, talk = asyncio.get_running_loop(), self._talk

            def failed() -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(self._failed)

            voice, chat = Patient(talk.voice(), self._line), talk.chat() if talk.chat else None
            self._conversation = Conversation(voice, self._hear, chat=chat, failed=failed)
        return self._conversation

    def take(self, text: str) -> None:
        """Says a text, or the model's answer to it, after those that wait. Raises InputError if too many do."""
        conversation = self._begun()
        conversation.ask(text) if self._talk.chat else conversation.say(text)

    def cancel(self) -> None:
        """Forgets every text; when it returns, nothing of before is heard any more."""
        if self._conversation:
            self._conversation.cancel()

    def close(self) -> None:
        """Ends voice, model and thread."""
        conversation, self._conversation = self._conversation, None
        if conversation:
            conversation.close()
