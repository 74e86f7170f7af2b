"""What a call's pictures and recordings say of themselves: the mark in the pixels, the badge, the credential."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags

from avatar_jax.io import credential, watermark
from avatar_jax.io.errors import InputError
from infer import detect, provenance
from infer.live import record
from infer.live.encode import shown_size
from tests.infer.live.house import FORM, House, eventually, opened
from tests.infer.live.test_server import look

SIZE = shown_size(FORM.height, FORM.width)


@pytest.fixture
def flagged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The flags of provenance, as somebody sets them."""
    values = flags.FlagValues()
    with monkeypatch.context() as patched:
        patched.setattr(flags, "FLAGS", values)
        for name in ("DEFINE_enum", "DEFINE_integer", "DEFINE_bool", "DEFINE_string"):
            define = getattr(flags, name)
            patched.setattr(
                flags, name, lambda *given, _define=define, **more: _define(*given, flag_values=values, **more)
            )
        provenance.define()
    monkeypatch.setattr(provenance, "FLAGS", values)
    yield lambda *said: values(["test", *said])


def recorded(folder: Path, frames: int, **desk_has: Any) -> Path:
    """The recording of a call of so many frames."""

    async def test(house: House) -> Path:
        about = await house.open(record=True)
        async with house.stream(about) as socket:
            await look(socket, lambda event: event.get("frames", 0) >= frames)
            await socket.send_str('{"type": "end"}')
            await look(socket, lambda event: event["type"] == "ended")
        call = house.desk.calls[about["id"]]
        await eventually(lambda: call.record)
        assert call.record
        return call.record

    async def inside() -> Path:
        async with opened(folder, desk_has=desk_has) as house:
            return await test(house)

    return asyncio.run(asyncio.wait_for(inside(), 60.0))


def last_line(folder: Path, event: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event][-1]


def test_a_call_is_marked_and_its_recording_signed(tmp_path: Path, flagged: Any):
    flagged("--watermark_id=7")
    chain, key = credential.make_chain(tmp_path / "own") if credential.available() else (None, None)
    if chain:
        flagged("--watermark_id=7", f"--c2pa_chain={chain}", f"--c2pa_key={key}")
    path = recorded(tmp_path, 60, retouch=provenance.make_retouch(*SIZE), sign=provenance.sign)
    found = detect.read(path, watermark.PUBLIC_KEY)
    assert found.marked and found.payload == 7
    ended = last_line(tmp_path, "ended")
    assert ended["watermark"] == "00000007" and ended["badge"] is False
    if chain:
        said = credential.verify(path)
        assert said and said["state"] == "Valid" and ended["c2pa"] == str(chain)
        assert said["about"] == {"watermark": "00000007"}


def test_off_is_said_and_nothing_is_changed(flagged: Any, capsys: pytest.CaptureFixture):
    flagged("--watermark=off")
    assert provenance.make_retouch(*SIZE)("call") is None
    assert "--watermark=off: nothing in the pixels" in capsys.readouterr().err
    assert provenance.summary() == {"watermark": "off", "badge": False}


def test_the_badge_is_put_on_every_frame(flagged: Any):
    flagged("--watermark=off", "--badge")
    retouch = provenance.make_retouch(*SIZE)("call")
    assert retouch
    frame = np.full((*SIZE, 3), 100, np.uint8)
    shown = retouch(frame, 3)
    assert shown.shape == frame.shape and shown[-20:, :100].max() > 180 and (shown[:300] == 100).all()
    with pytest.raises(ValueError, match="too small"):
        provenance.make_retouch(6, 6)


def test_calls_do_not_share_what_they_hold(flagged: Any):
    flagged()
    retouch_of, frame = provenance.make_retouch(*SIZE), np.full((*SIZE, 3), 100, np.uint8)
    one, two = retouch_of("one"), retouch_of("two")
    assert one and two
    first = one(frame, 0)
    two(frame, 500)
    np.testing.assert_array_equal(one(frame, 1), first)  # of the same group
    assert (two(frame, 500) != first).any()


def test_a_recording_that_cannot_be_signed_is_kept(tmp_path: Path):
    def refuse(path: Path) -> dict[str, Any]:
        raise InputError(f"{path}: cannot be signed")

    path = recorded(tmp_path, 12, sign=refuse)
    assert path.stat().st_size > 1000 and last_line(tmp_path, "ended")["c2pa"] == "failed"
    live = path.with_name("cut.live.mp4")
    live.write_bytes(path.read_bytes())
    assert record.mend(path.parent, refuse) == [path.with_name("cut.mp4")] and path.with_name("cut.mp4").exists()
