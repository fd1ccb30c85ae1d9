"""Write the tables between the marks of the two pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.fleet._tables import costs, how, markdown, notes, summary, table

PAGE, FIGURES = "fleet.md", "fleet-figures.md"
BEGIN, END = "<!-- fleet: begin -->", "<!-- fleet: end -->"


def write(report: dict[str, Any], folder: Path) -> None:
    """Write the tables into both pages.

    Raises:
        ValueError: a page has no marks.
    """
    long = [
        markdown(table(report), texts=2),
        "\n".join(f"- {note}" for note in notes(report)),
        "What a connection costs:",
        markdown(costs(report)),
        how(report),
    ]
    pages = {folder / PAGE: [markdown(summary(report))], folder / FIGURES: long}
    texts = {page: _replace(page, [*filter(None, parts)]) for page, parts in pages.items()}
    for page, text in texts.items():
        page.write_text(text)


def _replace(page: Path, parts: list[str]) -> str:
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no {BEGIN} and {END}")
    return before + "\n\n".join([BEGIN, *parts, END]) + after
