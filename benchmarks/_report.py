"""The report for people."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._pools import OURS, PGBENCH


def show(report: dict[str, Any], console: Console) -> None:
    """Print a table for each loop, then the meaning of its numbers."""
    for loop, records in groupby(report["results"], key=lambda record: record["loop"]):
        of_loop = list(records)
        console.print(_table(loop, of_loop))
        _print_shares(of_loop, console)
    _print_notes(report, console)


def _table(loop: str, records: list[dict[str, Any]]) -> Table:
    table = Table(title=f"on {loop}", title_justify="left", header_style="bold")
    table.add_column("what")
    table.add_column("pool", no_wrap=True)
    table.add_column("median (p25..p75)", justify="right", no_wrap=True)
    table.add_column("times better than\npsycopg_pool", justify="right", no_wrap=True)
    table.add_column("asyncpool times\nbetter than it", justify="right", no_wrap=True)
    for _, group in groupby(records, key=lambda record: record["figure"]):
        for number, record in enumerate(group):
            table.add_row(
                "" if number else f"{record['title']}, {record['unit']}",
                record["pool"],
                _spread(record),
                _spread(record["times_better_than_psycopg_pool"]),
                _spread(record["asyncpool_times_better"]),
                style="bold" if record["pool"] == OURS else "",
            )
        table.add_section()
    return table


def _print_shares(records: list[dict[str, Any]], console: Console) -> None:
    for record in records:
        if record["pool"].startswith(PGBENCH) and (share := record["asyncpool_times_better"]):
            console.print(
                f"{record['title']}: {OURS} has {share['median']:.0%} of the rate of"
                f" {record['pool']} ({share['p25']:.0%}..{share['p75']:.0%}).",
                highlight=False,
            )


def _print_notes(report: dict[str, Any], console: Console) -> None:
    shown = {record["figure"] for record in report["results"]}
    for figure in report["figures"]:
        if figure["key"] in shown:
            console.print(f"[bold]{figure['title']}[/]: {figure['note']}.", highlight=False)
    console.print(
        "Each round gives every pool one turn, in shuffled order; ratios are made within a round."
        " The cyclic garbage collector is off in timed regions, for all pools.",
        highlight=False,
    )
    console.print(
        ", ".join(f"{name} {value}" for name, value in report["facts"].items()),
        style="dim",
        highlight=False,
    )
    for note in report["notes"]:
        console.print(f"Note: {note}", style="yellow", highlight=False, markup=False)


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return ""
    low, middle, high = (_digits(values[key]) for key in ("p25", "median", "p75"))
    return f"{middle} ({low}..{high})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
