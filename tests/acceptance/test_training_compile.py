"""Training: stage two of the 14B model, compiled for pods that are not here; docs/training.md holds the table."""

import pathlib

import pytest

from tests.acceptance import absent, report


@pytest.mark.parametrize(("name", "pod"), [("v5p", "v5p 2x2x4"), ("v6e", "v6e 4x8")])
def test_distillation_fits(name: str, pod: str, tmp_path: pathlib.Path):
    """One whole step: the rollout and its replay, the guided teacher, and the fake score's update."""
    done, (found,) = absent.compile_for(name, tmp_path / "report.json", door="train.compile")
    given, beside = (f"{found[part] / 1e9:.1f} {part}" for part in ("arguments", "temporaries"))
    work = f"{found['flops'] / 1e15:.0f} PFLOP a step of all; compiled in {found['compile_seconds']:.0f} s"
    figure = f"{found['gates']['fits'][0]} a chip of {found['devices']}: {given}, {beside}; {work}"
    what = f"14B distillation compiled ahead of time for {pod}"
    assert report.row("training", what, figure, "fits with LoRA, the base held once", done)
