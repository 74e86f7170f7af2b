"""Published weights: every golden case through the real converter, and what holds them to the full-size files.

Golden cases are read from the folder in GOLDEN_DIR (default: tests/golden), whatever cases it holds.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable

import pytest

from tests.acceptance import report
from tests.published import live_avatar, s2v, wan
from tests.published.case import Case

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(os.environ.get("GOLDEN_DIR", ROOT / "tests" / "golden"))
row = functools.partial(report.row, "weights")

# What runs a case of each kind, and the published weight (or input, where there is none) its control nudges.
KINDS: dict[str, tuple[Callable[[Case], dict[str, float]], str]] = {
    "wan_t2v_dit": (wan.text_to_video, "blocks.0.self_attn.k.weight"),
    "wan_i2v_dit": (wan.image_to_video, "blocks.1.ffn.0.weight"),
    "wan_i2v_clip_dit": (wan.image_to_video_clip, "blocks.0.cross_attn.k_img.weight"),
    "wan_s2v_dit": (s2v.speech_to_video, "frame_packer.proj_4x.weight"),
    "liveavatar_causal_block": (live_avatar.causal_block, "blocks.0.self_attn.v.weight"),
}
CASES = sorted(path.parent for path in GOLDEN.glob("*/case.json"))


def kind_of(folder: pathlib.Path) -> str:
    """The kind of a case; an unknown one is an error, never a skip."""
    name = json.loads((folder / "case.json").read_text())["case"]
    assert name in KINDS, f"{folder}: no way to run a case of kind {name!r}"
    return name


@pytest.mark.parametrize("folder", CASES, ids=lambda path: path.name)
def test_golden(folder: pathlib.Path):
    run, _ = KINDS[kind_of(folder)]
    worst = run(Case(folder))
    name, figure = max(worst.items(), key=lambda item: item[1])
    bar = "at most 1 of the case's tolerance"
    assert row(f"golden {folder.name}", f"{figure:.3f} ({name}; {len(worst)} tensors)", bar, figure <= 1.0)


@pytest.mark.parametrize("folder", CASES, ids=lambda path: path.name)
def test_golden_control_fails(folder: pathlib.Path):
    run, nudged = KINDS[kind_of(folder)]
    assert max(run(Case(folder, nudged)).values()) > 1.0
