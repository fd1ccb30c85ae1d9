"""The command line: it chooses the rows, the pools and the outputs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from psycopg.conninfo import make_conninfo
from rich.console import Console

from asyncpool.testing import ServerError, ServerUnavailable, postgres
from benchmarks._plan import ROOT
from benchmarks._pools import APPLICATION
from benchmarks.overload._figures import Cell
from benchmarks.overload._page import write
from benchmarks.overload._peers import PEERS
from benchmarks.overload._report import line, merge, show
from benchmarks.overload._rows import COST, ROWS, SIZE
from benchmarks.overload._run import Settings, run

ALL = (*ROWS, COST)
QUICK = ("load-3", "priority")

app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0917 - typer passes them by name
    rows: Annotated[
        str | None, typer.Option(help=f"Rows to run, comma-separated: {', '.join(ALL)}.")
    ] = None,
    peers: Annotated[str, typer.Option(help="Pools to run, comma-separated.")] = ",".join(PEERS),
    seconds: Annotated[float, typer.Option(min=1, help="Measured time of a cell.")] = 6.0,
    quick: Annotated[bool, typer.Option("--quick", help="A few rows, 2 s a cell.")] = False,
    dsn: Annotated[str | None, typer.Option(help="The server; else one is started.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    again: Annotated[
        list[Path] | None,
        typer.Option(help="Read the figures from such files, measure nothing."),
    ] = None,
    page: Annotated[bool, typer.Option("--write", help="Write the pages and the picture.")] = False,
    folder: Annotated[Path, typer.Option(help="The folder of the pages.")] = ROOT / "docs",
    seed: Annotated[int, typer.Option(help="Seed of the instants.")] = 1,
    toy: Annotated[bool, typer.Option("--tiny", hidden=True)] = False,
) -> None:
    """Play overload against each pool, a process for each cell, on the same server."""
    given = ",".join(QUICK if quick else ALL) if rows is None else rows
    settings = Settings(
        _choice(given, ALL),
        _choice(peers, tuple(PEERS)),
        1.0 if toy else min(seconds, 2.0) if quick else seconds,
        seed,
        **({"probe": 0.5} if quick or toy else {}),
    )
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        report = (
            merge([json.loads(file.read_text()) for file in again], ALL)
            if again
            else asyncio.run(_measure(settings, dsn))
        )
    except (ServerError, ServerUnavailable) as error:
        console.print(f"{error}", style="red", markup=False)
        raise typer.Exit(1) from error
    show(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if page:
        write(report, folder)


def _choice(given: str, among: tuple[str, ...]) -> list[str]:
    chosen = [each.strip() for each in given.split(",") if each.strip()]
    if strange := [each for each in chosen if each not in among]:
        raise typer.BadParameter(f"{', '.join(strange)}: not one of {', '.join(among)}")
    return [each for each in among if each in chosen]


async def _measure(settings: Settings, dsn: str | None) -> dict[str, Any]:
    console = Console(stderr=True)
    with console.status("starting") as status:

        def done(cell: Cell) -> None:
            console.print(line(cell.record()), highlight=False, markup=False, soft_wrap=True)
            status.update(f"after {cell.row}, {cell.pool}")

        async with _server(dsn) as server:
            return await run(settings, server, done)


@asynccontextmanager
async def _server(dsn: str | None) -> AsyncIterator[str]:
    if dsn := dsn or os.environ.get("ASYNCPOOL_TEST_DSN"):
        yield make_conninfo(dsn, application_name=APPLICATION)
        return
    async with postgres(max_connections=4 * SIZE) as server:
        yield make_conninfo(server.dsn, application_name=APPLICATION)
