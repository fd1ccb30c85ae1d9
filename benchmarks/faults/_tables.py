"""The text of the figures: a line per cell for the terminal, tables for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]


def line(cell: Record) -> str:
    """Return the line of a cell for the terminal."""
    name = f"{cell['fault']:18} {cell['pool']:20}"
    if cell["status"] != "done":
        return f"{name} {cell['status']}: {cell['reason']}"
    errors = ", ".join(f"{count} {error}" for error, count in cell["errors"].items())
    parts = [
        f"failed {failed(cell)} of {cell['requests']}",
        f"longest wait {seconds(cell['longest_wait'])} s",
        f"recovered after {seconds(cell['recovered'])} s",
        f"backends {backends(cell)}",
        ledger(cell),
        *([errors] if errors else []),
        *([cell["reason"]] if cell["reason"] else []),
    ]
    return f"{name} {'; '.join(parts)}"


def failed(cell: Record) -> str:
    """Return the failed requests that could have been served, and the others."""
    rest = cell["failed"] - cell["avoidable"]
    return f"{cell['avoidable']} + {rest}" if rest else f"{cell['avoidable']}"


def seconds(value: float | None) -> str:
    """Return a duration with its significant digits."""
    if value is None:
        return "never"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def backends(cell: Record) -> str:
    """Return the most backends at the same time, and those left after `close()`."""
    return f"{cell['most']} / {cell['left']}"


def ledger(cell: Record) -> str:
    """Return whether the ledger has each acknowledged number once, or how many it has not."""
    if cell["consistent"]:
        return "ledger consistent"
    return f"{cell['lost']} lost, {cell['duplicated']} duplicated"


def closed(cell: Record) -> str:
    """Return the duration of `close()`."""
    return "hung" if cell["close"] is None else seconds(cell["close"])


TABLES: dict[str, Callable[[Record], str]] = {
    "Failed requests": failed,
    "Longest wait for a connection, in seconds": lambda cell: seconds(cell["longest_wait"]),
    "Recovered after, in seconds": lambda cell: seconds(cell["recovered"]),
    "All connections open again after, in seconds": lambda cell: seconds(cell["full"]),
    "Backends: most at once / left after `close()`": backends,
}


SOME: dict[str, tuple[str, Callable[[Record], str]]] = {
    "Connects during the fault": ("attempts", lambda cell: str(cell["attempts"])),
    "Longest from a cancellation to its caller's return, in seconds": (
        "late",
        lambda cell: seconds(cell["late"]),
    ),
}
"""Figures that only some faults have."""


def tables(report: Record) -> Iterator[str]:
    """Yield a table per figure, with a row per fault and a column per pool."""
    for title, measure in TABLES.items():
        yield f"### {title}\n\n{_table(report, list(report['faults']), measure)}"
    yield f"### Ledger\n\n{_ledgers(report)}"
    for title, (key, measure) in SOME.items():
        having = [each["fault"] for each in report["cells"] if each[key] is not None]
        if some := list(dict.fromkeys(having)):
            yield f"### {title}\n\n{_table(report, some, measure)}"
    if reasons := list(dict.fromkeys(_reasons(report))):
        yield "\n".join(f"- {reason}" for reason in reasons)


def _ledgers(report: Record) -> str:
    cells = [each for each in report["cells"] if each["status"] == "done"]
    if all(each["consistent"] for each in cells):
        return "In each cell every acknowledged number is in the ledger once."
    wrong = [each for each in cells if not each["consistent"]]
    lines = [
        f"- {report['faults'][each['fault']]}, {each['pool']}: {ledger(each)}" for each in wrong
    ]
    return "\n".join(
        ["In each cell every acknowledged number is in the ledger once, except:", "", *lines]
    )


def _table(report: Record, faults: list[str], measure: Callable[[Record], str]) -> str:
    pools = report["pools"]
    found = {(each["fault"], each["pool"]): each for each in report["cells"]}
    rows = [["", *pools], ["---", *["--:"] * len(pools)]]
    for fault in faults:
        cells = [found.get((fault, pool)) for pool in pools]
        rows.append([report["faults"][fault], *(_cell(cell, measure) for cell in cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(cell: Record | None, measure: Callable[[Record], str]) -> str:
    if cell is None:
        return ""
    return measure(cell) if cell["status"] == "done" else cell["status"]


def _reasons(report: Record) -> Iterator[str]:
    for cell in report["cells"]:
        if cell["reason"]:
            text = cell["reason"].replace("\n", " ")
            yield f"{report['faults'][cell['fault']]}, {cell['pool']}: {cell['status']}: {text}"
