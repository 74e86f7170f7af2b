"""A process that streams for hours and writes what it saw of its own frames, memory and time.

    python -m tests.acceptance.endless SEEN.json SECONDS

Memory is compared from block `SETTLED` on: until then the allocator finds the places it will use again and again.
"""

import dataclasses
import functools
import gc
import json
import os
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.stream import engine, session
from avatar_jax.stream.state import BlockInput
from tests.acceptance import mortal

DECODED_EVERY, WINDOW = 20, 500  # blocks: one is decoded in so many; those whose time and memory are compared
FIRST, SETTLED = 20, 2000  # blocks that may compile; after which memory is compared


@dataclasses.dataclass
class Seen:
    """What became of a stream."""

    frames: int
    wanted: int
    finite: bool  # every latent
    hours: float
    settled: int  # block
    resident: list[int]  # bytes, every `WINDOW` blocks from block `settled` on
    first: tuple[float, float]  # median seconds of the first blocks, and of the reference computation between them
    last: tuple[float, float]
    compiles: int

    @property
    def grown(self) -> float:
        """The farthest that memory has been from where it settled, as a part of it."""
        return max((bytes / self.resident[0] - 1 for bytes in self.resident), key=abs)


class Sparse(engine.Sequential):
    """Draws every latent and looks at it, decodes one block in `DECODED_EVERY` and the last."""

    blocks, finite, last = 0, True, False

    def feed(self, block: BlockInput) -> list[engine.Drawn]:
        latent = self.draw(block)
        self.finite = self.finite and bool(np.isfinite(np.asarray(latent)).all())
        self.blocks += 1
        shown = self.last or self.blocks % DECODED_EVERY == 0
        return [engine.Drawn(latent, self.picture(latent) if shown else None)]


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.lru_cache
def make_reference():
    """A fixed computation about as long as a block, to tell a slower stream from a slower machine."""
    x = jax.random.normal(jax.random.key(0), (768, 768))
    turn = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: jnp.tanh(y @ x / 28.0), x))
    return functools.partial(turn, x)


class Endless:
    """A session fed with speech in turn with the reference computation, and what is measured of it."""

    def __init__(self, seconds: int):
        avatar = mortal.embedded()
        assert isinstance(avatar.engine, functools.partial)
        self.live = session.Session(dataclasses.replace(avatar, engine=functools.partial(Sparse, *avatar.engine.args)))
        self.drawer: Any = self.live._engine
        self.cfg, self.samples, self.frames = avatar.cfg, seconds * 16_000, 0
        self.sound = mortal.speech(8)
        self.reference = make_reference()

    def push(self) -> None:
        """The next block of sound, or what is left of it."""
        at = self.live.samples
        piece = np.arange(at, min(at + self.cfg.block_samples, self.samples)) % len(self.sound)
        self.frames += sum(map(len, map(np.asarray, self.live.push_audio(self.sound[piece]))))

    def times(self, blocks: int) -> tuple[float, float]:
        """Median seconds of so many blocks, those decoded left out, and of the reference between them."""
        taken = []
        for _ in range(blocks):
            began = time.perf_counter()
            self.push()
            drawn = time.perf_counter()
            jax.block_until_ready(self.reference())
            if self.drawer.blocks % DECODED_EVERY:
                taken.append((drawn - began, time.perf_counter() - drawn))
        block, reference = np.median(taken, 0)
        return float(block), float(reference)

    def end(self) -> int:
        """Video frames of the whole stream: those that came, and those of blocks that were not decoded."""
        self.drawer.last = True
        shown = [np.asarray(block) for block in self.live.finish()]
        decoded = self.drawer.blocks // DECODED_EVERY + (1 if shown else 0)
        return self.frames + sum(map(len, shown)) + (self.drawer.blocks - decoded) * self.cfg.block_frames


def main() -> None:
    """Streams to the end, writes what it saw."""
    path, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        if event.startswith("/jax/core/compile/backend"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    stream = Endless(seconds)
    blocks = stream.samples // stream.cfg.block_samples
    window = min(WINDOW, blocks // 4)
    settled = min(SETTLED, blocks // 2)
    jax.block_until_ready(stream.reference())
    for _ in range(FIRST):
        stream.push()
    programs, began = len(compiled), time.perf_counter()
    first, memory = stream.times(window), []
    while stream.drawer.blocks < blocks - window:
        if stream.drawer.blocks >= settled and (stream.drawer.blocks - settled) % window == 0:
            memory.append(resident())
        stream.push()
    last = stream.times(window)
    memory.append(resident())
    hours = (time.perf_counter() - began) / 3600
    if stream.live.samples < stream.samples:
        stream.push()
    more = len(compiled) - programs  # the cut of the last block is a program of its own
    wanted = seconds * stream.cfg.video.fps
    seen = Seen(stream.end(), wanted, stream.drawer.finite, hours, settled, memory, first, last, more)
    path.write_text(json.dumps(dataclasses.asdict(seen)))


if __name__ == "__main__":
    main()
