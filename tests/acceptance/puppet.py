"""A server in a process of its own with the model of `tests.infer.live.house`, for checks that end a process.

python -m tests.acceptance.puppet FOLDER [SEATS]: prints `ready: URL`, serves until SIGTERM.
"""

import asyncio
import sys
from pathlib import Path

from absl import flags

from infer import serve
from infer.live import app as apps
from infer.live.audit import Audit
from infer.live.call import Limits
from infer.live.desk import Desk
from infer.live.keys import Keys
from infer.live.stage import Stage
from tests.infer.live.house import GALLERY, TOKEN, Hall, Studio


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
        Limits(seats=seats, opened_a_minute=1e6),
        audit=Audit(folder / "audit.jsonl"),
        folder=folder / "recordings",
    )
    asyncio.run(serve.serve(desk, apps.make_app(desk, Keys([TOKEN], ttl_s=600.0), GALLERY), TOKEN, None))


if __name__ == "__main__":
    main()
