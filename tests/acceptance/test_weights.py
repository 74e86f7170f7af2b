"""Published weights: every golden case through the real converter, and what holds them to the full-size files.

Golden cases are read from the folder in GOLDEN_DIR (default: tests/golden), whatever cases it holds.
"""

import functools
import os
import pathlib

import pytest

from tests.acceptance import report
from tests.published.case import Case
from tests.published.kinds import KINDS, kind_of

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(os.environ.get("GOLDEN_DIR", ROOT / "tests" / "golden"))
row = functools.partial(report.row, "weights")

CASES = sorted(path.parent for path in GOLDEN.glob("*/case.json"))


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
