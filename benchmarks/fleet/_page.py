"""Write the tables between the marks of the two pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks._markdown import markdown, replaced
from benchmarks.fleet._tables import costs, how, notes, summary, table

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
    texts = {page: replaced(page, BEGIN, END, parts) for page, parts in pages.items()}
    for page, text in texts.items():
        page.write_text(text)
