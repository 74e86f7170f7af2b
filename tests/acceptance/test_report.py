"""The page of acceptance rows survives a round trip, and a later run replaces only what it measured."""

from pathlib import Path

import pytest

from tests.acceptance import report


@pytest.fixture(autouse=True)
def own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "collected", {})


def test_a_row_returns_whether_the_bar_is_met():
    assert report.row("area", "good", 2, "at least 1", True)
    assert not report.row("area", "bad", 0, "at least 1", False)
    assert report.lines() == ["good, 2, at least 1", "bad, 0, at least 1  <- NOT MET"]


def test_a_second_run_replaces_its_rows_and_keeps_the_others(tmp_path: Path):
    page = tmp_path / "acceptance.md"
    report.row("first", "one", "1 | dB", "at least 2", False)
    report.row("first", "two", "2", "2", True)
    report.row("second", "one", "3", "3", True)
    report.write(page)
    kept = report.parse(page.read_text())
    report.collected.clear()
    report.row("first", "one", "5 dB", "at least 2", True)
    report.write(page)
    areas = report.parse(page.read_text())
    assert list(areas) == ["first", "second"]
    assert (areas["first"]["one"].figure, areas["first"]["one"].met) == ("5 dB", "yes")
    assert areas["first"]["two"] == kept["first"]["two"]
    assert areas["second"] == kept["second"]
    assert kept["first"]["one"].figure == "1 / dB"


def test_the_page_is_stable(tmp_path: Path):
    page = tmp_path / "acceptance.md"
    report.row("first", "one", "1", "1", True)
    report.write(page)
    text = page.read_text()
    assert report.render(report.parse(text)) == text
    assert not list(tmp_path.glob("*.part"))
