"""Records in words: a line for the terminal, tables for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]


def line(cell: Record) -> str:
    """One cell, for the terminal."""
    name = f"{cell['scene']:18} {cell['pool']:20}"
    if cell["status"] != "done":
        return f"{name} {cell['status']}: {cell['reason']}"
    errors = ", ".join(f"{count} {error}" for error, count in cell["errors"].items())
    parts = [
        f"failed {failed(cell)} of {cell['requests']}",
        f"longest wait {seconds(cell['longest_wait'])} s",
        f"whole {seconds(cell['whole'])} s",
        f"backends {backends(cell)}",
        books(cell),
        *([errors] if errors else []),
        *([cell["reason"]] if cell["reason"] else []),
    ]
    return f"{name} {'; '.join(parts)}"


def failed(cell: Record) -> str:
    """Those that need not have failed, and those that had to."""
    rest = cell["failed"] - cell["avoidable"]
    return f"{cell['avoidable']} + {rest}" if rest else f"{cell['avoidable']}"


def seconds(value: float | None) -> str:
    """To what can be told apart."""
    if value is None:
        return "never"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def backends(cell: Record) -> str:
    """The most at once, and those that were left."""
    return f"{cell['most']} / {cell['left']}"


def books(cell: Record) -> str:
    """Whether they balance."""
    if cell["balanced"]:
        return "balanced"
    return f"{cell['lost']} lost, {cell['twice']} twice"


def closed(cell: Record) -> str:
    """How long `close()` took."""
    return "hung" if cell["close"] is None else seconds(cell["close"])


TABLES: dict[str, Callable[[Record], str]] = {
    "Failed requests": failed,
    "Longest wait for a connection, in seconds": lambda cell: seconds(cell["longest_wait"]),
    "Whole again after, in seconds": lambda cell: seconds(cell["whole"]),
    "All connections open again after, in seconds": lambda cell: seconds(cell["full"]),
    "Backends: most at once / left after `close()`": backends,
}


SOME: dict[str, tuple[str, Callable[[Record], str]]] = {
    "Connections begun during the fault": ("attempts", lambda cell: str(cell["attempts"])),
    "Longest from a cancellation until its caller was let go, in seconds": (
        "late",
        lambda cell: seconds(cell["late"]),
    ),
}
"""Those that only some faults have."""


def tables(report: Record) -> Iterator[str]:
    """A table a measure, with faults down and pools across."""
    for title, measure in TABLES.items():
        yield f"### {title}\n\n{_table(report, list(report['scenes']), measure)}"
    yield f"### Books\n\n{_accounts(report)}"
    for title, (key, measure) in SOME.items():
        told = [each["scene"] for each in report["cells"] if each[key] is not None]
        if some := list(dict.fromkeys(told)):
            yield f"### {title}\n\n{_table(report, some, measure)}"
    if reasons := list(dict.fromkeys(_reasons(report))):
        yield "\n".join(f"- {reason}" for reason in reasons)


def _accounts(report: Record) -> str:
    cells = [each for each in report["cells"] if each["status"] == "done"]
    if all(each["balanced"] for each in cells):
        return "They balance in every cell."
    wrong = [each for each in cells if not each["balanced"]]
    told = [f"- {report['scenes'][each['scene']]}, {each['pool']}: {books(each)}" for each in wrong]
    return "\n".join(["They balance but for these:", "", *told])


def _table(report: Record, scenes: list[str], measure: Callable[[Record], str]) -> str:
    pools = report["pools"]
    found = {(each["scene"], each["pool"]): each for each in report["cells"]}
    rows = [["", *pools], ["---", *["--:"] * len(pools)]]
    for scene in scenes:
        cells = [found.get((scene, pool)) for pool in pools]
        rows.append([report["scenes"][scene], *(_cell(cell, measure) for cell in cells)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(cell: Record | None, measure: Callable[[Record], str]) -> str:
    if cell is None:
        return ""
    return measure(cell) if cell["status"] == "done" else cell["status"]


def _reasons(report: Record) -> Iterator[str]:
    for cell in report["cells"]:
        if cell["reason"]:
            text = cell["reason"].replace("\n", " ")
            yield f"{report['scenes'][cell['scene']]}, {cell['pool']}: {cell['status']}: {text}"
