"""Does this installation work? `python -m infer.doctor`: one line a check, exit code 2 when one fails.

Heavy imports stand inside the checks, so that a package that cannot be imported is a line too.
"""

import importlib.metadata
import io
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from absl import app

from avatar_jax.core.platform import configure_platform, detect_device

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "librosa", "av", "numpy")
DISK_GB = 2.0


def check_versions() -> str:
    """Python and the packages whose versions matter in a bug report."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found])


def check_machine() -> str:
    """What the machine itself offers, before JAX is asked."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, wants DEVICE={detect_device()}"


def make_probe() -> Callable:
    """The smallest program worth compiling: the sum of a product."""
    import jax

    return jax.jit(lambda x: (x @ x.T).sum())


def check_jax() -> str:
    """What JAX found, and one compiled matrix product of known value."""
    note = configure_platform()
    import jax
    import jax.numpy as jnp

    devices = jax.devices()
    started = time.perf_counter()
    total = float(make_probe()(jnp.ones((64, 64))))
    if total != 64.0**3:
        raise RuntimeError(f"a product of ones gave {total}, not {64**3}")
    seconds = time.perf_counter() - started
    line = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), a program in {seconds:.2f} s"
    return f"{line}; {note}" if note else line


def check_codecs() -> str:
    """The encoders of every format we write, inside the PyAV wheel."""
    import av

    from avatar_jax.io.video import CODECS

    wanted = sorted({*CODECS, *(sound for sound, _ in CODECS.values())})
    missing = [name for name in wanted if name not in av.codecs_available]
    if missing:
        raise RuntimeError(f"PyAV lacks {', '.join(missing)}")
    return ", ".join(wanted)


def check_mp4() -> str:
    """Write one second of H.264 into memory and read it back."""
    import av
    import numpy as np

    file, video_frames = io.BytesIO(), 25
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for index in range(video_frames):
            frame = av.VideoFrame.from_ndarray(np.full((96, 96, 3), index * 10, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    size, _ = file.tell(), file.seek(0)
    with av.open(file, "r") as container:
        decoded = sum(1 for _ in container.decode(video=0))
    if decoded != video_frames:
        raise RuntimeError(f"wrote {video_frames} frames, read {decoded}")
    return f"{video_frames} frames, {size} bytes, read back"


def check_disk() -> str:
    """Room for videos and compiled programs in the working folder."""
    free_gb = shutil.disk_usage(".").free / 1e9
    if free_gb < DISK_GB:
        raise RuntimeError(f"{free_gb:.1f} GB free here, {DISK_GB:.0f} GB wanted")
    return f"{free_gb:.0f} GB free here"


CHECKS = (check_versions, check_machine, check_jax, check_codecs, check_mp4, check_disk)


def run_check(check: Callable[[], str]) -> tuple[bool, str]:
    """One check as (passed, line): whatever goes wrong becomes its line, that is the purpose."""
    name = check.__name__.removeprefix("check_")
    try:
        return True, f"ok    {name:9} {check()}"
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return False, f"FAIL  {name:9} {reason}"


def main(argv: Sequence[str]) -> int:
    """Run every check; 0 when all pass, 2 otherwise."""
    del argv
    results = []
    for check in CHECKS:
        passed, line = run_check(check)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        results.append(passed)
    return 0 if all(results) else 2


if __name__ == "__main__":
    app.run(main)
