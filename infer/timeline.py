"""A picture of what every stage does on every tick, from a traced run.

    XLA_FLAGS=--xla_force_host_platform_device_count=5 python -m infer.timeline --output=timeline.png \\
        --config.stream.history=timestep --config.stream.steps=4 --config.mesh.stages=4

The engine of `infer.stream` draws the first blocks of the embedded recording under JAX's profiler; a bar is one
program on one device, from its first operation to its last, numbered by its block. Reads the traces of CPU devices.
"""

import dataclasses
import gzip
import itertools
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from absl import flags

from avatar_jax.core import check
from avatar_jax.core import config as configs
from avatar_jax.io.audio import open_audio
from infer import door, order, play

FLAGS = flags.FLAGS
DRAWING, DECODING = ("jit_tick", "jit_steps"), "jit_decode"  # programs, by the names of their functions


@dataclasses.dataclass(frozen=True)
class Span:
    """One program on one device, in seconds from the start of the trace."""

    program: str
    device: int
    start: float
    end: float
    busy: float  # of which operations ran


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    flags.declare_key_flag("config")
    flags.DEFINE_integer("blocks", 12, "Blocks to draw.", lower_bound=1)
    flags.DEFINE_string("output", None, "The picture to write, a .png name (required).")


def _covered(parts: list[tuple[float, float]]) -> float:
    """Length of what intervals cover."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(parts):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def spans(folder: Path) -> list[Span]:
    """Every program that ran, from a trace that JAX's profiler wrote, by device and time."""
    runs: dict[tuple[str, int, str], list[tuple[float, float]]] = defaultdict(list)
    for path in folder.rglob("*.trace.json.gz"):
        for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
            about = event.get("args", {})
            if event.get("ph") == "X" and "hlo_module" in about and "run_id" in about:
                start, length = event["ts"] / 1e6, event["dur"] / 1e6
                key = (about["hlo_module"], int(about["device_ordinal"]), about["run_id"])
                runs[key].append((start, start + length))
    found = [
        Span(program, device, min(parts)[0], max(end for _, end in parts), _covered(parts))
        for (program, device, _), parts in runs.items()
    ]
    return sorted(found, key=lambda span: (span.device, span.start))


def trace(cfg: configs.Config, blocks: int) -> list[Span]:
    """What the devices do while the first blocks of the embedded recording are drawn."""
    import jax

    from avatar_jax.stream import session

    folder = order.check_checkpoint(None, cfg)
    _, portrait = order.check_portrait(door.embedded("portrait.png"), cfg)
    avatar = session.make_avatar(cfg, session.load_weights(cfg, folder), portrait)
    live = session.Session(avatar)
    speech = door.embedded("speech.wav")
    with tempfile.TemporaryDirectory() as kept, open_audio(speech, audio_hz=cfg.sound.audio_hz) as audio:
        with jax.profiler.trace(kept):
            for _ in play.frames(itertools.islice(play.speak(live, [audio], [], cfg), blocks)):
                pass
        return spans(Path(kept))


def stages(found: list[Span]) -> list[list[Span]]:
    """The drawing spans of every stage, in order of its ticks."""
    drawn: dict[int, list[Span]] = defaultdict(list)
    for span in found:
        if span.program in DRAWING:
            drawn[span.device].append(span)
    return [drawn[device] for device in sorted(drawn)]


def figures(found: list[Span]) -> dict[str, Any]:
    """For every stage, which share of each of its ticks operations fill."""
    return {"busy": [[round(span.busy / (span.end - span.start), 4) for span in ticks] for ticks in stages(found)]}


def plot(found: list[Span], cfg: configs.Config, output: Path) -> None:
    """The picture: a row a stage and one for the decoder, a colour a block."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    drawn, decoded = stages(found), [span for span in found if span.program == DECODING]
    zero = min(ticks[0].start for ticks in drawn)
    figure, axis = plt.subplots(figsize=(12, 1.2 + 0.5 * (len(drawn) + 1)), layout="constrained")
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    waits = cfg.mesh.driver == "spmd"  # a tick runs everywhere, whether a block is there or not

    def bar(row: float, span: Span, block: int) -> None:
        left, width = 1e3 * (span.start - zero), 1e3 * (span.end - span.start)
        colour: Any = colours[block % 10] if block >= 0 else "0.9"
        axis.barh(row, width, left=left, height=0.8, color=colour, edgecolor="white")
        if block >= 0:
            axis.text(left + width / 2, row, str(block), ha="center", va="center", fontsize=7)

    for stage, ticks in enumerate(drawn):
        for tick, span in enumerate(ticks):
            bar(stage, span, tick - stage if waits else tick)
    for block, span in enumerate(decoded):
        bar(len(drawn), span, block)
    axis.set_yticks(range(len(drawn) + 1), [*(f"stage {stage}" for stage in range(len(drawn))), "decoder"])
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=130)
    plt.close(figure)


def main() -> None:
    """Checks, traces, draws."""
    cfg = check.validate(FLAGS.config)
    if not isinstance(cfg, configs.Config):
        raise ValueError("--config: a clip is drawn whole, on one device; take a stream's configuration")
    if FLAGS.output is None or not FLAGS.output.endswith(".png"):
        raise ValueError("--output: the picture to write, a .png name")
    door.start_jax()
    found = trace(cfg, FLAGS.blocks)
    plot(found, cfg, Path(FLAGS.output))
    sys.stdout.write(json.dumps(figures(found)) + "\n")


if __name__ == "__main__":
    door.run(main, define)
