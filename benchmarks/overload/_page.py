"""Write the tables between the marks of the two pages, and the picture."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._markdown import markdown, replaced
from benchmarks.overload._tables import all_figures, notes, others, streams, summary

PAGE, FIGURES, PICTURE = "overload.md", "overload-figures.md", "overload.png"
BEGIN, END = "<!-- overload: begin -->", "<!-- overload: end -->"


def write(report: dict[str, Any], folder: Path) -> None:
    """Write the tables into both pages, and the picture next to them.

    Raises:
        ValueError: a page has no marks.
    """
    short = [markdown(table(report)) for table in (summary, streams, others)]
    long = [markdown(all_figures(report)), "\n".join(f"- {note}" for note in notes(report))]
    pages = {folder / PAGE: short, folder / FIGURES: long}
    texts = {
        page: replaced(page, BEGIN, END, [*parts, how(report)]) for page, parts in pages.items()
    }
    from benchmarks.overload._picture import draw  # noqa: PLC0415 - matplotlib is slow to import

    for page, text in texts.items():
        page.write_text(text)
    draw(report, folder / PICTURE)


def how(report: dict[str, Any]) -> str:
    """Return how the figures were measured."""
    settings = report["settings"]
    capacities = [each["capacity"] for each in report["cells"] if each["capacity"]]
    rate = f", which answer {median(capacities):.0f} requests a second" if capacities else ""
    facts = ", ".join(f"{name} {value}" for name, value in report["facts"].items())
    return (
        f"{settings['seconds']:g} s a cell, {settings['size']} connections, uses of"
        f" {settings['use'] * 1e3:g} ms{rate}. Measured on: {facts}."
    )
