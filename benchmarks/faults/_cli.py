"""The command line: it chooses the faults, the pools and the outputs."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from asyncpool.testing import ServerError, postgres
from benchmarks._facts import facts, server_version
from benchmarks._plan import ROOT
from benchmarks.faults._faults import FAULTS
from benchmarks.faults._figures import Cell
from benchmarks.faults._page import PAGE, write
from benchmarks.faults._peers import PEERS
from benchmarks.faults._run import run
from benchmarks.faults._tables import line
from benchmarks.faults._trial import Trial

app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0917 - typer knows them by name
    faults: Annotated[str, typer.Option(help="Faults, by commas.")] = ",".join(FAULTS),
    pools: Annotated[str, typer.Option(help="Pools, by commas.")] = ",".join(PEERS),
    quick: Annotated[bool, typer.Option("--quick", help="Shorten long faults.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write tables and picture to this page.")
    ] = None,
    again: Annotated[
        Path | None, typer.Option(help="Read the figures from this file instead of measuring.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, hidden=True, help="Trials at the same time.")] = 1,
) -> None:
    """Cause each fault for each pool, one after another, and write the figures."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    some = (_choice(faults, tuple(FAULTS)), _choice(pools, tuple(PEERS)))
    if page is None and not quick and some == (list(FAULTS), list(PEERS)):
        page = ROOT / PAGE
    if page is not None and not page.exists():
        raise typer.BadParameter(f"{page}: there is no such page")
    if again is not None:
        report = json.loads(again.read_text())
    else:
        try:
            report = asyncio.run(_measure(*some, console, quick=quick, jobs=jobs))
        except ServerError as error:
            console.print(f"{error}", style="red", markup=False)
            raise typer.Exit(1) from error
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if page is not None:
        write(report, page)


def _choice(given: str, among: tuple[str, ...]) -> list[str]:
    chosen = [each.strip() for each in given.split(",") if each.strip()]
    if strange := [each for each in chosen if each not in among]:
        raise typer.BadParameter(f"{', '.join(strange)}: not one of {', '.join(among)}")
    return [each for each in among if each in chosen]


async def _measure(
    keys: list[str], pools: list[str], console: Console, *, quick: bool, jobs: int
) -> dict[str, Any]:
    """Run all trials; return the report, as in the JSON."""

    def show(cell: Cell) -> None:
        console.print(line(cell.record()), highlight=False, markup=False, soft_wrap=True)

    found = facts()
    async with postgres() as server:
        found["postgresql"] = await server_version(server.dsn)
    faults = [FAULTS[key] for key in keys]
    cells = await run(faults, pools, show, quick=quick, jobs=jobs)
    return {
        "facts": found,
        "settings": {"quick": quick, "size": Trial.size, "rate": Trial.rate},
        "faults": {each.key: each.title for each in faults},
        "pools": pools,
        "cells": [each.record() for each in cells],
    }
