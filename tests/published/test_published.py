"""The golden cases of this repository: published computations, weights through the real converter."""

import pathlib

import pytest

from tests.published.case import Case
from tests.published.kinds import KINDS, kind_of

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("folder", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_case(folder: pathlib.Path):
    worst = KINDS[kind_of(folder)][0](Case(folder))
    assert max(worst.values()) <= 1.0, worst
