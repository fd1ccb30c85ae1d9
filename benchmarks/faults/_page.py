"""Write the tables between the marks of the page, and the picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks._markdown import replaced
from benchmarks.faults._tables import tables

PAGE = "docs/reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def write(report: dict[str, Any], page: Path) -> None:
    """Write the tables into the page and, if matplotlib is installed, the picture next to it.

    Raises:
        ValueError: the page has no marks.
    """
    facts = ", ".join(f"{name} {value}" for name, value in report["facts"].items())
    how = "Measured with `--quick`" if report["settings"]["quick"] else "Measured"
    page.write_text(replaced(page, BEGIN, END, [*tables(report), f"{how} on: {facts}."]))
    if find_spec("matplotlib") is not None:
        from benchmarks.faults._picture import draw  # noqa: PLC0415 - it is slow to import

        draw(report, page.with_suffix(".png"))
