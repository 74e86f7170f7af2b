"""Rows of promised figures: collected by the checks, printed at the end, kept in docs/acceptance.md.

A check measures, then says

    assert report.row("first_light", "tiny VAE", f"{psnr:.1f} dB", "at least 30 dB", psnr >= 30)

and the row is kept whether its bar is met or not.
"""

import datetime
import os
import platform
import sys
from dataclasses import dataclass, fields
from pathlib import Path

HEAD = """# Acceptance

What was promised and what was measured. Written by `make acceptance`, or `make acceptance AREA=first_light`
for one area; a run replaces the rows it measured and leaves the others.
"""
COLUMNS = ("what", "bar", "figure", "met", "date", "machine")


@dataclass(frozen=True)
class Row:
    """One promised figure, as it stands in a line of the table."""

    what: str
    bar: str
    figure: str
    met: str
    date: str
    machine: str


collected: dict[str, dict[str, Row]] = {}  # area -> what -> row, in the order of the checks


def row(area: str, row: str, figure: object, bar: str, met: bool) -> bool:
    """Keep one measured row of an area; returns `met`, so that the check asserts it."""
    date = datetime.date.today().isoformat()
    cells = (row, bar, str(figure), "yes" if met else "no", date, machine())
    collected.setdefault(area, {})[row] = Row(*(_clean(cell) for cell in cells))
    return bool(met)


def machine() -> str:
    """This machine in words: cores and processor, and the accelerators that JAX uses, where it runs."""
    names = [f"{os.cpu_count()} x {_processor()}"]
    if "jax" in sys.modules:
        devices = sys.modules["jax"].devices()
        if devices[0].platform != "cpu":
            names.append(f"{len(devices)} x {devices[0].device_kind}")
    return ", ".join(names)


def lines() -> list[str]:
    """The collected rows as `row, figure, bar`, with a word where the bar is missed."""
    rows = [row for area in collected.values() for row in area.values()]
    return [f"{row.what}, {row.figure}, {row.bar}" + ("" if row.met == "yes" else "  <- NOT MET") for row in rows]


def write(path: Path) -> None:
    """Merge the collected rows into the page at `path`, which appears whole or not at all."""
    areas = parse(path.read_text(encoding="utf-8")) if path.exists() else {}
    for area, rows in collected.items():
        areas.setdefault(area, {}).update(rows)
    part = path.with_name(path.name + ".part")
    part.write_text(render(areas), encoding="utf-8")
    part.replace(path)


def render(areas: dict[str, dict[str, Row]]) -> str:
    """The page: one table an area."""
    text = [HEAD]
    for area, rows in areas.items():
        table = [COLUMNS, ("---",) * len(COLUMNS)]
        table += [tuple(getattr(row, field.name) for field in fields(Row)) for row in rows.values()]
        text += [f"## {area}\n", *("| " + " | ".join(cells) + " |" for cells in table), ""]
    return "\n".join(text)


def parse(text: str) -> dict[str, dict[str, Row]]:
    """The tables of a page that `render` wrote."""
    areas: dict[str, dict[str, Row]] = {}
    area = ""
    for line in text.splitlines():
        if line.startswith("## "):
            area = line.removeprefix("## ").strip()
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == len(COLUMNS) and cells[0] not in ("what", "---"):
            areas.setdefault(area, {})[cells[0]] = Row(*cells)
    return areas


def _clean(cell: str) -> str:
    return " ".join(cell.replace("|", "/").split())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
