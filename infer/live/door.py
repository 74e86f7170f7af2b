"""The middleware before every route: origins, tokens, plain errors."""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from absl import logging
from aiohttp import web

from avatar_jax.io import guard
from infer.live.decode import Crowded
from infer.live.desk import RETRY_S, Busy, Desk
from infer.live.keys import Denied, Keys

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
COOKIE = "avatar"
OWNER = web.RequestKey("owner", str)  # who holds the door token of a request
OPEN = ("/healthz", "/signin")  # the second answers with a cookie only to a token
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """An answer other than 2xx, as JSON."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def answer(self) -> web.Response:
        """The response."""
        about = {"error": {"code": self.code, "message": self.message}}
        return web.json_response(about, status=self.status, headers=self.headers)


def bearer(request: web.Request) -> str | None:
    """The token of a request's header, or of the protocols that a browser's WebSocket offers."""
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
    return next((one.strip().removeprefix("token.") for one in offered if one.strip().startswith("token.")), None)


def check_origin(request: web.Request, allowed: tuple[str, ...]) -> str | None:
    """The foreign origin of a request if it is one of the allowed; Denied if it is not; None for the server's own."""
    origin = request.headers.get("Origin")
    if origin is None or urlsplit(origin).netloc == request.host:
        return None
    if origin in allowed:
        return origin
    raise Denied(403, "origin: not allowed here")


def make_middleware(keys: Keys, desk: Desk, origins: tuple[str, ...], sign_in: Callable[[], web.StreamResponse]) -> Any:
    """Checks who asks, then lets the route answer; `sign_in` makes the page of somebody without a token."""

    def authorise(request: web.Request) -> None:
        name = request.match_info.get("call")
        if request.path in OPEN:
            return
        if name is not None:
            keys.check(bearer(request), name)
            if name not in desk.calls:
                raise Refused(404, "gone", "session: not there any more")
            return
        token = bearer(request) or (request.query.get("token") if request.path == "/" else None)
        request[OWNER] = keys.owner(token) if token else keys.visitor(request.cookies.get(COOKIE))

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        foreign = None
        try:
            foreign = check_origin(request, origins)
            if request.method == "OPTIONS" and foreign:
                response: web.StreamResponse = web.Response(status=204)
            else:
                authorise(request)
                response = await handler(request)
        except Denied as error:
            desk.figures.denied.inc()
            desk.audit.note("denied", path=request.path, status=error.status, peer=request.remote)
            response = Refused(error.status, "denied", error.reason).answer()
            if request.path == "/" and error.status == 401:
                response = sign_in()
        except Refused as error:
            response = error.answer()
        except Busy as error:
            response = Refused(503, "busy", error.reason, **{"Retry-After": str(error.retry_s)}).answer()
        except Crowded as error:
            response = Refused(429, "busy", str(error), **{"Retry-After": str(RETRY_S)}).answer()
        except guard.Refused as error:
            response = Refused(413 if error.name == "too_large" else 422, error.name, str(error)).answer()
        except web.HTTPException as error:
            response = Refused(error.status, "http", error.reason).answer()
        except ValueError as error:  # bad input, found wherever it was looked at
            response = Refused(422, "input", str(error)).answer()
        except Exception:
            logging.exception("a request failed")
            response = Refused(500, "bug", "an error of the server's own; its log says more").answer()
        if not response.prepared:
            response.headers.update(SAFE)
            if foreign:
                response.headers.update(
                    {
                        "Access-Control-Allow-Origin": foreign,
                        "Access-Control-Allow-Headers": "Authorization, Content-Type",
                        "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
                        "Vary": "Origin",
                    }
                )
        return response

    return middleware
