"""Where the time of a video frame goes, from its sound to its picture on the host.

    python -m infer.latency                                             # the embedded avatar
    python -m infer.latency --config=configs/tiny_knot.py --checkpoint=runs/knot

The embedded recording comes as from a microphone, a video frame at a time. A frame of a block waits until the block's
sound is complete (`clock.look_ahead`, a property of the configuration), then for the transformer, the decoder, and the
queue: hearing, the host, and the way of the pixels to it. The parts are timed one after the other, each until its
result is there, and added up; the whole is timed on a session that does as it likes, block by block in turn with them.
"""

import dataclasses
import functools
import sys
import time
from typing import Any

import numpy as np
from absl import flags

from avatar_jax.core import check
from avatar_jax.core import config as configs
from avatar_jax.io.audio import open_audio
from infer import door, order

FLAGS = flags.FLAGS
SETTLE = 2  # first blocks, not counted
NAMES = ("look-ahead", "denoise", "decode", "queue")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Seconds, medians over blocks; those of the whole and the look-ahead for each frame of a block."""

    look_ahead: np.ndarray  # [T]
    denoise: float
    decode: float
    queue: float
    whole: np.ndarray  # [T], measured

    @property
    def parts(self) -> np.ndarray:
        """Look-ahead, denoise, decode and queue of each frame of a block, [4, T]."""
        ahead = self.look_ahead
        return np.stack([ahead, *(np.full_like(ahead, part) for part in (self.denoise, self.decode, self.queue))])

    @property
    def gap(self) -> float:
        """How far the sum of the parts is from the whole, relative to it, at the worst frame of a block."""
        return float(np.abs(self.parts.sum(0) / self.whole - 1.0).max())


def make_watched(avatar: Any) -> tuple[Any, list[tuple[float, float, float]]]:
    """A session whose programs run one at a time, and when a block's input, latents and frames were there.

    Raises ValueError where the avatar is drawn on several devices.
    """
    import jax

    from avatar_jax.stream import engine, session

    if not (isinstance(avatar.engine, functools.partial) and avatar.engine.func is engine.Sequential):
        raise ValueError("config.mesh: the ledger times one device; leave data, stages, tensor and streams at 1")
    times = []

    class Watched(engine.Sequential):
        """Waits for each result."""

        def feed(self, block: Any) -> list[engine.Drawn]:
            jax.block_until_ready(block)
            began = time.perf_counter()
            latent = jax.block_until_ready(self.draw(block))
            drawn = time.perf_counter()
            frames = jax.block_until_ready(self.picture(latent))
            times.append((began, drawn, time.perf_counter()))
            return [engine.Drawn(latent, frames)]

    watched = dataclasses.replace(avatar, engine=functools.partial(Watched, *avatar.engine.args))
    return session.Session(watched), times


class Microphone:
    """Gives a session a recording as it is spoken, frame by frame; between two blocks it stands still."""

    def __init__(self, live: Any, heard: np.ndarray, fps: int):
        self._live, self._heard, self._fps = live, heard, fps
        self._frames, self._now = 0, 0.0  # given so far; seconds of its clock

    def block(self) -> tuple[float, float]:
        """Speaks until a block is on the host: when its last sound was there, and when it was, in seconds."""
        start = time.perf_counter() - self._now
        while True:
            heard = (self._frames + 1) / self._fps  # a frame's sound is there when the frame ends
            time.sleep(max(0.0, start + heard - time.perf_counter()))
            drawn = self._live.push_audio(self._heard[self._frames])
            self._frames += 1
            if drawn:
                np.asarray(drawn[0])
                self._now = time.perf_counter() - start
                return heard, self._now


def measure(avatar: Any, sound: np.ndarray, blocks: int) -> Ledger:
    """The ledger of an avatar in real time.

    Args:
      avatar: from `session.make_avatar`, drawn on one device.
      sound: a recording at the model's rate, float32 [n], heard again and again.
      blocks: how many to count, each twice for as long as it is shown.
    """
    from avatar_jax.stream import clock, session

    cfg: configs.Config = avatar.cfg
    watched, times = make_watched(avatar)
    frames = (SETTLE + blocks) * cfg.block_frames + clock.waits(cfg)
    heard = np.resize(sound, (frames, cfg.samples_per_frame))
    free, timed = (Microphone(live, heard, cfg.video.fps) for live in (session.Session(avatar), watched))
    shown, whole, queue = (1 + np.arange(cfg.block_frames)) / cfg.video.fps, [], []
    for block in range(SETTLE + blocks):
        _, host = free.block()
        whole.append(host - (block * cfg.block_frames / cfg.video.fps + shown))
        last, host = timed.block()
        queue.append(host - last - (times[-1][2] - times[-1][0]))
    denoise, decode = np.median(np.diff(np.array(times), axis=1)[SETTLE:], 0)
    return Ledger(
        look_ahead=clock.look_ahead(cfg),
        denoise=float(denoise),
        decode=float(decode),
        queue=float(np.median(queue[SETTLE:])),
        whole=np.median(whole[SETTLE:], 0),
    )


def text(ledger: Ledger) -> str:
    """The ledger in milliseconds as a few lines for people: a block's first frame, the mean frame, the last."""
    columns = [f"{'milliseconds':12}{'first frame':>14}{'mean':>14}{'last frame':>14}"]
    parts = ledger.parts
    rows = [*zip(NAMES, parts, strict=True), ("sum", parts.sum(0)), ("measured", ledger.whole)]
    columns += [
        f"{name:12}" + "".join(f"{1e3 * value:14.1f}" for value in (row[0], row.mean(), row[-1])) for name, row in rows
    ]
    return "\n".join([*columns, f"the sum is off by at most {100 * ledger.gap:.1f} % at any frame of a block"])


def define() -> None:
    """The flags."""
    door.define_config("configs/tiny.py")
    flags.declare_key_flag("config")
    flags.DEFINE_string("checkpoint", None, "Folder with trained weights; the embedded ones if left out.")
    flags.DEFINE_string("prompt", None, "What the video shows, for models that read text.")
    flags.DEFINE_integer("blocks", 20, "Blocks to time, each for as long as it is shown.", lower_bound=1)


def main() -> None:
    """Checks, measures, reports."""
    cfg = check.validate(FLAGS.config)
    if not isinstance(cfg, configs.Config):
        raise ValueError("--config: a clip has no sound to follow; take a stream's configuration")
    folder, asked = order.check_checkpoint(FLAGS.checkpoint, cfg), order.check_prompt(FLAGS.prompt, cfg)
    cfg, portrait = order.check_portrait(door.embedded("portrait.png"), cfg)
    door.start_jax()
    from avatar_jax.stream import prompt, session

    rows = None
    if cfg.text and asked:
        (rows,) = prompt.encode(folder, [asked], text=cfg.text, length=cfg.dit.text_tokens)
    hearing, weights = session.load_hearing(cfg, folder), session.load_weights(cfg, folder)
    avatar = session.make_avatar(cfg, weights, portrait, text=rows, hearing=hearing)
    with open_audio(door.embedded("speech.wav"), audio_hz=cfg.sound.audio_hz) as audio:
        sound = np.concatenate(list(audio.blocks(cfg.sound.audio_hz)))
    sys.stdout.write(text(measure(avatar, sound, FLAGS.blocks)) + "\n")


if __name__ == "__main__":
    door.run(main, define)
