"""A portrait that speaks PCM16: what the adapters share, without any of their packages."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from infer import door, play

Shown = list[tuple[np.ndarray, bytes]]  # a picture uint8 [H, W, 3] and the PCM16 under it


class Speaking:
    """A session of the live engine fed with PCM16; pictures come out marked, each with its 40 ms of sound.

    Calls may come from any thread, one at a time.
    """

    def __init__(self, engine: play.Engine, *, height: int, width: int, fps: int, audio_hz: int, stamp: Any) -> None:
        """`stamp`: a marker of `avatar_jax.io.watermark`, called with frames and the number of the first."""
        self.height, self.width, self.fps, self.audio_hz = height, width, fps, audio_hz
        self._engine, self._stamp = engine, stamp
        self._lock, self._turn, self._heard_turn = threading.Lock(), 0, 0
        self._number, self._sound = 0, np.zeros(0, np.float32)

    def push(self, pcm16: bytes, audio_hz: int) -> Shown:
        """Takes mono PCM16; returns the pictures that it completes. Raises ValueError for another rate."""
        if audio_hz != self.audio_hz:
            raise ValueError(f"sound of {audio_hz} Hz; make the voice speak at {self.audio_hz} Hz")
        turn, samples = self._turn, np.frombuffer(pcm16, "<i2").astype(np.float32) / 32768
        with self._lock:
            self._hush()
            self._sound = np.concatenate([self._sound, samples])
            return self._shown(self._engine.push_audio(samples), turn)

    def finish(self) -> Shown:
        """Fills the last block with silence and returns what is left of a sentence."""
        with self._lock:
            self._hush()
            turn, hop = self._turn, self.audio_hz // self.fps
            shown: Shown = []
            while self._sound.size:
                quiet = np.zeros(hop, np.float32)
                shown += self._shown(self._engine.push_audio(quiet), turn)
            return shown

    def cancel(self) -> None:
        """Barge-in: sound that has been pushed is shown no more; the face goes on from where it is."""
        self._turn += 1

    def _hush(self) -> None:
        """The rest of an interrupted block is silent; the engine keeps its place in time."""
        if self._heard_turn != self._turn:
            self._heard_turn, self._sound = self._turn, np.zeros_like(self._sound)

    def _shown(self, blocks: list[Any], turn: int) -> Shown:
        hop, shown = self.audio_hz // self.fps, Shown()
        for block in blocks:
            frames = np.asarray(self._stamp(np.asarray(block), self._number))
            self._number += len(frames)
            under = np.pad(self._sound, (0, max(0, len(frames) * hop - self._sound.size)))
            self._sound = self._sound[len(frames) * hop :]
            pieces = np.clip(under[: len(frames) * hop] * 32768, -32768, 32767).astype("<i2").reshape(-1, hop)
            shown += [(frame, piece.tobytes()) for frame, piece in zip(frames, pieces, strict=True)]
        return shown if turn == self._turn else []


def make_speaking(image: str | Path | None = None) -> Speaking:
    """The embedded model with a portrait, compiled. Raises ValueError."""
    from avatar_jax.core import check
    from avatar_jax.io import watermark
    from avatar_jax.stream import session
    from configs import tiny_driven
    from infer import order

    door.start_jax()
    cfg = check.validate(tiny_driven.get_config())
    folder = order.check_checkpoint(None, cfg)
    cfg, portrait = order.check_portrait(image or door.embedded("portrait.png"), cfg)
    engine = session.Session(session.make_avatar(cfg, session.load_weights(cfg, folder), portrait))
    video = cfg.video
    return Speaking(
        engine,
        height=video.height,
        width=video.width,
        fps=video.fps,
        audio_hz=cfg.sound.audio_hz,
        stamp=watermark.make_marker(height=video.height, width=video.width),
    )
