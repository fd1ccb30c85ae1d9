"""The tables, as lines of strings: for the terminal, and in Markdown for the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks._markdown import Lines

Record = dict[str, Any]

HEADS = (
    *("reads", "failed", "p50", "p99", "stale", "share", "fair again"),
    *("writes", "failed", "none for", "lost", "double"),
)
"""The columns of the figures of a cell."""


def figures(cell: Record) -> list[str]:
    """Return the figures of a cell, as in `HEADS`."""
    if cell["reason"]:
        return [cell["reason"], *[""] * (len(HEADS) - 1)]
    share = cell["share"]
    return [
        str(cell["reads"]),
        str(sum(cell["failed_reads"].values())),
        milliseconds(cell["p50"]),
        milliseconds(cell["p99"]),
        percent(cell["stale"]),
        f"{percent(share[0])} to {percent(share[1])}" if share else "",
        _fair(cell),
        str(cell["writes"]),
        str(sum(cell["failed_writes"].values())),
        "" if cell["without"] is None else f"{cell['without']:.1f} s",
        str(cell["lost"]),
        str(cell["double"]),
    ]


def percent(share: float | None) -> str:
    """Return a share in percent; what is below a half is "0 %" only if it is nothing."""
    if share is None:
        return ""
    return f"{share * 100:.0f} %" if not 0 < share < 0.005 else "<1 %"


def milliseconds(seconds: float | None) -> str:
    """Return a duration in milliseconds."""
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


def all_figures(report: Record) -> Lines:
    """Return all figures of all cells."""
    lines = [["row", "pool", *HEADS]]
    for key, title in report["rows"].items():
        cells = [cell for cell in report["cells"] if cell["row"] == key]
        for number, cell in enumerate(cells):
            lines.append(["" if number else title, cell["pool"], *figures(cell)])
    return lines


def notes(report: Record) -> Iterator[str]:
    """Yield the errors of each cell that has some."""
    for cell in report["cells"]:
        for kind in ("reads", "writes"):
            if failed := cell[f"failed_{kind}"]:
                errors = ", ".join(f"{count} {name}" for name, count in failed.items())
                yield f"{report['rows'][cell['row']]}, {cell['pool']}, {kind}: {errors}"


def line(cell: Record) -> str:
    """Return a line for a cell that is done."""
    name = f"{cell['row']:12} {cell['pool']:16}"
    if cell["reason"]:
        return f"{name} {cell['reason']}"
    pairs = zip(HEADS, figures(cell), strict=True)
    return f"{name} {', '.join(f'{head} {text}' for head, text in pairs if text)}"


def _fair(cell: Record) -> str:
    if not cell["returned"]:
        return ""
    return "never" if cell["fair"] is None else f"{cell['fair']:.1f} s"
