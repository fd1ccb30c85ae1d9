"""The tables, as lines of strings: for the terminal, and in Markdown for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks._markdown import Lines

Record = dict[str, Any]

HEADS = (
    *("first answer", "Jain", "answers", "most places", "bystander refused"),
    *("failed requests", "recovered after", "CPU an answer"),
)
"""The columns of the figures of a cell."""
FASTEST = "alone"
"""The row whose CPU time is shown: in the others the processes wait most of the time."""


def table(report: Record) -> Lines:
    """Return all figures of all cells."""
    lines = [["row", "pool", *HEADS]]
    for key, title in report["rows"].items():
        cells = [cell for cell in report["cells"] if cell["row"] == key]
        for number, cell in enumerate(cells):
            lines.append(["" if number else title, cell["pool"], *figures(cell)])
    return lines


def summary(report: Record) -> Lines:
    """Return the figures that matter most, a column for each pool."""
    peers = report["peers"]
    found = {(cell["row"], cell["pool"]): cell for cell in report["cells"] if not cell["reason"]}
    lines = [["", *peers]]
    for key, title in report["rows"].items():
        cells = [found.get((key, peer)) for peer in peers]
        for what, show in SHOWN:
            texts = ["" if cell is None else show(cell) for cell in cells]
            if key in SUMMARY and any(texts):
                lines.append([f"{title}: {what}", *texts])
    return lines


def figures(cell: Record) -> list[str]:
    """Return the figures of a cell, as in `HEADS`; no figures, if there are none."""
    if cell["reason"]:
        return [cell["reason"], *[""] * (len(HEADS) - 1)]
    connects, failed = cell["connects"], sum(cell["errors"].values())
    return [
        newcomers(cell["newcomers"]),
        _jain(cell),
        f"{cell['rate']:,.0f}/s",
        f"{cell['most']} of {cell['places']}",
        f"{cell['refused']} of {connects}" if connects else "",
        f"{failed:,}",
        _seconds(cell["recovered"]),
        f"{cell['cpu'] * 1e6:.0f} µs" if cell["cpu"] and cell["row"] == FASTEST else "",
    ]


def costs(report: Record) -> Lines:
    """Return what a connection costs, directly and through PgBouncer."""
    found = report["cost"]
    memory, direct, pooled = found["memory"], found["direct"], found.get("pooled")
    return [
        ["", "direct", "through PgBouncer"],
        ["memory of a new backend", _megabytes(memory["fresh"]), ""],
        ["memory of a backend that has read some catalogs", _megabytes(memory["used"]), ""],
        *(
            [text, _milliseconds(direct[key]), _milliseconds(pooled[key]) if pooled else ""]
            for text, key in (
                ("shortest connect", "connect"),
                ("shortest round trip", "round_trip"),
            )
        ),
    ]


def newcomers(firsts: list[float | None]) -> str:
    """Return after how long the newcomers had their first answers."""
    served = [each for each in firsts if each is not None]
    if not firsts:
        return ""
    if not served:
        return f"none of {len(firsts)}"
    none = len(firsts) - len(served)
    span = f"{min(served):.1f} to {max(served):.1f} s"
    return f"{none} of {len(firsts)} none, else {span}" if none else span


def _jain(cell: Record) -> str:
    return "" if cell["jain"] is None else f"{cell['jain']:.2f}"


def _refused(cell: Record) -> str:
    connects = cell["connects"]
    return f"{cell['refused'] / connects * 100:.0f} %" if connects else ""


SUMMARY = ("late-busy", "late-idle", "deploy")
"""The rows of the summary."""
SHOWN: tuple[tuple[str, Callable[[Record], str]], ...] = (
    ("first answer of a newcomer", lambda cell: newcomers(cell["newcomers"])),
    ("Jain's index", _jain),
    ("connects of others refused", _refused),
)


def notes(report: Record) -> Iterator[str]:
    """Yield what went wrong: a line for each pool that failed requests or left something."""
    for cell in report["cells"]:
        where = f"{report['rows'][cell['row']]}, {cell['pool']}"
        if cell["errors"]:
            errors = ", ".join(f"{count:,} {name}" for name, count in cell["errors"].items())
            yield f"{where}: failed requests: {errors}"
        if cell["left"]:
            yield f"{where}: {cell['left']} sessions were left on the server"
        if cell["hung"]:
            yield f"{where}: {cell['hung']} processes did not end"


def how(report: Record) -> str:
    """Return how the figures were measured."""
    settings = report["settings"]
    facts = ", ".join(f"{name} {value}" for name, value in report["facts"].items())
    scale = "" if settings["scale"] == 1 else f" All times of the rows x {settings['scale']:g}."
    return (
        f"A server with {settings['places']} places for ordinary roles: max_connections="
        f"{settings['places'] + settings['kept']}, {settings['kept']} of them reserved for"
        f" superusers or used to look on. Pools with max_size={settings['size']};"
        f" {settings['tasks']} tasks in a busy process, a request takes"
        f" {settings['use'] * 1e3:g} ms on the server;"
        f" `Fleet(reserve={settings['reserve']})`.{scale} Measured on: {facts}."
    )


def line(cell: Record) -> str:
    """Return a line for a cell that is done."""
    texts = zip(HEADS, figures(cell), strict=True)
    found = ", ".join(f"{head} {text}" for head, text in texts if text)
    return f"{cell['row']:10} {cell['pool']:16} {cell['reason'] or found}"


def merge(reports: list[Record], rows: tuple[str, ...]) -> Record:
    """Return the reports of several runs as one.

    Of a cell that was measured twice the last counts. Of the row that shows CPU time, and of what a
    connection costs, the least counts, which other programs on the machine have disturbed least.

    Args:
        reports: the reports; facts and settings are those of the first.
        rows: all rows, in their order.
    """
    titles = {key: text for report in reports for key, text in report["rows"].items()}
    peers = list(dict.fromkeys(peer for report in reports for peer in report["peers"]))
    cells: dict[tuple[str, str], Record] = {}
    for cell in (cell for report in reports for cell in report["cells"]):
        place = cell["row"], cell["pool"]
        known = cells.get(place)
        if cell["row"] != FASTEST or known is None or cell["cpu"] < known["cpu"]:
            cells[place] = cell
    return reports[0] | {
        "rows": {key: titles[key] for key in rows if key in titles},
        "peers": peers,
        "cost": min(
            (report["cost"] for report in reports), key=lambda cost: cost["direct"]["connect"]
        ),
        "cells": [cells[row, peer] for row in rows for peer in peers if (row, peer) in cells],
    }


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def _megabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f} MB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
