"""The command line: it chooses the rows, the pools and the outputs."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from asyncpool.testing import ServerError
from benchmarks._plan import ROOT
from benchmarks.cluster._figures import Cell
from benchmarks.cluster._page import PAGE, how, merge, write
from benchmarks.cluster._peers import PEERS
from benchmarks.cluster._rows import ROWS
from benchmarks.cluster._run import Settings, run
from benchmarks.cluster._tables import all_figures, line, notes

app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0917 - typer passes them by name
    rows: Annotated[str, typer.Option(help="Rows, comma-separated.")] = ",".join(ROWS),
    pools: Annotated[str, typer.Option(help="Pools, comma-separated.")] = ",".join(PEERS),
    quick: Annotated[bool, typer.Option("--quick", help="Shorten all times.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    again: Annotated[
        list[Path] | None,
        typer.Option(help="Read the figures from such files, measure nothing."),
    ] = None,
    publish: Annotated[bool, typer.Option("--write", help="Write the page.")] = False,
    page: Annotated[Path, typer.Option(help="The page.")] = ROOT / PAGE,
    toy: Annotated[bool, typer.Option("--tiny", hidden=True)] = False,
) -> None:
    """Cause each fault for each pool, on new servers and in a process of its own."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    if again:
        reports = [json.loads(file.read_text()) for file in again]
        report = merge(reports, tuple(ROWS), tuple(PEERS))
    else:
        pace = 0.1 if toy else 0.5 if quick else 1.0
        settings = Settings(_choice(rows, tuple(ROWS)), _choice(pools, tuple(PEERS)), pace)
        try:
            report = asyncio.run(_measure(settings))
        except ServerError as error:
            console.print(f"{error}", style="red", markup=False)
            raise typer.Exit(1) from error
    _show(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if publish:
        write(report, page)


def _choice(given: str, among: tuple[str, ...]) -> list[str]:
    chosen = [each.strip() for each in given.split(",") if each.strip()]
    if strange := [each for each in chosen if each not in among]:
        raise typer.BadParameter(f"{', '.join(strange)}: not one of {', '.join(among)}")
    return [each for each in among if each in chosen]


async def _measure(settings: Settings) -> dict[str, Any]:
    console = Console(stderr=True)
    with console.status("starting") as status:

        def done(cell: Cell) -> None:
            console.print(line(cell.record()), highlight=False, markup=False, soft_wrap=True)
            status.update(f"after {cell.row}, {cell.pool}")

        return await run(settings, done)


def _show(report: dict[str, Any], console: Console) -> None:
    head, *lines = all_figures(report)
    table = Table()
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number > 1 else "left")
    for each in lines:
        if each[0] and table.row_count:
            table.add_section()
        table.add_row(*each)
    console.print(table)
    for note in notes(report):
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(how(report), highlight=False, markup=False)
