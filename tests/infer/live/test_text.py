"""Typed text: said by a voice, answered by a model, cut off by an interruption, refused where it cannot be said."""

import asyncio
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from avatar_jax.io.errors import InputError
from infer import serve, voices
from infer.live.client import Answer, Client
from infer.live.tongue import AHEAD_S, Talk
from infer.talk.chat import Chat
from tests.infer.live.house import TOKEN, House, eventually, opened, voice
from tests.infer.live.test_server import frames_of, look
from tests.infer.talk.services import Service

WORD_S = 0.25


class Tone:
    """A voice: a tone a word."""

    def __init__(self) -> None:
        self.texts, self.cancelled, self.closed = list[str](), 0, 0

    def say(self, text: str) -> Iterator[np.ndarray]:
        """A piece a word."""
        if text == "unspeakable":
            raise InputError("the service answers 401: key of nobody")
        self.texts.append(text)
        for _ in text.split():
            yield voice(WORD_S)

    def cancel(self) -> None:
        """Counts."""
        self.cancelled += 1

    def close(self) -> None:
        """Counts."""
        self.closed += 1


def run(test: Any, tone: Tone | None = None, chat: Any = None, **given: Any) -> None:
    """A test of a house with a voice."""

    async def inside() -> None:
        talk = Talk(lambda one=tone: one, chat) if tone else None
        async with opened(desk_has={"talk": talk}, **given) as house:
            await test(house)

    asyncio.run(asyncio.wait_for(inside(), 60.0))
    assert not [thread for thread in threading.enumerate() if thread.name == "talk"]
    assert tone is None or tone.closed <= 1


async def typed(house: House, about: dict, text: Any) -> tuple[int, dict]:
    """Status and answer."""
    return (await house.ask("POST", f"/v1/sessions/{about['id']}/text", about["token"], json={"text": text}))[:2]


def test_text_is_said():
    tone = Tone()

    async def test(house: House) -> None:
        about = await house.open(portrait="light")
        assert (await house.ask("GET", "/v1/portraits"))[1]["text"] == "said"
        async with house.stream(about) as socket:
            await look(socket, lambda event: event.get("frames", 0) >= 5)
            status, said = await typed(house, about, " one two\u00a0three four ")
            assert status == 200
            _, media = await look(socket, lambda event: event.get("frames", 0) >= said["frames"] + 60)
            call = house.desk.calls[about["id"]]
            assert sum(grey > 150 for grey in frames_of(call._encoder.init + media)) >= 12
        assert tone.texts == ["one two\u00a0three four"]

    run(test, tone)


def test_a_long_text_waits_in_the_voice_and_an_interruption_ends_it():
    tone = Tone()

    async def test(house: House) -> None:
        about = await house.open()
        call = house.desk.calls[about["id"]]
        async with house.stream(about) as socket:
            assert (await typed(house, about, "word " * 300))[0] == 200
            assert (await typed(house, about, "later"))[0] == 200
            await eventually(lambda: call.line.waiting_s > AHEAD_S)
            await asyncio.sleep(0.2)
            assert call.line.waiting_s <= AHEAD_S + 2 * WORD_S
            await socket.send_str('{"type": "interrupt"}')
            await look(socket, lambda event: event["type"] == "flush")
            await asyncio.sleep(0.3)
            assert call.line.waiting_s == 0.0 and tone.cancelled == 1 and "later" not in tone.texts
            assert (await typed(house, about, "again"))[0] == 200
            await eventually(lambda: tone.texts[-1] == "again")

    run(test, tone)


def test_a_model_answers_sentence_by_sentence():
    tone = Tone()
    with Service(["Good ", "day. ", "How are", " you?"]) as service:

        async def test(house: House) -> None:
            assert (await house.ask("GET", "/v1/portraits"))[1]["text"] == "answered"
            about = await house.open()
            assert (await typed(house, about, "Hello"))[0] == 200
            await eventually(lambda: len(tone.texts) == 2)

        run(test, tone, lambda: Chat(service.url, model="m"))
        asked = service.asked[0][2]["messages"]
    assert tone.texts == ["Good day.", "How are you?"] and asked[-1] == {"role": "user", "content": "Hello"}


def test_what_cannot_be_said_is_told_without_the_services_words():
    async def test(house: House) -> None:
        about = await house.open()
        async with house.stream(about) as socket:
            assert (await typed(house, about, "unspeakable"))[0] == 200
            events, _ = await look(socket, lambda event: event["type"] == "voice")
            assert "401" not in str(events)
            assert (await typed(house, about, "this goes"))[0] == 200

    run(test, Tone())


BAD = [
    ("a" * 2001, "at most 2000"),
    ("", "is missing"),
    (" \n", "is missing"),
    (None, "is missing"),
    (7, "must be text"),
    (["a"], "must be text"),
    ("bell\x07", "control characters"),
]


def test_bad_text_is_refused_in_a_line():
    async def test(house: House) -> None:
        about = await house.open()
        for text, reason in BAD:
            status, said = await typed(house, about, text)
            assert status == 422 and reason in said["error"]["message"], said
        own = f"/v1/sessions/{about['id']}"
        for data, status in ((b"[]", 422), (b"{", 422), (b" " * 40_000, 413)):
            assert (await house.ask("POST", own + "/text", about["token"], data=data))[0] == status
        found = [(await typed(house, about, "word " * 100))[0] for _ in range(12)]
        assert set(found) == {200, 429} and found[:8] == [200] * 8
        await house.ask("DELETE", own, about["token"])
        assert (await typed(house, about, "late"))[0] == 410

    run(test, Tone())


def test_without_a_voice_nothing_is_said():
    async def test(house: House) -> None:
        async with Client(house.url("/"), TOKEN) as client:
            call = await client.open(consent=True)
            async with client.connect(call) as stream:
                with pytest.raises(Answer, match="501: text: this server has no voice"):
                    await stream.type("Hello")
        assert (await house.ask("GET", "/v1/portraits"))[1]["text"] == "none"

    run(test)


def test_somebody_who_listens_to_a_long_speech_is_not_idle():
    async def test(house: House) -> None:
        about = await house.open()
        async with house.stream(about):
            call = house.desk.calls[about["id"]]
            call.say(voice(30.0))
            began = time.monotonic()
            await eventually(lambda: call.state == "live" or call.state == "ended")
            while time.monotonic() < began + 1.5:
                await asyncio.sleep(0.1)
            assert call.state == "live"
            call.interrupt()
            await eventually(lambda: call.state == "ended")
            assert call.reason == "no sound for 0 s"

    run(test, idle_s=0.4)


def flagged(monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    said = {"voice": "auto", "speaker": None, "speech_model": "m", "chat": None, "chat_model": None, "system": ""}
    for module in (voices, serve):
        monkeypatch.setattr(module, "FLAGS", types.SimpleNamespace(**{**said, **given}))


def test_what_speaks_is_found_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(voices.voice, "installed", lambda: False)
    flagged(monkeypatch)
    assert serve.check_voice(16_000) is None
    for given, reason in (
        ({"voice": "espeak"}, "is not installed"),
        ({"voice": "nonsense"}, "is no address of a service"),
        ({"chat": "http://localhost:1/v1"}, "--chat_model is missing"),
        ({"chat": "http://localhost:1/v1", "chat_model": "m"}, "nothing would say the answers"),
    ):
        flagged(monkeypatch, **given)
        with pytest.raises(InputError, match=reason):
            serve.check_voice(16_000)
    flagged(monkeypatch, voice="http://localhost:1/v1", chat="http://localhost:1/v1", chat_model="m")
    talk = serve.check_voice(16_000)
    assert talk and talk.chat and talk.chat() is not talk.chat() and talk.voice() is not talk.voice()
    with pytest.raises(InputError, match="16000 Hz and the model hears 8000"):
        serve.check_voice(8_000)
    flagged(monkeypatch, voice="off")
    assert serve.check_voice(8_000) is None
