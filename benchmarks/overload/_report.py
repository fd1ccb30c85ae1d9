"""The report on the terminal, and reports of several runs as one."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._markdown import Lines
from benchmarks.overload._page import how
from benchmarks.overload._tables import (
    Record,
    all_figures,
    milliseconds,
    notes,
    others,
    percent,
    streams,
    summary,
)


def show(report: Record, console: Console) -> None:
    """Print the tables."""
    for title, lines in (
        ("Each pool in each row", all_figures(report)),
        ("Goodput: answers in time, in parts of those that were possible", summary(report)),
        ("Answered in time, by kind of request", streams(report)),
        ("Other figures", others(report)),
    ):
        if len(lines) > 1:
            console.print(_table(title, lines))
    for note in notes(report):
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(how(report), highlight=False, markup=False)


def line(cell: Record) -> str:
    """Return a line for a cell that is done."""
    name = f"{cell['row']:16} {cell['pool']:17}"
    if cell["reason"]:
        return f"{name} {cell['reason']}"
    if cell["cost"] is not None:
        return f"{name} {cell['cost'] * 1e6:.0f} µs"
    return (
        f"{name} goodput {percent(cell['goodput'])}, p99 {milliseconds(cell['p99']) or '-'},"
        f" refused {percent(cell['refused'])}, timed out {percent(cell['timed_out'])},"
        f" late {percent(cell['late'])}, lag {milliseconds(cell['lag'])}"
    )


def merge(reports: list[Record], rows: tuple[str, ...]) -> Record:
    """Return the reports of several runs as one.

    Of a cell that was measured twice, the run counts whose requests started with the least delay:
    other programs on the machine have disturbed it least.

    Args:
        reports: the reports; facts and settings are those of the first.
        rows: all rows, in their order.
    """
    titles = {key: text for report in reports for key, text in report["rows"].items()}
    peers = list(dict.fromkeys(peer for report in reports for peer in report["peers"]))
    cells: dict[tuple[str, str], Record] = {}
    for cell in (cell for report in reports for cell in report["cells"]):
        place = cell["row"], cell["pool"]
        if place not in cells or _disturbed(cell) <= _disturbed(cells[place]):
            cells[place] = cell
    ordered: list[Any] = [
        cells[row, peer] for row in rows for peer in peers if (row, peer) in cells
    ]
    return reports[0] | {
        "rows": {key: titles[key] for key in rows if key in titles},
        "peers": peers,
        "cells": ordered,
    }


def _disturbed(cell: Record) -> tuple[bool, float]:
    return bool(cell["reason"]), cell["lag"]


def _table(title: str, lines: Lines) -> Table:
    head, *rest = lines
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number > 1 else "left")
    for each in rest:
        if each[0] and table.row_count:
            table.add_section()
        table.add_row(*each)
    return table
