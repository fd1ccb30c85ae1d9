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

from asyncpool.testing import ServerError, ServerUnavailable
from benchmarks._markdown import Lines
from benchmarks._plan import ROOT
from benchmarks.fleet._figures import Cell
from benchmarks.fleet._page import write
from benchmarks.fleet._peers import PEERS
from benchmarks.fleet._rows import ROWS
from benchmarks.fleet._run import Settings, run
from benchmarks.fleet._tables import costs, how, line, merge, notes, table

QUICK = ("late-busy", "late-idle")

app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0917 - typer passes them by name
    rows: Annotated[
        str | None, typer.Option(help=f"Rows to run, comma-separated: {', '.join(ROWS)}.")
    ] = None,
    peers: Annotated[str, typer.Option(help="Pools to run, comma-separated.")] = ",".join(PEERS),
    scale: Annotated[float, typer.Option(min=0.1, help="Multiplies all times of the rows.")] = 1.0,
    quick: Annotated[bool, typer.Option("--quick", help="Two rows, in half the time.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    again: Annotated[
        list[Path] | None,
        typer.Option(help="Read the figures from such files, measure nothing."),
    ] = None,
    page: Annotated[bool, typer.Option("--write", help="Write the tables into the pages.")] = False,
    folder: Annotated[Path, typer.Option(help="The folder of the pages.")] = ROOT / "docs",
) -> None:
    """Let processes share one server, with each pool: a server of its own for each cell."""
    settings = Settings(
        _choice(",".join(QUICK if quick else ROWS) if rows is None else rows, tuple(ROWS)),
        _choice(peers, tuple(PEERS)),
        min(scale, 0.5) if quick else scale,
    )
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        report = (
            merge([json.loads(file.read_text()) for file in again], tuple(ROWS))
            if again
            else asyncio.run(_measure(settings))
        )
    except (ServerError, ServerUnavailable) as error:
        console.print(f"{error}", style="red", markup=False)
        raise typer.Exit(1) from error
    _show(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if page:
        write(report, folder)


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
    console.print(_table("Processes that share a server", table(report), texts=2))
    for note in notes(report):
        console.print(f"Note: {note}", highlight=False, markup=False)
    console.print(_table("What a connection costs", costs(report), texts=1))
    console.print(how(report), highlight=False, markup=False)


def _table(title: str, lines: Lines, texts: int) -> Table:
    """Return a table whose first columns are texts."""
    head, *rest = lines
    found = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        found.add_column(name, justify="left" if number < texts else "right")
    for each in rest:
        if texts > 1 and each[0] and found.row_count:
            found.add_section()
        found.add_row(*each)
    return found
