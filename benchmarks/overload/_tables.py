"""The tables, as lines of strings: for the terminal, and in Markdown for the pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks._markdown import Lines
from benchmarks.overload._rows import COST

Record = dict[str, Any]

HEADS = (
    *("offered", "goodput", "p50", "p99", "refused", "told after"),
    *("timed out", "late", "lag", "CPU"),
)
"""The columns of the figures of a cell."""


def figures(cell: Record) -> list[str]:
    """Return the figures of a cell, as in `HEADS`; no figures, if there are none."""
    if cell["reason"]:
        return [cell["reason"], *[""] * (len(HEADS) - 1)]
    refused = cell["refused_p50"] is not None
    return [
        f"{cell['offered']:.0f}/s",
        percent(cell["goodput"]),
        milliseconds(cell["p50"]),
        milliseconds(cell["p99"]),
        percent(cell["refused"]),
        f"{told(cell['refused_p50'])} / {told(cell['refused_p99'])}" if refused else "",
        percent(cell["timed_out"]),
        percent(cell["late"]),
        milliseconds(cell["lag"]),
        percent(cell["cpu"]),
    ]


def percent(share: float) -> str:
    """Return a share in percent; what is below a half is "0 %" only if it is nothing."""
    return f"{share * 100:.0f} %" if not 0 < share < 0.005 else "<1 %"


def milliseconds(seconds: float | None) -> str:
    """Return a duration in milliseconds."""
    return "" if seconds is None else f"{seconds * 1e3:.0f} ms"


def told(seconds: float) -> str:
    """Return the duration of a refusal, which may be some microseconds."""
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else milliseconds(seconds)


def summary(report: Record) -> Lines:
    """Return the goodput of each pool in each row."""
    peers, found = report["peers"], _found(report)
    lines = [["", *peers]]
    for key in _loads(report):
        cells = [found.get((key, peer)) for peer in peers]
        lines.append([report["rows"][key], *map(_goodput, cells)])
    return lines


def streams(report: Record) -> Lines:
    """Return the share answered in time of each stream, for the rows that have several."""
    peers, found = report["peers"], _found(report)
    lines = [["row", "requests", *peers]]
    for key, title in report["rows"].items():
        cells = [found.get((key, peer)) for peer in peers]
        names = dict.fromkeys(name for cell in cells if cell for name in cell["streams"])
        for number, name in enumerate(names):
            shares = [_of(cell, name) for cell in cells]
            lines.append(["" if number else title, name, *shares])
    return lines


def others(report: Record) -> Lines:
    """Return the figures that only some rows have."""
    peers, found = report["peers"], _found(report)
    lines = [["", *peers]]
    for text, key, show in (
        ("after the spike, 95 % are answered in time again after", "spike", _recovered),
        (f"{report['rows'].get(COST, '')}, its task included", COST, _cost),
    ):
        if key in report["rows"]:
            cells = [found.get((key, peer)) for peer in peers]
            lines.append([text, *("" if cell is None else show(cell) for cell in cells)])
    return lines


def all_figures(report: Record) -> Lines:
    """Return all figures of all cells."""
    lines = [["row", "pool", *HEADS]]
    for key in _loads(report):
        cells = [cell for cell in report["cells"] if cell["row"] == key]
        for number, cell in enumerate(cells):
            title = "" if number else report["rows"][key]
            lines.append([title, cell["pool"], *figures(cell)])
    return lines


def notes(report: Record) -> Iterator[str]:
    """Yield what went wrong: a line for each pool that has no figures, or other errors."""
    for cell in report["cells"]:
        where = f"{report['rows'][cell['row']]}, {cell['pool']}"
        if cell["reason"]:
            yield f"{where}: {cell['reason']}"
        if cell["errors"]:
            errors = ", ".join(f"{count} {name}" for name, count in cell["errors"].items())
            yield f"{where}: {errors}"


def _found(report: Record) -> dict[tuple[str, str], Record]:
    return {(cell["row"], cell["pool"]): cell for cell in report["cells"] if not cell["reason"]}


def _loads(report: Record) -> list[str]:
    return [key for key in report["rows"] if key != COST]


def _goodput(cell: Record | None) -> str:
    return "" if cell is None else percent(cell["goodput"])


def _of(cell: Record | None, stream: str) -> str:
    return "" if cell is None else percent(cell["streams"].get(stream, 0.0))


def _recovered(cell: Record) -> str:
    seconds = cell["recovered"]
    return "never" if seconds is None else f"{seconds:.2f} s"


def _cost(cell: Record) -> str:
    return f"{cell['cost'] * 1e6:.0f} µs"
