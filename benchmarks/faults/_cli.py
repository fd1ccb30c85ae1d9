"""The command: which faults, which pools, and where the figures go."""

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
from benchmarks.faults._page import PAGE, write
from benchmarks.faults._peers import PEERS
from benchmarks.faults._run import run
from benchmarks.faults._scenes import SCENES
from benchmarks.faults._stage import Stage
from benchmarks.faults._tables import line
from benchmarks.faults._verdict import Cell

app = typer.Typer(add_completion=False)


@app.command()
def main(  # noqa: PLR0917 - typer knows them by name
    faults: Annotated[str, typer.Option(help="Which, by commas.")] = ",".join(SCENES),
    pools: Annotated[str, typer.Option(help="Which, by commas.")] = ",".join(PEERS),
    quick: Annotated[bool, typer.Option("--quick", help="Long faults are short.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write tables and picture; the whole goes to docs/.")
    ] = None,
    again: Annotated[
        Path | None, typer.Option(help="Take these figures instead of playing.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, hidden=True, help="Cells at once.")] = 1,
) -> None:
    """Play each fault for each pool, one after another, and write what they made of it."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    some = (_choice(faults, tuple(SCENES)), _choice(pools, tuple(PEERS)))
    if page is None and not quick and some == (list(SCENES), list(PEERS)):
        page = ROOT / PAGE
    if page is not None and not page.exists():
        raise typer.BadParameter(f"{page}: there is no page between whose marks to write")
    if again is not None:
        report = json.loads(again.read_text())
    else:
        try:
            report = asyncio.run(_play(*some, console, quick=quick, jobs=jobs))
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


async def _play(
    faults: list[str], pools: list[str], console: Console, *, quick: bool, jobs: int
) -> dict[str, Any]:
    """Everything, as the JSON has it."""

    def tell(cell: Cell) -> None:
        console.print(line(cell.record()), highlight=False, markup=False, soft_wrap=True)

    found = facts()
    async with postgres() as server:
        found["postgresql"] = await server_version(server.dsn)
    scenes = [SCENES[key] for key in faults]
    cells = await run(scenes, pools, tell, quick=quick, jobs=jobs)
    return {
        "facts": found,
        "settings": {"quick": quick, "size": Stage.size, "rate": Stage.rate},
        "scenes": {each.key: each.title for each in scenes},
        "pools": pools,
        "cells": [each.record() for each in cells],
    }
