"""Write the table between the marks of the page, and reports of several runs as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._markdown import markdown, replaced
from benchmarks.cluster._tables import Record, all_figures, notes

PAGE = "docs/cluster-figures.md"
BEGIN, END = "<!-- cluster: begin -->", "<!-- cluster: end -->"


def write(report: Record, page: Path) -> None:
    """Write the table into the page.

    Raises:
        ValueError: the page has no marks.
    """
    errors = "\n".join(f"- {note}" for note in notes(report))
    parts = [markdown(all_figures(report), texts=2), errors, how(report)]
    page.write_text(replaced(page, BEGIN, END, parts))


def how(report: Record) -> str:
    """Return how the figures were measured."""
    settings = report["settings"]
    rates = " and ".join(f"{rate:g} {kind}s" for kind, rate in settings["rates"].items())
    facts = ", ".join(f"{name} {value}" for name, value in report["facts"].items())
    return (
        f"{rates} a second; {settings['size']} to {settings['most']} connections to each host"
        f" that is read from, and as many to write with. Measured on: {facts}."
    )


def merge(reports: list[Record], rows: tuple[str, ...], pools: tuple[str, ...]) -> Record:
    """Return the reports of several runs as one; of a cell measured twice, the later run counts.

    Args:
        reports: the reports; facts and settings are those of the first.
        rows: all rows, in their order.
        pools: all pools, in their order.
    """
    titles = {key: text for report in reports for key, text in report["rows"].items()}
    cells: dict[tuple[str, str], Any] = {
        (cell["row"], cell["pool"]): cell for report in reports for cell in report["cells"]
    }
    return reports[0] | {
        "rows": {key: titles[key] for key in rows if key in titles},
        "pools": [pool for pool in pools if any(pool == each for _, each in cells)],
        "cells": [cells[row, pool] for row in rows for pool in pools if (row, pool) in cells],
    }
