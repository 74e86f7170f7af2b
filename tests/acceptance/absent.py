"""Compiles for devices that are not here, installing their compilers beside the repository's own environment."""

import json
import pathlib
import subprocess
import sys
from typing import Any

from infer.aot import targets

ROOT = pathlib.Path(__file__).parents[2]


def compile_for(
    name: str, output: pathlib.Path, *more: str, door: str = "infer.compile"
) -> tuple[bool, list[dict[str, Any]]]:
    """Whether a door that compiles held its gates, and what it reports."""
    wanted = targets.missing(targets.TARGETS[name])
    if wanted:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *wanted]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    command = [sys.executable, "-m", door, f"--target={name}", f"--output={output}", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert output.is_file(), done.stderr[-2000:]
    return done.returncode == 0, json.loads(output.read_text())
