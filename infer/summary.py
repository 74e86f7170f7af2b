"""What a run measured: speed with its conditions, lip sync, as text for people and JSON for programs."""

import array
import dataclasses
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from avatar_jax.core import config as configs
from avatar_jax.io.errors import InputError

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "av")
SYNC_BATCH = 60  # video frames measured together


@dataclasses.dataclass
class Timing:
    """Wall-clock seconds of one run.

    `startup_s` ends when the engine is ready; `first_frame_s` runs from the first sound pushed to the first frame on
    the host; `block_s` holds the time from one block written to the next, measuring left out.
    """

    startup_s: float = 0.0
    compile_s: float = 0.0  # the start-up's share of tracing, lowering, and XLA or the reading of its cache
    first_frame_s: float = 0.0
    block_s: list[float] = dataclasses.field(default_factory=list)
    video_frames: int = 0


class SyncMeter:
    """Lip sync of a video of any length: keeps an opening and a loudness a frame, never the pictures."""

    def __init__(self, *, fps: int, audio_hz: int) -> None:
        self._fps, self._hop = fps, audio_hz // fps
        self._frames: list[np.ndarray] = []
        self._opening, self._loudness = array.array("f"), array.array("f")

    def push(self, frames: np.ndarray, samples: np.ndarray) -> None:
        """Takes frames uint8 [T, H, W, 3] and the sound under them, float32 [n] (silence if it ends)."""
        padded = np.pad(samples, (0, self._hop * len(frames) - samples.size)).reshape(-1, self._hop)
        self._loudness.extend(np.sqrt(np.mean(padded**2, axis=1)))
        self._frames.append(frames)
        if sum(map(len, self._frames)) >= SYNC_BATCH:
            self._measure()

    def _measure(self) -> None:
        from avatar_jax.metrics import mouth  # needs JAX

        self._opening.extend(mouth.read_frames(np.concatenate(self._frames)).opening)
        self._frames = []

    def score(self) -> dict[str, Any] | None:
        """Pearson r at lag 0 and the best lag in frames; None for videos too short to tell."""
        from avatar_jax.metrics import sync

        if self._frames:
            self._measure()
        if len(self._opening) < 2:
            return None
        opening, loudness = np.array(self._opening), np.array(self._loudness)
        # One value a frame is a waveform of `fps` hertz: its RMS over a frame is the loudness itself.
        r, lag_frames = sync.sync_score(opening, loudness, audio_hz=self._fps, fps=self._fps)
        measure = "proxy: mouth opening read from drawn faces against the loudness of the speech"
        return {"r": round(r, 4), "lag_frames": lag_frames, "measure": measure}


def conditions(cfg: configs.PictureConfig, checkpoint: Path, shown: tuple[int, int], *, steps: int) -> dict[str, Any]:
    """Everything that a speed depends on."""
    import jax

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "backend": device.platform,
        "devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "dtype": cfg.dit.compute_dtype,
        "resolution": [cfg.video.height, cfg.video.width],
        "shown": list(shown),
        "steps": steps,
        "checkpoint": str(checkpoint),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def report(timing: Timing, sync: dict[str, Any] | None, cfg: configs.Config) -> dict[str, Any]:
    """The figures of a run: speed counts hearing, drawing, decoding and the video encoder, not the measuring.

    `real_time_factor` is seconds of video made in one second: 1 keeps up with speech.
    """
    seconds, total_s = timing.video_frames / cfg.video.fps, sum(timing.block_s)
    block_ms = np.percentile(timing.block_s, [50, 95]) * 1e3
    return {
        "seconds": round(seconds, 3),
        "video_frames": timing.video_frames,
        "first_frame_s": round(timing.first_frame_s, 4),
        "frames_per_second": round(timing.video_frames / total_s, 2),
        "real_time_factor": round(seconds / total_s, 3),
        "block_ms_p50": round(float(block_ms[0]), 1),
        "block_ms_p95": round(float(block_ms[1]), 1),
        "startup_s": round(timing.startup_s, 2),
        "compile_s": round(timing.compile_s, 2),
        "lip_sync": sync,
    }


def text(path: Path, figures: dict[str, Any]) -> str:
    """The figures as a few lines for people."""
    at, sync, made = figures["conditions"], figures["lip_sync"], figures["provenance"]
    rows, columns = at["resolution"]
    untold = "not measured: too short, several speakers, or not a drawn face"
    score = f"r {sync['r']:.2f}, best lag {sync['lag_frames']} frames (proxy)" if sync else untold
    startup = f"start-up {figures['startup_s']:.1f} s, {figures['compile_s']:.1f} s of it compiling"
    machine = f"{at['device']} x {at['devices']}, {at['cpu_cores']} cores, {at['dtype']}"
    lines = (
        f"{path}",
        f"  video        {figures['seconds']:.2f} s, {figures['video_frames']} frames of {columns} x {rows}",
        f"  first frame  {figures['first_frame_s']:.2f} s after the first sound; {startup}",
        f"  speed        {figures['frames_per_second']:.1f} frames a second, real-time factor "
        f"{figures['real_time_factor']:.2f} (1 keeps up with speech)",
        f"  lip sync     {score}",
        f"  provenance   watermark {made['watermark']}, C2PA {made['c2pa']}",
        f"  conditions   {machine}, {at['steps']} steps a block, JAX {at['versions']['jax']}",
    )
    return "\n".join(lines)


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Writes the figures whole or not at all. Raises InputError if the disk is full."""
    partial = path.with_suffix(".json.partial")
    try:
        partial.write_text(json.dumps(figures, indent=2) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); the video itself is whole") from error
    finally:
        partial.unlink(missing_ok=True)
