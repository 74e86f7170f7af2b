"""One request to an OpenAI-compatible service, read as it comes and stopped from another thread."""

import contextlib
import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from avatar_jax.io.errors import InputError

TIMEOUT_S, PIECE_BYTES = 30.0, 4096


class Endpoint:
    """A service by its base address, as in https://api.example.com/v1."""

    def __init__(self, url: str, *, key: str = "") -> None:
        """Raises InputError unless it is an http or https address.

        Args:
          url: the part before /chat/completions or /audio/speech.
          key: sent as a bearer token, never shown.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url}: is no address of a service; give one like https://api.example.com/v1")
        self._where, self._path, self._key = parts, parts.path.rstrip("/"), key
        self._open: http.client.HTTPConnection | None = None

    def _connect(self) -> http.client.HTTPConnection:
        secure = self._where.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(self._where.hostname or "", self._where.port, timeout=TIMEOUT_S)

    def post(self, path: str, body: Mapping[str, Any]) -> Iterator[bytes]:
        """The answer, piece by piece as it comes; ends early after `cancel`.

        Raises:
          InputError: no connection, or an answer that is an error.
        """
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        connection = self._open = self._connect()
        try:
            connection.connect()
            if self._open is not connection:  # cancelled while nothing could be closed yet
                return
            connection.request("POST", self._path + path, json.dumps(body).encode(), headers)
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                said = answer.read(300).decode("utf-8", "replace")
                raise InputError(f"{self._where.hostname}{self._path}{path}: answers {answer.status}: {said}")
            while piece := answer.read1(PIECE_BYTES):
                yield piece
        except (OSError, http.client.HTTPException, AttributeError) as error:  # the last: closed while it was read
            if self._open is connection:
                raise InputError(f"{self._where.hostname}: the service cannot be reached ({error})") from error
        finally:
            if self._open is connection:
                self._open = None
            connection.close()

    def cancel(self) -> None:
        """Stops the request that is under way, from any thread."""
        connection, self._open = self._open, None
        sock = connection and connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
