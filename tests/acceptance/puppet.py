"""A server in a process of its own with the model of `tests.infer.live.house`, for checks that end a process.

python -m tests.acceptance.puppet FOLDER [SEATS]: prints `ready: URL`, serves until SIGTERM.
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from infer import serve
from infer.live import app as apps
from infer.live.audit import Audit
from infer.live.call import Limits
from infer.live.desk import Desk
from infer.live.keys import Keys
from infer.live.stage import Stage
from infer.live.tongue import Talk
from tests.infer.live.house import GALLERY, TOKEN, Hall, Studio, voice


class Hum:
    """A voice that hums a quarter of a second a text."""

    def say(self, text: str) -> Iterator[np.ndarray]:
        """One piece."""
        yield voice(0.25)

    def cancel(self) -> None:
        """Nothing lasts."""

    def close(self) -> None:
        """Nothing is held."""


def main() -> None:
    """Serves."""
    folder, seats = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4
    flags.DEFINE_string("host", "127.0.0.1", "")
    flags.DEFINE_integer("port", 0, "")
    flags.DEFINE_float("drain_s", 20.0, "")
    flags.FLAGS(sys.argv[:1])
    desk = Desk(
        Studio(),
        Stage(Hall(seats, draw_s=0.05), beat_s=0.0),
        Limits(seats=seats, opened_a_minute=1e6, uploads_a_minute=1e6, idle_s=1e6, call_s=1e6),
        audit=Audit(folder / "audit.jsonl"),
        folder=folder / "recordings",
        talk=Talk(Hum),
    )
    asyncio.run(serve.serve(desk, apps.make_app(desk, Keys([TOKEN], ttl_s=600.0), GALLERY), TOKEN, None))


if __name__ == "__main__":
    main()
