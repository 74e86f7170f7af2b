"""Voices, a model's answers and barge-in, against a local service."""

import importlib.util
import time
from collections.abc import Iterator

import numpy as np
import pytest

from avatar_jax.io.errors import InputError
from infer.talk import chat, conversation, voice
from tests.infer.talk.services import Service

WORDS = ["Good ", "morning. ", "How are", " you", "? ", "Fine"]
SAID = ["Good morning.", "How are you?", "Fine"]


class Counting:
    """A voice of one sample a word, slow enough to be interrupted."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s, self.texts, self.cancelled = delay_s, list[str](), 0

    def say(self, text: str) -> Iterator[np.ndarray]:
        """A piece a word."""
        self.texts.append(text)
        for _ in text.split():
            time.sleep(self.delay_s)
            yield np.ones(1, np.float32)

    def cancel(self) -> None:
        """Counts."""
        self.cancelled += 1

    def close(self) -> None:
        """Nothing is held."""


def test_a_service_speaks():
    with Service() as service:
        speaker = voice.Service(service.url, key="secret", model="m", voice="v")
        sound = np.concatenate(list(speaker.say("Hello")))
        path, headers, body = service.asked[0]
    assert (path, headers["Authorization"]) == ("/v1/audio/speech", "Bearer secret")
    assert body == {"model": "m", "voice": "v", "input": "Hello", "response_format": "pcm"}
    assert abs(sound.size - 16_000) <= 2 and sound.dtype == np.float32
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(8000 / 32768 / np.sqrt(2), rel=0.02)


def test_a_model_answers_sentence_by_sentence():
    with Service(WORDS) as service:
        model = chat.Chat(service.url, model="m", system="Be brief.")
        assert list(model.reply("Hi")) == SAID
        assert list(model.reply("And?")) == SAID
        asked = service.asked[1][2]
    assert asked["stream"] and [message["role"] for message in asked["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert asked["messages"][2]["content"] == " ".join(SAID)


def test_long_text_without_stops_is_cut_between_words():
    parts = list(chat.sentences(["word " * 200]))
    assert all(len(part) <= chat.LONGEST for part in parts)
    assert " ".join(parts).split() == ["word"] * 200


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://"])
def test_no_address(url: str):
    with pytest.raises(InputError, match="is no address of a service"):
        voice.Service(url)


def test_failures_are_one_line():
    with Service() as service, pytest.raises(InputError, match="answers 404"):
        list(voice.Service(service.url + "/nothing").say("x"))
    with pytest.raises(InputError, match="cannot be reached"):
        list(voice.Service(service.url).say("x"))  # it has gone


def test_texts_are_said_in_order_and_an_error_loses_one_alone():
    heard: list[np.ndarray] = []
    with Service() as gone:
        pass
    model, speaker = chat.Chat(gone.url, model="m"), Counting()
    with conversation.Conversation(speaker, heard.append, chat=model) as talk:
        talk.say("one two")
        talk.ask("anyone?")
        talk.say("three")
        assert talk.idle(10)
    assert speaker.texts == ["one two", "three"] and len(heard) == 3 and model.said == []


def test_cancel_empties_what_is_under_way():
    heard: list[float] = []
    with Service(["word. "] * 200, delay_s=0.01) as service:
        speaker, model = Counting(0.01), chat.Chat(service.url, model="m")
        with conversation.Conversation(speaker, lambda _: heard.append(time.monotonic()), chat=model) as talk:
            talk.ask("tell me")
            for _ in range(3):
                talk.say("later")
            while len(heard) < 3:
                time.sleep(0.005)
            talk.cancel()
            ended = time.monotonic()
            assert talk.idle(5)
            assert speaker.cancelled and "later" not in speaker.texts
            assert max(heard) <= ended
            talk.say("again")
            assert talk.idle(5) and speaker.texts[-1] == "again"
            assert 0 < len(model.said[-1]["content"].split()) < 200  # as far as it came


def test_cancel_stops_a_service_in_mid_sentence():
    with Service(delay_s=0.05) as service:
        speaker, pieces = voice.Service(service.url), 0
        for pieces, _ in enumerate(speaker.say("Hello"), 1):  # noqa: B007
            speaker.cancel()
        assert pieces <= 3


def test_too_many_texts_are_refused():
    with conversation.Conversation(Counting(0.2), lambda _: None) as talk:
        with pytest.raises(InputError, match="texts wait already"):
            for _ in range(conversation.WAITING + 2):
                talk.say("a b c")
        with pytest.raises(InputError, match="no model to answer"):
            talk.ask("?")


def test_the_bundled_voice():
    if importlib.util.find_spec("espeakng_loader") is None:
        with pytest.raises(InputError, match="pip install espeakng-loader"):
            voice.Espeak()
        return
    speaker = voice.Espeak()
    sound = np.concatenate(list(speaker.say("Good morning to everyone.")))
    assert 16_000 < sound.size < 5 * 16_000 and 0.01 < np.sqrt(np.mean(sound**2)) < 0.5
    pieces = 0
    for pieces, _ in enumerate(speaker.say("and so on " * 300), 1):  # noqa: B007
        speaker.cancel()
    assert pieces < 20
