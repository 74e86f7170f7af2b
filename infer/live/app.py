"""The routes. docs/api.md is their contract."""

import base64
import binascii
import functools
import hashlib
import secrets
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from aiohttp import web

from avatar_jax.io import guard
from avatar_jax.io.errors import InputError
from infer.live import decode, door, socket
from infer.live.body import BODY_S, JSON_BYTES, aside, check_text, read, read_json
from infer.live.call import Call, Look
from infer.live.desk import Busy, Desk
from infer.live.door import Refused
from infer.live.jobs import Job
from infer.live.keys import Buckets, Denied, Keys
from infer.live.studio import Gallery
from infer.live.whep import OFFER_BYTES, Peers

PAGES = Path(__file__).parent
TEXT_BYTES = 32768  # of JSON: 2,000 characters, each written as two escapes
CALL, JOB = "/v1/sessions/{call}", "/v1/jobs/{job}"


def _video(call: Call) -> web.StreamResponse:
    """A call's recording. Raises Refused (404)."""
    if call.record is None or not call.record.exists():
        reason = "is there when the session has ended" if call.state != "ended" else "none was made, or it is deleted"
        raise Refused(404, "record", f"recording: {reason}")
    return web.FileResponse(call.record, headers={"Content-Type": "video/mp4"})


class Routes:
    """What the server answers.

    Args:
      desk: all calls.
      keys: all tokens.
      gallery: the house's portraits.
    """

    def __init__(self, desk: Desk, keys: Keys, gallery: Gallery):
        self._desk, self._keys, self._gallery = desk, keys, gallery
        rate = desk.limits.opened_a_minute
        self._opened = Buckets(rate / 60, rate)
        self._peers = Peers(desk)
        self._page, self._sign_in = ((PAGES / name).read_text() for name in ("page.html", "sign_in.html"))

    def _call(self, request: web.Request) -> Call:
        return self._desk.calls[request.match_info["call"]]

    def _html(self, text: str, status: int) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}' blob:; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src 'self' blob: data:; media-src blob:; worker-src blob:; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy}
        return web.Response(
            text=text.replace("NONCE", nonce), status=status, content_type="text/html", charset="utf-8", headers=headers
        )

    def sign_in(self) -> web.Response:
        """What somebody without a token sees."""
        return self._html(self._sign_in, 401)

    def _welcome(self, owner: str) -> web.Response:
        cookie, _ = self._keys.issue(f"page-{owner}")
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(door.COOKIE, cookie, httponly=True, samesite="Strict", path="/")
        return response

    async def page(self, request: web.Request) -> web.Response:
        """GET /"""
        if "token" in request.query:  # out of the address line, into a cookie
            return self._welcome(request[door.OWNER])
        return self._html(self._page, 200)

    async def enter(self, request: web.Request) -> web.Response:
        """POST /signin"""
        form = urllib.parse.parse_qs((await read(request, 4096)).decode("utf-8", "replace"))
        token = form.get("token", [""])[0]
        try:
            return self._welcome(self._keys.owner(token))
        except Denied:
            return self.sign_in()

    async def healthz(self, request: web.Request) -> web.Response:
        """GET /healthz"""
        return web.json_response({"status": "alive"})

    async def readyz(self, request: web.Request) -> web.Response:
        """GET /readyz"""
        reason = self._desk.ready
        return web.json_response({"ready": not reason, "reason": reason}, status=503 if reason else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics"""
        return web.Response(body=self._desk.figures.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def portraits(self, request: web.Request) -> web.Response:
        """GET /v1/portraits"""
        form = self._desk.studio.form
        talk = self._desk.talk
        text = "none" if talk is None else "answered" if talk.chat else "said"
        about = {"audio_hz": form.audio_hz, "fps": form.fps, "block_ms": round(1e3 * form.block_s), "text": text}
        return web.json_response({"portraits": list(self._gallery.pictures), **about})

    async def portrait(self, request: web.Request) -> web.Response:
        """GET /v1/portraits/{name}"""
        found = self._gallery.png(request.match_info["name"])
        if found is None:
            raise Refused(404, "portrait", "portrait: none of that name")
        return web.Response(body=found, content_type="image/png")

    async def _look(self, asked: dict[str, Any], prompt: str | None) -> Look:
        named, data = asked.get("portrait"), asked.get("portrait_base64")
        if data is not None:
            try:
                image = await aside(functools.partial(base64.b64decode, validate=True), data)
            except (binascii.Error, ValueError, TypeError) as error:
                raise Refused(422, "portrait", "portrait_base64: is not base64") from error
            name = hashlib.sha256(image).hexdigest()
            return Look(name, await self._desk.portrait(image), prompt)
        name = named or next(iter(self._gallery.pictures))
        if not isinstance(name, str) or name not in self._gallery.pictures:
            raise Refused(422, "portrait", "portrait: none of that name; GET /v1/portraits lists them")
        return Look(name, self._gallery.pictures[name], prompt)

    def _agreed(self, asked: dict[str, Any], request: web.Request) -> str | None:
        """The prompt of what may begin: there is consent, and it is not too much for one token. Raises Refused."""
        if asked.get("consent") is not True:
            raise Refused(422, "consent", "consent: must be true; whoever is shown must have agreed")
        prompt = self._desk.studio.check_prompt(check_text(asked.get("prompt"), "prompt") or None)
        wait_s = self._opened.wait_s(request[door.OWNER], 1, self._desk.now())
        if wait_s:
            raise Refused(429, "rate", "sessions: too many a minute", **{"Retry-After": str(int(wait_s) + 1)})
        return prompt

    async def open(self, request: web.Request) -> web.Response:
        """POST /v1/sessions"""
        asked = await read_json(request)
        self._desk.check_room()  # before anything is decoded
        prompt = self._agreed(asked, request)
        look, push = await self._look(asked, prompt), self._push(asked.get("push"))
        call = self._desk.open(request[door.OWNER], look, keep=asked.get("record") is True)
        if push:
            self._desk.push(call, push)
        token, ends_s = self._keys.issue(call.name)
        path = f"/v1/sessions/{call.name}"
        about = {**call.status(), "token": token, "expires": int(ends_s), "stream": f"{path}/stream"}
        return web.json_response(about, status=201, headers={"Location": path})

    def _push(self, name: Any) -> str:
        """The name of a target of the operator's; "": none is asked for. Raises Refused."""
        if not name:
            return ""
        if not isinstance(name, str) or name not in self._desk.pushes:
            raise Refused(422, "push", "push: none of that name; the server's operator names them with --push")
        if any(call.push == name and call.state != "ended" for call in self._desk.calls.values()):
            raise Refused(409, "push", f"push: another session goes to {name}")
        return name

    async def status(self, request: web.Request) -> web.Response:
        """GET /v1/sessions/{call}"""
        call = self._call(request)
        if call.viewer is None and call.state == "queued":
            call.contact_s = max(call.contact_s, self._desk.now())  # asking is coming
        return web.json_response(call.status())

    async def change(self, request: web.Request) -> web.Response:
        """PATCH /v1/sessions/{call}"""
        call = self._uploading(request)
        async with call.uploading:
            asked = await read_json(request)
            said = check_text(asked.get("prompt", call.look.prompt), "prompt")
            prompt = self._desk.studio.check_prompt(said or None)
            if "portrait" in asked or "portrait_base64" in asked:
                look = await self._look(asked, prompt)
            else:
                look = Look(call.look.name, call.look.portrait, prompt)
            await self._desk.change(call, look)
        return web.json_response(call.status())

    async def close(self, request: web.Request) -> web.Response:
        """DELETE /v1/sessions/{call}"""
        call = self._call(request)
        await self._desk.end(call, "the caller has ended it")
        return web.json_response(call.status())

    async def renew(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{call}/token"""
        token, ends_s = self._keys.issue(self._live(request).name)
        return web.json_response({"token": token, "expires": int(ends_s)})

    def _live(self, request: web.Request) -> Call:
        call = self._call(request)
        if call.state == "ended":
            raise Refused(410, "over", f"session: is over, {call.reason}")
        return call

    def _uploading(self, request: web.Request) -> Call:
        call = self._live(request)
        wait_s = call.uploads.wait_s(1, self._desk.now())
        if wait_s:
            raise Refused(429, "rate", "uploads: too many a minute", **{"Retry-After": str(int(wait_s) + 1)})
        return call

    async def interrupt(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{call}/interrupt"""
        call = self._live(request)
        call.interrupt()
        return web.json_response(call.status())

    async def _samples(self, request: web.Request) -> np.ndarray:
        data = await read(request, guard.SOUND_BYTES)
        if request.content_type == "audio/pcm":
            return await aside(decode.pcm16, data)
        return await self._desk.sound(data)

    async def speech(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{call}/speech"""
        call = self._uploading(request)
        async with call.uploading:
            samples = await self._samples(request)
            call.say(samples)
        return web.json_response({**call.status(), "seconds": round(samples.size / call.form.audio_hz, 3)})

    async def text(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{call}/text"""
        call = self._uploading(request)
        if not call.speaks:
            raise Refused(501, "voice", "text: this server has no voice; start it with --voice")
        said = check_text((await read_json(request, TEXT_BYTES)).get("text"), "text")
        if not said:
            raise Refused(422, "text", "text: is missing; give what is to be said")
        try:
            self._live(request).type(said)  # it may have ended meanwhile
        except InputError as error:
            raise Refused(429, "busy", f"text: {error}", **{"Retry-After": "5"}) from error
        return web.json_response(call.status())

    async def record(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/sessions/{call}/record.mp4"""
        return _video(self._call(request))

    def _job(self, request: web.Request) -> Job:
        job = self._desk.jobs.all.get(request.match_info["job"])
        if job is None:
            raise Refused(404, "gone", "job: not there any more")
        if job.owner != request[door.OWNER]:
            raise Denied(403, "job: of another caller")
        return job

    async def order(self, request: web.Request) -> web.Response:
        """POST /v1/jobs"""
        if not self._desk.keeps:
            raise Refused(501, "jobs", "jobs: this server keeps no recordings; start it with --workdir")
        asked = await read_json(request)
        prompt = self._agreed(asked, request)
        text = check_text(asked.get("text"), "text")
        if text and self._desk.talk is None:
            raise Refused(501, "voice", "text: this server has no voice; start it with --voice")
        if self._desk.jobs.full or self._desk.draining:
            raise Busy("jobs: too many wait")
        look = await self._look(asked, prompt)
        samples = await self._spoken(text) if text else None
        job = self._desk.jobs.open(request[door.OWNER], look)
        if samples is not None:
            self._desk.jobs.hear(job, samples)
        return web.json_response(job.status(), status=201, headers={"Location": f"/v1/jobs/{job.name}"})

    async def _spoken(self, text: str) -> np.ndarray:
        try:
            samples = await self._desk.spoken(text)
        except guard.Refused:
            raise
        except InputError as error:  # what a service says is not the caller's
            logging.warning("a text could not be said: %s", error)
            raise Refused(502, "voice", "text: could not be said; the server's log says why") from error
        if not samples.size:
            raise Refused(422, "empty", "text: has nothing that can be said")
        return samples

    async def job_speech(self, request: web.Request) -> web.Response:
        """PUT /v1/jobs/{job}/speech"""
        job = self._job(request)
        job.due_s = max(job.due_s, self._desk.now() + BODY_S)  # it is coming
        samples = await self._samples(request)
        if job.state != "open":
            raise Refused(409, "state", f"job: is {job.state} and takes no speech")
        if not samples.size:
            raise Refused(422, "empty", "speech: holds no sound")
        self._desk.jobs.hear(job, samples)
        return web.json_response(job.status())

    async def job_status(self, request: web.Request) -> web.Response:
        """GET /v1/jobs/{job}"""
        return web.json_response(self._job(request).status())

    async def job_result(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/jobs/{job}/result.mp4"""
        job = self._job(request)
        if job.state != "done" or job.call is None:
            raise Refused(404, "record", f"result: is not there, the job is {job.state}")
        return _video(job.call)

    async def job_end(self, request: web.Request) -> web.Response:
        """DELETE /v1/jobs/{job}"""
        job = self._job(request)
        await self._desk.jobs.end(job, "deleted")
        return web.json_response(job.status())

    async def whep(self, request: web.Request) -> web.Response:
        """POST /v1/sessions/{call}/whep"""
        call = self._uploading(request)
        if request.content_type != "application/sdp":
            raise Refused(415, "sdp", "offer: must come as application/sdp")
        offer = (await read(request, OFFER_BYTES)).decode("utf-8", "replace")
        peer, answer = await self._peers.open(self._live(request), offer)
        where = {"Location": f"/v1/sessions/{call.name}/whep/{peer}"}
        return web.Response(text=answer, status=201, content_type="application/sdp", headers=where)

    async def unwhep(self, request: web.Request) -> web.Response:
        """DELETE /v1/sessions/{call}/whep/{peer}"""
        self._peers.close(self._call(request), request.match_info["peer"])
        return web.Response()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/sessions/{call}/stream"""
        return await socket.serve(request, self._desk, self._call(request))


def make_app(desk: Desk, keys: Keys, gallery: Gallery, *, origins: tuple[str, ...] = ()) -> web.Application:
    """The application; its start and end are the desk's."""
    routes = Routes(desk, keys, gallery)
    app = web.Application(
        middlewares=[door.make_middleware(keys, desk, origins, routes.sign_in)], client_max_size=JSON_BYTES
    )
    app.router.add_get("/", routes.page)
    app.router.add_post("/signin", routes.enter)
    for path in ("healthz", "readyz", "metrics"):
        app.router.add_get(f"/{path}", getattr(routes, path))
    app.router.add_get("/v1/portraits", routes.portraits)
    app.router.add_get("/v1/portraits/{name}", routes.portrait)
    app.router.add_post("/v1/sessions", routes.open)
    app.router.add_post("/v1/jobs", routes.order)
    app.router.add_put(f"{JOB}/speech", routes.job_speech)
    app.router.add_get(JOB, routes.job_status)
    app.router.add_get(f"{JOB}/result.mp4", routes.job_result)
    app.router.add_delete(JOB, routes.job_end)
    app.router.add_get(CALL, routes.status)
    app.router.add_patch(CALL, routes.change)
    app.router.add_delete(CALL, routes.close)
    app.router.add_post(f"{CALL}/token", routes.renew)
    app.router.add_post(f"{CALL}/interrupt", routes.interrupt)
    app.router.add_post(f"{CALL}/speech", routes.speech)
    app.router.add_post(f"{CALL}/text", routes.text)
    app.router.add_get(f"{CALL}/record.mp4", routes.record)
    app.router.add_get(f"{CALL}/stream", routes.stream)
    app.router.add_post(f"{CALL}/whep", routes.whep)
    app.router.add_delete(f"{CALL}/whep/{{peer}}", routes.unwhep)
    return app
