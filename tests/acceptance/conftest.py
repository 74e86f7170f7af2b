"""Marks every check in this folder; prints and keeps their rows at the end of the run."""

import os
from pathlib import Path

import pytest

from tests.acceptance import report

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` does not ask for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the checks of this folder, and no other test, the acceptance marker."""
    for item in items:
        if FOLDER in item.path.parents and item.path.name != "test_report.py":
            item.add_marker(pytest.mark.acceptance)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print `row, figure, bar`, and keep the rows if AVATAR_ACCEPTANCE_WRITE names a page."""
    if not report.collected:
        return
    terminalreporter.section("row, figure, bar")
    for line in report.lines():
        terminalreporter.write_line(line)
    page = os.environ.get("AVATAR_ACCEPTANCE_WRITE")
    if page:
        report.write(Path(page))
        terminalreporter.write_line(f"written to {page}")
