"""The adapters, against stand-ins for the packages they adapt to."""

import asyncio
import sys
import types
from typing import Any

import numpy as np
import pytest

from examples import livekit_avatar, pipecat_avatar
from examples.speaking import Speaking
from tests.infer.fake_stream import Engine

HZ, HOP = 16_000, 640


def speaking() -> Speaking:
    return Speaking(
        Engine(), height=96, width=96, fps=25, audio_hz=HZ, stamp=lambda frames, first: frames + np.uint8(first)
    )


def pcm(seconds: float) -> bytes:
    return np.full(round(HZ * seconds), 8192, "<i2").tobytes()


def test_every_sample_comes_out_under_its_picture():
    portrait = speaking()
    shown = portrait.push(pcm(0.7), HZ) + portrait.finish()
    assert len(shown) == 24 and b"".join(sound for _, sound in shown).rstrip(b"\0") == pcm(0.7).rstrip(b"\0")
    assert [picture[0, 0, 0] for picture, _ in shown[:13:12]] == [63, 63 + 12]  # numbered without a gap
    with pytest.raises(ValueError, match="sound of 24000 Hz"):
        portrait.push(b"", 24_000)


def test_cancel_drops_what_was_being_drawn():
    portrait = speaking()
    draw = portrait._engine.push_audio

    def interrupted(*given: Any) -> Any:
        portrait.cancel()
        return draw(*given)

    portrait._engine.push_audio = interrupted  # type: ignore[method-assign]
    assert portrait.push(pcm(1), HZ) == []


class Frame:
    """Any frame of either package: keeps what it is given."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.given = given
        self.__dict__.update(named)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **holds: Any) -> Any:
    module = types.ModuleType(name)
    module.__dict__.update(holds)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_livekit(monkeypatch: pytest.MonkeyPatch):
    kinds = types.SimpleNamespace(RGB24=1)
    rtc = stand_in(monkeypatch, "livekit.rtc", VideoFrame=type("V", (Frame,), {}), AudioFrame=type("A", (Frame,), {}))
    rtc.VideoBufferType = kinds
    end = type("End", (), {})
    stand_in(monkeypatch, "livekit", rtc=rtc)
    for name in ("livekit.agents", "livekit.agents.voice"):
        stand_in(monkeypatch, name)
    stand_in(monkeypatch, "livekit.agents.voice.avatar", AudioSegmentEnd=end, VideoGenerator=object)

    async def call() -> list[Any]:
        generator = livekit_avatar.make_generator(speaking())
        for piece in (Frame(data=pcm(0.5), sample_rate=HZ), end()):
            await generator.push_audio(piece)
        got = generator._out.qsize()
        read = [await anext(generator.__aiter__()) for _ in range(3)]
        generator.clear_buffer()
        return [got, generator._out.qsize(), *read]

    got, left, *first = asyncio.run(call())
    assert (got, left) == (2 * 24 + 1, 0)
    assert [type(frame).__name__ for frame in first] == ["V", "A", "V"]
    assert first[0].given[:3] == (96, 96, 1) and len(first[0].given[3]) == 96 * 96 * 3 and first[1].given[3] == HOP


def test_pipecat(monkeypatch: pytest.MonkeyPatch):
    names = ("TTSAudioRawFrame", "OutputImageRawFrame", "InterruptionFrame", "TTSStoppedFrame", "TextFrame")
    frames: Any = types.SimpleNamespace(**{name: type(name, (Frame,), {}) for name in names})

    class Processor:
        """Keeps what is pushed."""

        async def process_frame(self, frame: Any, direction: Any) -> None:
            """Nothing of its own."""

        async def push_frame(self, frame: Any, direction: Any = None) -> None:
            """Keeps it."""
            self.__dict__.setdefault("pushed", []).append(type(frame).__name__)

    for name in ("pipecat", "pipecat.processors"):
        stand_in(monkeypatch, name)
    stand_in(monkeypatch, "pipecat.frames", frames=frames)
    stand_in(monkeypatch, "pipecat.processors.frame_processor", FrameProcessor=Processor)

    async def call() -> list[str]:
        service = pipecat_avatar.make_service(speaking())
        spoken = frames.TTSAudioRawFrame(audio=pcm(0.48), sample_rate=HZ)
        for frame in (frames.TextFrame(), spoken, frames.TTSStoppedFrame(), frames.InterruptionFrame()):
            await service.process_frame(frame, None)
        return service.pushed

    pushed = asyncio.run(call())
    assert pushed[0] == "TextFrame" and pushed[-2:] == ["TTSStoppedFrame", "InterruptionFrame"]
    assert pushed[1:-2] == ["OutputImageRawFrame", "TTSAudioRawFrame"] * 12
