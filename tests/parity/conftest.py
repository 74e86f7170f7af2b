"""Marks every test of this folder; where PyTorch is not installed there is none: `make parity` installs it."""

import importlib.util
from pathlib import Path

import pytest

from tests.acceptance.conftest import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]  # prints the rows
FOLDER = Path(__file__).parent
collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]  # and no test is a failure


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` does not ask for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives the tests of this folder, and no other, the marker."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.parity)
