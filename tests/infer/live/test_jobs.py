"""Offline jobs: a video of a recording or a text, made when nobody live wants the seat."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from infer.live.client import Answer, Client
from infer.live.tongue import Talk
from tests.infer.live.house import FORM, TOKEN, House, eventually, opened, pcm, voice
from tests.infer.live.test_server import frames_of, look, picture
from tests.infer.live.test_text import Tone
from tests.io.sounds import write_recording

PCM = {"Content-Type": "audio/pcm"}


def run(test: Any, folder: Path | None, **given: Any) -> None:
    """A test of a house that keeps recordings."""

    async def inside() -> None:
        async with opened(folder, desk_has={"talk": Talk(Tone)}, **given) as house:
            await test(house)

    asyncio.run(asyncio.wait_for(inside(), 60.0))


async def order(house: House, **asked: Any) -> tuple[int, dict]:
    return (await house.ask("POST", "/v1/jobs", json={"consent": True, **asked}))[:2]


async def speak(house: House, job: dict, seconds: float, token: str = TOKEN) -> tuple[int, dict]:
    about = {"data": pcm(voice(seconds)), "headers": dict(PCM)}
    return (await house.ask("PUT", f"/v1/jobs/{job['id']}/speech", token, **about))[:2]


def test_a_recording_becomes_a_whole_video(tmp_path: Path):
    sound = write_recording(tmp_path, "speech.flac", 1.0)
    (tmp_path / "face.png").write_bytes(picture())

    async def test(house: House) -> None:
        async with Client(house.url("/"), TOKEN) as client:
            made = await client.make(consent=True, speech=sound, portrait=tmp_path / "face.png")
            greys = frames_of(made)
            assert 25 <= len(greys) <= 25 + 2 * FORM.block_frames and greys[0] > 190  # from its first frame on
            made = await client.make(consent=True, text="one two three four", portrait="dark")
            greys = frames_of(made)
            assert len(greys) >= 25 and sum(grey > 100 for grey in greys[:25]) >= 23
            with pytest.raises(Answer, match="422: consent"):
                await client.make(consent=False, text="no")
        assert not house.desk.active and not house.hall.guests

    run(test, tmp_path)


def test_a_job_waits_for_a_seat_that_nobody_live_wants(tmp_path: Path):
    async def test(house: House) -> None:
        about = await house.open()
        async with house.stream(about) as socket:
            await look(socket, lambda event: event.get("frames", 0) >= 5)
            job = (await order(house))[1]
            assert job["state"] == "open"
            assert (await speak(house, job, 0.5))[1]["state"] == "queued"
            assert (await speak(house, job, 0.5))[0] == 409
            await asyncio.sleep(0.3)
            own = f"/v1/jobs/{job['id']}"
            assert (await house.ask("GET", own))[1]["state"] == "queued"
            assert (await house.ask("GET", own + "/result.mp4"))[0] == 404
            assert (await order(house, text="a b"))[0] == 201 and (await order(house, text="a b"))[0] == 503
            await socket.send_str('{"type": "end"}')
            await look(socket, lambda event: event["type"] == "ended")
        await eventually(lambda: all(one.over for one in house.desk.jobs.all.values()))
        assert {one.state for one in house.desk.jobs.all.values()} == {"done"} and house.hall.most == 1
        done = house.desk.jobs.all[job["id"]]
        assert done.status()["frames"] == done.status()["of_frames"] == 13
        assert done.call and done.call.record and done.call.record.exists()
        assert (await house.ask("DELETE", own))[1]["reason"] == "deleted" and not done.call.record.exists()
        assert (await house.ask("GET", own + "/result.mp4"))[0] == 404

    run(test, tmp_path, seats=1, jobs=2)


def test_jobs_that_end_early(tmp_path: Path):
    async def test(house: House) -> None:
        long, never = (await order(house))[1], (await order(house))[1]
        assert (await speak(house, long, 30.0))[0] == 200
        running = house.desk.jobs.all[long["id"]]
        await eventually(lambda: running.call and running.call.pace.frames > 5)
        assert (await house.ask("DELETE", f"/v1/jobs/{long['id']}"))[1]["state"] == "failed"
        assert not list((tmp_path / "recordings").glob("*")) and not house.desk.active
        await eventually(lambda: house.desk.jobs.all[never["id"]].over)
        assert house.desk.jobs.all[never["id"]].reason == "no speech came"

    run(test, tmp_path, connect_s=1.0)


def test_what_is_refused(tmp_path: Path):
    async def test(house: House) -> None:
        job = (await order(house))[1]
        own = f"/v1/jobs/{job['id']}"
        assert (await house.ask("PUT", own + "/speech", data=b"no sound"))[0] == 422
        assert (await house.ask("PUT", own + "/speech", data=b"", headers=dict(PCM)))[0] == 422
        assert (await order(house, text="x" * 2001))[0] == 422
        status, said = await order(house, text="unspeakable")
        assert status == 502 and "401" not in str(said)
        house.desk.jobs.all[job["id"]].owner = "somebody else"
        for method, path in (("GET", own), ("DELETE", own), ("GET", own + "/result.mp4"), ("PUT", own + "/speech")):
            assert (await house.ask(method, path))[0] == 403
        assert (await house.ask("GET", "/v1/jobs/none"))[0] == 404

    run(test, tmp_path)


def test_without_a_folder_there_are_none():
    async def test(house: House) -> None:
        assert (await order(house))[0] == 501

    run(test, None)
