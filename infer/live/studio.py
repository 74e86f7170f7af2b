"""Portraits to avatars on one pool of seats, every program compiled before the first caller comes."""

import collections
import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from avatar_jax.core import config as configs
from avatar_jax.io.errors import InputError
from infer.live.call import Look
from infer.live.stage import Form

DRAWN = {"Ada": 41, "Ben": 11, "Cleo": 21, "Dan": 34, "Robo": 3}  # names of the drawn world's faces, by number
SHOWN_SIZE = 256  # of the gallery's pictures
KEPT = 16  # avatars prepared and not in use
HEADROOM = 1.2  # a turn of the pool may take so many times what it took once


class Gallery:
    """The house's portraits: `pictures` by name, uint8 [H, W, 3] of the model's size, in order.

    Args:
      pictures: by name.
    """

    def __init__(self, pictures: dict[str, np.ndarray]):
        self.pictures = pictures
        self._kept: dict[str, bytes] = {}

    def png(self, name: str) -> bytes | None:
        """A picture as PNG; None if there is none of that name."""
        from PIL import Image

        if name not in self.pictures:
            return None
        if name in self._kept:  # asked for in the event loop, which has frames to send
            return self._kept[name]
        image, file = Image.fromarray(self.pictures[name]), io.BytesIO()
        scale = max(1, SHOWN_SIZE // min(image.size))
        image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC).save(file, "PNG")
        return self._kept.setdefault(name, file.getvalue())


def drawn_portraits(cfg: configs.Config) -> dict[str, np.ndarray]:
    """Faces of the drawn world, which the embedded model knows best."""
    from avatar_jax.data import source, world

    size = min(cfg.video.height, cfg.video.width)
    return {name: world.portrait(source.identity_of(0, number), size) for name, number in DRAWN.items()}


class Studio:
    """A model and its pool.

    Args:
      cfg: the run; `cfg.mesh.streams` are the seats.
      checkpoint: folder of weights.
    """

    def __init__(self, cfg: configs.Config, checkpoint: Path):
        from avatar_jax.stream import session

        if cfg.mesh.driver != "spmd":
            raise ValueError(f"config.mesh.driver={cfg.mesh.driver!r}: calls share seats, so it must be 'spmd'")
        self.cfg, self._checkpoint = cfg, checkpoint
        video = cfg.video
        self.form = Form(video.height, video.width, video.fps, cfg.sound.audio_hz, cfg.block_frames)
        self._weights = session.load_weights(cfg, checkpoint)
        self._hearing = session.load_hearing(cfg, checkpoint)
        self.seats = session.make_pool(self._weights, cfg)
        self._kept: collections.OrderedDict[tuple[str, str | None], Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def check_prompt(self, prompt: str | None) -> str | None:
        """The prompt, there where the model reads one and nowhere else. Raises InputError."""
        if prompt and not self.cfg.dit.text_width:
            raise InputError(f"prompt: the model of config {self.cfg.name!r} reads no text; leave it out")
        if not prompt and self.cfg.dit.text_width:
            raise InputError("prompt: is missing; say what the video shows")
        return prompt

    def _text(self, asked: str | None) -> Any:
        from avatar_jax.stream import prompt

        if not asked or self.cfg.text is None:
            return None
        length = self.cfg.dit.text_tokens
        return prompt.encode(self._checkpoint, [asked], text=self.cfg.text, length=length)[0]

    def prepare(self, look: Look) -> Any:
        """An avatar; of one that was prepared before, the same."""
        from avatar_jax.stream import session

        with self._lock:  # one after the other: they would only take the devices from each other
            key = (look.name, look.prompt)
            if key not in self._kept:
                text = self._text(look.prompt)
                avatar = session.make_avatar(
                    self.cfg, self._weights, look.portrait, text=text, hearing=self._hearing, seats=self.seats
                )
                self._kept[key] = avatar
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def scene(self, look: Look) -> Any:
        """What a running call changes to."""
        from avatar_jax.stream import session

        with self._lock:
            return session.make_scene(self.cfg, self._weights, look.portrait, self._text(look.prompt))

    def rehearse(self, look: Look) -> float:
        """Compiles every program of a call, also of a second one and of a change; seconds of one turn, all seats."""
        from avatar_jax.stream.live import Live

        hall = Live(self.seats, patience_s=0.0, ahead=2)
        avatar = self.prepare(look)
        guest = hall.join(avatar)
        times = []
        for turn in range(4):
            if turn == 1:
                guest.show(self.scene(look))
            begun_s = time.perf_counter()
            guest.push_audio(np.zeros(self.form.block_samples, np.float32), 0.0)
            hall.beat(1e9)
            while not guest.fetch():
                hall.beat(1e9)
            times.append(time.perf_counter() - begun_s)
        hall.leave(guest)
        return min(times)

    def beat_s(self, turn_s: float) -> float:
        """How far apart blocks may enter so that the devices keep up: a turn costs as much for one seat as for all."""
        if self.cfg.mesh.streams == 1 or self.cfg.mesh.stages > 1:
            return 0.0
        turns = int(self.form.block_s / (HEADROOM * turn_s))
        if not turns:
            seats = self.cfg.mesh.streams
            logging.warning(
                "%d seats take %.2f s for %.2f s of video; lower config.mesh.streams", seats, turn_s, self.form.block_s
            )
        return self.form.block_s / max(1, turns)
