"""A local service that speaks and answers as OpenAI's do: what it was asked is kept."""

import http.server
import json
import threading
import time
from typing import Any

import numpy as np

TONE = (8000 * np.sin(np.arange(24_000) / 9)).astype("<i2").tobytes()  # 1 s at 24 kHz


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers chunk by chunk; `server.delay_s` apart."""

    protocol_version = "HTTP/1.1"
    server: "Service"

    def log_message(self, *_: Any) -> None:
        """Keeps quiet."""

    def _chunks(self, kind: str, chunks: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in [*chunks, b""]:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
            time.sleep(self.server.delay_s)

    def do_POST(self) -> None:
        """Speech: a tone. Chat: `server.answer`, a word an event. Else 404."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        try:
            if self.path == "/v1/audio/speech":
                self._chunks("audio/pcm", [TONE[at : at + 4801] for at in range(0, len(TONE), 4801)])
            elif self.path == "/v1/chat/completions":
                words = [{"choices": [{"delta": {"content": word}}]} for word in self.server.answer]
                events = [f"data: {json.dumps(event)}\n\n".encode() for event in words]
                self._chunks("text/event-stream", [*events, b"data: [DONE]\n\n"])
            else:
                self.send_error(404)
        except (BrokenPipeError, ConnectionResetError):
            self.server.cut += 1


class Service(http.server.ThreadingHTTPServer):
    """Runs on a free port until it is left; a context manager."""

    daemon_threads = True

    def __init__(self, answer: list[str] | None = None, delay_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.answer, self.delay_s, self.cut = answer or [], delay_s, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "Service":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
