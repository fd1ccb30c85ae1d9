"""The command line: it chooses the tests, the pools and the outputs."""

from __future__ import annotations

import asyncio
import json
import os
import random
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
from benchmarks.web._generator import LoadFailed
from benchmarks.web._page import PAGE, tables, write
from benchmarks.web._run import Settings, run
from benchmarks.web._stores import STORES
from benchmarks.web._tests import TESTS

app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0917 - typer passes them by name
    tests: Annotated[str, typer.Option(help="Tests to run, comma-separated.")] = ",".join(TESTS),
    pools: Annotated[str, typer.Option(help="Pools to run, comma-separated.")] = ",".join(STORES),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each test.")] = 7,
    seconds: Annotated[int, typer.Option(min=1, help="Seconds of each turn.")] = 2,
    dsn: Annotated[str | None, typer.Option(help="The server; else one is started.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    page: Annotated[
        Path | None, typer.Option(help=f"Write tables and picture; a full run: {PAGE}.")
    ] = None,
    again: Annotated[
        Path | None, typer.Option(help="Read the figures from this file, measure nothing.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the shuffling.")] = None,
    toy: Annotated[bool, typer.Option("--tiny", hidden=True)] = False,
) -> None:
    """Compare pools in a web application, in turns, driven by a process of its own."""
    settings = Settings(
        _choice(tests, tuple(TESTS)),
        _choice(pools, tuple(STORES)),
        1 if toy else rounds,
        1 if toy else seconds,
        random.randrange(2**32) if seed is None else seed,
        **({"size": 2, "clients": 4, "warm": 0} if toy else {}),
    )
    full = (settings.tests, settings.pools, toy) == (list(TESTS), list(STORES), False)
    page = page or (ROOT / PAGE if full and again is None else None)
    if page is not None and not page.exists():
        raise typer.BadParameter(f"{page}: there is no such page")
    console = Console()
    try:
        report = json.loads(again.read_text()) if again else asyncio.run(_measure(settings, dsn))
    except (LoadFailed, ServerError, ServerUnavailable) as error:
        console.print(f"{error}", style="red", markup=False)
        raise typer.Exit(1) from error
    for text in (*tables(report), *(f"Note: {note}" for note in report["notes"])):
        print(text, end="\n\n")
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if page is not None:
        write(report, page)


def _choice(given: str, among: tuple[str, ...]) -> list[str]:
    chosen = [each.strip() for each in given.split(",") if each.strip()]
    if strange := [each for each in chosen if each not in among]:
        raise typer.BadParameter(f"{', '.join(strange)}: not one of {', '.join(among)}")
    return [each for each in among if each in chosen]


async def _measure(settings: Settings, dsn: str | None) -> dict[str, Any]:
    with Console(stderr=True).status("starting") as status:
        async with _server(dsn, settings) as server:
            return await run(settings, server, status.update)


@asynccontextmanager
async def _server(dsn: str | None, settings: Settings) -> AsyncIterator[str]:
    if dsn := dsn or os.environ.get("ASYNCPOOL_TEST_DSN"):
        yield make_conninfo(dsn, application_name=APPLICATION)
        return
    async with postgres(max_connections=2 * settings.size * len(STORES) + 10) as server:
        yield make_conninfo(server.dsn, application_name=APPLICATION)
