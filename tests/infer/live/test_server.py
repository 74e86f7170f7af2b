"""The whole server over its routes, with a model that costs nothing."""

import asyncio
import base64
import io
import json
import re
from pathlib import Path

import aiohttp
import av
import numpy as np
import pytest
from PIL import Image

from infer.live.app import make_app
from infer.live.client import Answer, Client
from tests.infer.live.house import GALLERY, TOKEN, House, eventually, now, opened, pcm, voice

ROOT = Path(__file__).parents[3]


def run(test, *given, **house) -> None:
    """A test that wants a running house."""

    async def inside() -> None:
        async with opened(*given, **house) as one:
            await test(one)

    asyncio.run(asyncio.wait_for(inside(), 30.0))


async def look(socket: aiohttp.ClientWebSocketResponse, until) -> tuple[list[dict], bytes]:
    """Events and media until an event, or the end of the connection."""
    events, media = [], b""
    async for message in socket:
        if message.type == aiohttp.WSMsgType.BINARY:
            media += message.data
        else:
            events.append(json.loads(message.data))
            if until(events[-1]):
                break
    return events, media


def frames_of(media: bytes) -> list[float]:
    with av.open(io.BytesIO(media), "r") as file:
        return [float(frame.to_ndarray(format="gray").mean()) for frame in file.decode(video=0)]


def picture(size: tuple[int, int] = (40, 50)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_call_from_its_opening_to_its_recording(tmp_path):
    async def test(house: House) -> None:
        about = await house.open(record=True, portrait="light")
        own = f"/v1/sessions/{about['id']}"
        async with house.stream(about) as socket:
            status, said, _ = await house.ask(
                "POST", own + "/speech", about["token"], data=pcm(voice(0.96)), headers={"Content-Type": "audio/pcm"}
            )
            assert (status, said["seconds"]) == (200, 0.96)
            events, media = await look(socket, lambda event: event.get("frames", 0) >= said["frames"] + 50)
            assert {event["type"] for event in events} == {"state", "media"}
            greys = frames_of(media)
            spoken = sum(grey > 150 for grey in greys)  # of two blocks; a machine too slow skips to the live edge
            assert min(greys) == pytest.approx(90, abs=3) and spoken >= 12
            await socket.send_str('{"type": "end"}')
            events, _ = await look(socket, lambda event: event["type"] == "ended")
            assert events[-1]["record"]
        status, data, _ = await house.ask("GET", own + "/record.mp4", about["token"])
        assert status == 200 and len(frames_of(data)) >= 40
        assert (await house.ask("POST", own + "/interrupt", about["token"]))[0] == 410

    run(test, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in log] == ["opened", "ended", "disconnected"]
    assert log[0]["consent"] is True and log[1]["seconds"] > 1.5 and TOKEN not in str(log)


def test_the_client_opens_talks_and_fetches(tmp_path):
    async def test(house: House) -> None:
        (tmp_path / "face.png").write_bytes(picture())
        async with Client(house.url("/"), TOKEN) as client:
            with pytest.raises(Answer, match="422: consent"):
                await client.open(consent=False)
            call = await client.open(consent=True, portrait=tmp_path / "face.png", record=True)
            assert (call.audio_hz, call.fps) == (16000, 25)
            async with client.connect(call) as stream:
                await stream.talk(voice(0.02))
                await stream.say(voice(0.5))
                kinds = []
                async for event in stream:
                    kinds.append(event["type"])
                    if event.get("frames", 0) >= 10 and event["state"] == "live":
                        await stream.interrupt()
                        await stream.end()
                        break
                kinds += [event["type"] async for event in stream]
            assert {"state", "media", "data", "ended"} <= set(kinds)
            assert len(frames_of(await client.record(call))) >= 10

    run(test, tmp_path)


def test_an_interruption_empties_every_queue():
    async def test(house: House) -> None:
        about = await house.open()
        async with house.stream(about) as socket:
            house.desk.calls[about["id"]].say(voice(30.0))
            await look(socket, lambda event: event.get("frames", 0) >= 20)
            asked = now()
            await socket.send_str('{"type": "interrupt"}')
            await look(socket, lambda event: event["type"] == "flush")
            _, media = await look(socket, lambda event: event.get("frames", 0) >= 50)
            call = house.desk.calls[about["id"]]
            assert call.line.waiting_s == 0.0 and now() - asked < 5.0
            assert max(frames_of((call._encoder.init) + media)[1:]) < 40  # what was said is not shown any more

    run(test)


def test_a_portrait_may_change_while_the_call_goes_on():
    async def test(house: House) -> None:
        about = await house.open()
        own = f"/v1/sessions/{about['id']}"
        async with house.stream(about) as socket:
            _, first = await look(socket, lambda event: event.get("frames", 0) >= 4)
            sent = base64.b64encode(picture()).decode()
            status, said, _ = await house.ask("PATCH", own, about["token"], json={"portrait_base64": sent})
            assert status == 200 and re.fullmatch("[0-9a-f]{64}", said["portrait"])
            _, media = await look(socket, lambda event: event.get("frames", 0) >= said["frames"] + 50)
            assert frames_of(first + media)[-1] == pytest.approx(200, abs=3)

    run(test)


def test_a_lost_connection_takes_the_call_up_again():
    async def test(house: House) -> None:
        about = await house.open()
        async with house.stream(about) as socket:
            await look(socket, lambda event: event.get("frames", 0) >= 10)
        call = house.desk.calls[about["id"]]
        await eventually(lambda: call.parked)
        assert call.name in house.desk.active
        shown = call.pace.frames
        await asyncio.sleep(0.3)
        assert call.pace.frames == shown  # the seat pauses
        async with house.stream(about) as socket:
            _, media = await look(socket, lambda event: event.get("frames", 0) >= shown + 15)
            assert len(frames_of(media)) >= 12  # with a head of its own, from a key frame on

    run(test)


def test_seats_are_few_and_the_queue_keeps_its_order():
    async def test(house: House) -> None:
        first = await house.open()
        async with house.stream(first):
            second, third = await house.open(), await house.open()
            assert [one["state"] for one in (first, second, third)] == ["starting", "queued", "queued"]
            assert [second["position"], third["position"]] == [1, 2]
            status, about, headers = await house.ask("POST", "/v1/sessions", json={"consent": True})
            assert status == 503 and about["error"]["code"] == "busy" and int(headers["Retry-After"]) > 0
            status, about, _ = await house.ask("GET", "/readyz")
            assert status == 503 and about["reason"] == "no seat is free"
            async with house.stream(second) as socket:
                await house.ask("DELETE", f"/v1/sessions/{first['id']}", first["token"])
                await look(socket, lambda event: event.get("state") == "live")
        assert house.hall.most == 1
        await eventually(lambda: house.desk.calls[third["id"]].state == "live")  # the second has gone
        assert house.desk.calls[second["id"]].state == "parked"

    run(test, seats=1, queue=2)


def test_whoever_does_not_come_or_stays_silent_goes():
    async def test(house: House) -> None:
        never, silent = await house.open(), await house.open()
        async with house.stream(silent) as socket:
            await look(socket, lambda event: event["type"] == "ended")
        reasons = {one["id"]: house.desk.calls[one["id"]].reason for one in (never, silent)}
        assert reasons == {never["id"]: "nobody connected", silent["id"]: "no sound for 1 s"}
        await eventually(lambda: not house.desk.active and not house.hall.guests)

    run(test, connect_s=0.5, idle_s=1.0)


ROUTES = [
    ("GET", "/"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/v1/portraits"), ("GET", "/v1/portraits/dark"),
    ("POST", "/v1/sessions"), ("GET", "/v1/sessions/{id}"), ("PATCH", "/v1/sessions/{id}"),
    ("DELETE", "/v1/sessions/{id}"), ("POST", "/v1/sessions/{id}/token"), ("POST", "/v1/sessions/{id}/interrupt"),
    ("POST", "/v1/sessions/{id}/text"), ("POST", "/v1/sessions/{id}/speech"), ("GET", "/v1/sessions/{id}/record.mp4"),
    ("GET", "/v1/sessions/{id}/stream"), ("POST", "/v1/sessions/{id}/whep"), ("DELETE", "/v1/sessions/{id}/whep/any"),
    ("POST", "/v1/jobs"), ("PUT", "/v1/jobs/any/speech"), ("GET", "/v1/jobs/any"),
    ("GET", "/v1/jobs/any/result.mp4"), ("DELETE", "/v1/jobs/any"),
]  # fmt: skip


def in_words(path: str) -> str:
    """A path of ROUTES as the contract has it."""
    return path.replace("dark", "{name}").replace("whep/any", "whep/{peer}").replace("any", "{job}")


def test_nobody_comes_in_without_the_right_token():
    async def test(house: House) -> None:
        about, other = await house.open(), await house.open()
        assert (await house.ask("GET", "/healthz", None))[0] == 200
        known = {route.resource.canonical for route in house.server.app.router.routes() if route.resource}
        assert known == {in_words(path).replace("{id}", "{call}") for _, path in ROUTES} | {"/healthz", "/signin"}
        house.keys._ttl_s = -1.0
        expired, _ = house.keys.issue(about["id"])
        for method, path in ROUTES:
            own = "{id}" in path
            wrong = [None, "x" * 32, expired, other["token"]] + ([TOKEN] if own else [about["token"]])
            for token in wrong:
                status, said, _ = await house.ask(method, path.format(**about), token)
                assert status in (401, 403), (method, path, token)
                assert about["id"] not in str(said) and "seats" not in str(said)

    run(test)


def test_other_sites_are_kept_out_unless_they_are_named():
    async def test(house: House) -> None:
        for origin, allowed in (("https://evil.example", False), ("https://friend.example", True)):
            status, _, headers = await house.ask("GET", "/readyz", headers={"Origin": origin})
            assert (status == 200) == allowed and headers.get("Access-Control-Allow-Origin") == (
                origin if allowed else None
            )
        own = str(house.server.make_url("/")).rstrip("/")
        status, _, headers = await house.ask("GET", "/readyz", headers={"Origin": own})
        assert status == 200 and "Access-Control-Allow-Origin" not in headers

    run(test)


def test_the_page_comes_after_signing_in_and_carries_everything_itself():
    async def test(house: House) -> None:
        status, page, _ = await house.ask("GET", "/", None)
        assert status == 401 and b"Sign in" in page
        async with house.client.post(house.url("/signin"), data={"token": TOKEN}) as answer:
            page = await answer.text()
            assert answer.status == 200 and "Live avatar" in page
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"""(src|href)=["']https?:""", page) and "NONCE" not in page
        cookie = next(iter(house.client.cookie_jar))
        assert cookie["httponly"] and cookie["samesite"] == "Strict" and TOKEN not in cookie.value
        assert (await house.ask("GET", "/v1/portraits", None))[0] == 200

    run(test)


BAD = [
    ({}, "consent"),
    ({"consent": 1}, "consent"),
    ({"consent": True, "portrait": "nobody"}, "none of that name"),
    ({"consent": True, "portrait": ["dark"]}, "none of that name"),
    ({"consent": True, "portrait_base64": "§"}, "base64"),
    ({"consent": True, "portrait_base64": "AAAA"}, "portrait: is no PNG"),
    ({"consent": True, "prompt": "x"}, "reads no text"),
    ({"consent": True, "prompt": "x" * 2001}, "at most 2000"),
    ({"consent": True, "prompt": "a\u0000"}, "control"),
]


def test_bad_input_is_one_line_and_never_an_error_of_the_server():
    async def test(house: House) -> None:
        for asked, reason in BAD:
            status, about, _ = await house.ask("POST", "/v1/sessions", json=asked)
            assert status == 422 and reason in about["error"]["message"], asked
        for body in (b"", b"[1]", b"{", b"\xff", b"[" * 100_000):
            assert (await house.ask("POST", "/v1/sessions", data=body))[0] == 422
        about = await house.open()
        own = f"/v1/sessions/{about['id']}"
        for body in (b"", b"RIFF0000WAVE", b"\0" * 1000):
            assert (await house.ask("POST", own + "/speech", about["token"], data=body))[0] == 422
        assert (
            await house.ask("POST", own + "/speech", about["token"], data=b"\0", headers={"Content-Type": "audio/pcm"})
        )[0] == 422
        assert (await house.ask("PUT", own))[0] == 405
        assert (await house.ask("GET", "/v1/nothing"))[0] == 404

    run(test)


def test_a_connection_that_breaks_the_rules_is_closed_with_a_reason():
    async def test(house: House) -> None:
        about = await house.open()
        faults = [
            ("not json", 1003),
            ('{"type": "dance"}', 1003),
            (b"\0", 1003),
            (b"\0" * 60000, 1008),
            (b"\0" * 70000, 1009),
        ]
        for fault, code in faults:
            async with house.stream(about) as socket:
                for _ in range(5):
                    await (socket.send_str(fault) if isinstance(fault, str) else socket.send_bytes(fault))
                await look(socket, lambda event: False)
                assert socket.close_code == code, fault
        async with house.stream(about) as socket:
            await look(socket, lambda event: event.get("frames", 0) > 5)

    run(test)


def test_too_many_calls_or_uploads_a_minute_are_refused():
    async def test(house: House) -> None:
        found = [await house.ask("POST", "/v1/sessions", json={"consent": True}) for _ in range(4)]
        opened_: dict = found[0][1]
        assert [one[0] for one in found] == [201, 201, 201, 429] and int(found[-1][2]["Retry-After"]) >= 1

        own, token = f"/v1/sessions/{opened_['id']}", opened_["token"]
        pushed = {"data": pcm(voice(0.1)), "headers": {"Content-Type": "audio/pcm"}}
        assert [(await house.ask("POST", own + "/speech", token, **dict(pushed)))[0] for _ in range(3)] == [
            200,
            200,
            429,
        ]

    run(test, opened_a_minute=3.0, uploads_a_minute=2.0, queue=10)


def test_figures_for_prometheus():
    async def test(house: House) -> None:
        about = await house.open()
        async with house.stream(about) as socket:
            await look(socket, lambda event: event.get("frames", 0) > 5)
            _, text, _ = await house.ask("GET", "/metrics")
        assert b"avatar_active 1.0" in text and b"avatar_opened_total 1.0" in text
        assert re.search(rb"avatar_frames_total [1-9]", text)

    run(test)


def test_draining_takes_nobody_in_and_lets_everybody_end(tmp_path):
    async def test(house: House) -> None:
        about = await house.open(record=True)
        async with house.stream(about) as socket:
            await look(socket, lambda event: event.get("frames", 0) > 5)
            ending = asyncio.ensure_future(house.desk.drain(0.2))
            await asyncio.sleep(0.05)
            assert (await house.ask("GET", "/readyz"))[0] == 503
            assert (await house.ask("POST", "/v1/sessions", json={"consent": True}))[0] == 503
            events, _ = await look(socket, lambda event: event["type"] == "ended")
            assert events[-1]["record"] and "closing" in [event["type"] for event in events]
            await ending

    run(test, tmp_path)


def test_the_contract_names_every_route():
    text = (ROOT / "docs" / "api.md").read_text()
    for _, path in ROUTES:
        assert in_words(path) in text, path


def test_an_application_has_its_page():
    assert make_app and list(GALLERY.pictures) == ["dark", "light"]
