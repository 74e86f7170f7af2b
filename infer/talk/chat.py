"""Answers of a language model behind an OpenAI-compatible address, sentence by sentence."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from avatar_jax.io.errors import InputError
from infer.talk.endpoint import Endpoint

END = re.compile(r"(?<=[.!?;:\u3002\uff01\uff1f])\s+|\n+")  # where a voice may take a breath
LONGEST = 240  # characters that a voice is made to wait for
KEPT = 20  # messages that the model is reminded of


def _events(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON of server-sent events, over any split of the bytes."""
    left = b""
    for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        for line in lines:
            said = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and said and said != b"[DONE]":
                try:
                    event = json.loads(said)
                except ValueError as error:
                    raise InputError("the model's service sends events that are no JSON") from error
                if isinstance(event, dict):
                    yield event


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """Text in pieces as whole sentences, each as soon as it has ended."""
    left = ""
    for piece in pieces:
        *whole, left = END.split(left + piece)
        while len(left) > LONGEST and " " in left[:LONGEST]:
            at = left.rindex(" ", 0, LONGEST)
            whole, left = [*whole, left[:at]], left[at + 1 :]
        yield from (said.strip() for said in whole if said.strip())
    if left.strip():
        yield left.strip()


class Chat:
    """A conversation with a model; what it was not let finish, it is reminded of as far as it came."""

    def __init__(self, url: str, *, model: str, key: str = "", system: str = "") -> None:
        """Raises InputError for what is no address."""
        self._endpoint, self._model = Endpoint(url, key=key), model
        self._system = [{"role": "system", "content": system}] if system else []
        self.said: list[dict[str, str]] = []

    def reply(self, text: str) -> Iterator[str]:
        """The answer to a text, sentence by sentence; ends early after `cancel`.

        Raises:
          InputError: the service cannot be reached or answers with an error.
        """
        self.said.append({"role": "user", "content": text})
        answer: dict[str, str] = {"role": "assistant", "content": ""}
        body = {"model": self._model, "stream": True, "messages": [*self._system, *self.said[-KEPT:]]}
        try:
            for sentence in sentences(self._pieces(body)):
                answer["content"] = f"{answer['content']} {sentence}".strip()
                yield sentence
        finally:
            if answer["content"]:
                self.said.append(answer)
            else:
                self.said.pop()

    def _pieces(self, body: dict[str, Any]) -> Iterator[str]:
        for event in _events(self._endpoint.post("/chat/completions", body)):
            for choice in event.get("choices") or []:
                yield (choice.get("delta") or {}).get("content") or ""

    def cancel(self) -> None:
        """Stops the answer that is under way, from any thread."""
        self._endpoint.cancel()
