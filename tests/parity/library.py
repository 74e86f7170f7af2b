"""Library models with random weights, saved by the library, converted by our command."""

# pyright: reportMissingImports=false

import math
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from avatar_jax.io.convert import store
from infer import convert

ROOT = pathlib.Path(__file__).parents[2]
SEEDS = (0, 1, 2)
BAR = 1e-4  # largest absolute error over the largest absolute value: float32 rounding through a few layers


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draws every parameter: matrices with the variance that keeps signals, vectors around what they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            inputs = math.prod(p.shape[1:])
            p.copy_(noise / math.sqrt(inputs) if inputs > 1 else p + 0.2 * noise)
    return model.eval().float()


def converted(source: pathlib.Path, output: pathlib.Path) -> dict[str, tuple[dict[str, Any], Any]]:
    """Weights and configuration of each network, from `infer.convert`."""
    command = [sys.executable, "-m", "infer.convert", f"--source={source}", f"--output={output}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = convert.find(source, None, convert.LORA_ALPHA)
    return {part.name: (store.load(output / part.name, part.spec), part.described) for part in parts}


def error(ours: Any, theirs: torch.Tensor) -> float:
    """Largest absolute error, relative to the largest value."""
    expected = theirs.detach().double().numpy()
    found = np.asarray(ours, np.float64)
    assert found.shape == expected.shape, f"{found.shape} against {expected.shape}"
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal inputs."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
