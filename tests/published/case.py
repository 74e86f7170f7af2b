"""One golden case: a folder with `case.json`, weights under the published names, inputs and expected outputs."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from avatar_jax.io.convert.published import Tensors

Outputs = dict[str, Any]  # expected tensor's name -> what we compute, in the published layout


@dataclasses.dataclass
class Case:
    """A case and, for its negative control, the one published weight that is nudged."""

    folder: pathlib.Path
    nudge: str | None = None

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def kind(self) -> str:
        return self.about["case"]

    @functools.lru_cache  # noqa: B019, a case lives as long as its test
    def tensors(self, name: str = "io") -> dict[str, np.ndarray]:
        return load_file(self.folder / f"{name}.safetensors")

    def published(self, name: str = "weights") -> Tensors:
        weights = dict(self.tensors(name))
        if self.nudge in weights:
            nudged = weights[self.nudge].copy()
            half = nudged.reshape(-1)[: nudged.size // 2]  # a constant added to all may cancel in a softmax
            half += 0.05 * np.abs(nudged).max()
            weights[self.nudge] = nudged
        return Tensors(weights)

    def worst(self, outputs: Outputs, name: str = "io", **looser: float) -> dict[str, float]:
        """Each output's largest error in units of the case's tolerance: at most 1 passes.

        Args:
          outputs: ours, by the expected tensor's name.
          name: file with the expected tensors.
        """
        atol, rtol = self.about["tolerance"]["atol"], self.about["tolerance"]["rtol"]
        return {
            f"{name}:{key}": _error(
                np.asarray(ours, np.float64), self.tensors(name)[key].astype(np.float64), atol, rtol
            )
            for key, ours in outputs.items()
        }

    def __hash__(self) -> int:
        return hash((self.folder, self.nudge))


def _error(ours: np.ndarray, expected: np.ndarray, atol: float, rtol: float) -> float:
    assert ours.shape == expected.shape, f"{ours.shape} against {expected.shape}"
    return float((np.abs(ours - expected) / (atol + rtol * np.abs(expected))).max())


def frames_last(x: np.ndarray) -> np.ndarray:
    """[C, F, h, w] or [B, C, F, h, w] to [B, F, h, w, C]."""
    return np.moveaxis(x if x.ndim == 5 else x[None], 1, -1)


def frames_first(x: Any) -> np.ndarray:
    """[B, F, h, w, C] to [B, C, F, h, w]."""
    return np.moveaxis(np.asarray(x), -1, 1)
