"""What happened, for whoever has to answer for it: a line of JSON an event, never sound, pictures or text."""

import json
import threading
import time
from pathlib import Path
from typing import Any


class Audit:
    """An append-only log; None: nothing is kept."""

    def __init__(self, path: Path | None):
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8") if path else None

    def note(self, event: str, **about: Any) -> None:
        """Writes an event with its time."""
        if self._file is None:
            return
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, **about})
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Ends the log."""
        if self._file:
            self._file.close()
