"""The command line: it chooses the rows, the server and the outputs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL
from rich.console import Console

from asyncpool.testing import ServerError, ServerUnavailable, postgres
from benchmarks._facts import facts
from benchmarks._numbers import results
from benchmarks._page import PICTURE, write
from benchmarks._plan import ROOT, ROWS, Plan, figures, quick, tiny
from benchmarks._pools import APPLICATION, POOLS
from benchmarks._report import show

app = typer.Typer(add_completion=False)


class WorkerFailed(Exception):
    """The process for one event loop returned no figures; its stderr shows the reason."""


class Loop(StrEnum):
    """The event loops to run on."""

    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"
    BOTH = "both"


@app.command()
def main(  # noqa: PLR0917 - typer passes them by name
    rows: Annotated[str, typer.Option(help="Rows to run, comma-separated.")] = ",".join(ROWS),
    pools: Annotated[str, typer.Option(help="Pools to run, comma-separated.")] = ",".join(POOLS),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the fast rows.")] = 15,
    fast: Annotated[bool, typer.Option("--quick", help="Three shorter rounds.")] = False,
    loop: Annotated[Loop, typer.Option(help="The event loop.")] = Loop.BOTH,
    dsn: Annotated[str | None, typer.Option(help="The server; else one is started.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the ratios: a .png or .svg.")] = None,
    again: Annotated[
        Path | None, typer.Option(help="Read the figures from such a file, measure nothing.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--write", help="Write README, docs/performance.md and the picture.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the shuffling.")] = None,
    toy: Annotated[bool, typer.Option("--tiny", hidden=True)] = False,
) -> None:
    """Compare asyncpool with other pools on the same server, alternating them in one run."""
    _check_files(json_file, ROOT / PICTURE if publish else picture)
    plan = Plan(
        dsn="",
        loop="",
        rows=_choice(rows, ROWS),
        pools=_choice(pools, tuple(POOLS)),
        rounds=3 if fast else rounds,
        seed=random.randrange(2**32) if seed is None else seed,
    )
    plan = tiny(plan) if toy else quick(plan) if fast else plan
    loops = [Loop.ASYNCIO, Loop.UVLOOP] if loop is Loop.BOTH else [loop]
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        if again is None:
            report = asyncio.run(_run(plan, [each.value for each in loops], dsn))
        else:
            report = json.loads(again.read_text())
    except (WorkerFailed, ServerError, ServerUnavailable) as error:
        console.print(f"{error}", style="red", markup=False)
        raise typer.Exit(1) from error
    show(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if picture is not None:
        from benchmarks._picture import draw  # noqa: PLC0415 - matplotlib is slow to import

        draw(report, picture)
    if publish:
        write(report, ROOT)


def _check_files(json_file: Path | None, picture: Path | None) -> None:
    """Check the output files before the long run."""
    for file in (json_file, picture):
        if file is not None and not file.parent.is_dir():
            raise typer.BadParameter(f"{file}: there is no folder {file.parent}")
    if picture is not None and picture.suffix not in {".png", ".svg"}:
        raise typer.BadParameter(f"{picture}: a picture is a .png or .svg")
    if picture is not None and find_spec("matplotlib") is None:
        raise typer.BadParameter("a picture needs matplotlib: pip install --group bench")


def _choice(given: str, among: tuple[str, ...]) -> list[str]:
    chosen = [each.strip() for each in given.split(",") if each.strip()]
    if strange := [each for each in chosen if each not in among]:
        raise typer.BadParameter(f"{', '.join(strange)}: not one of {', '.join(among)}")
    return [each for each in among if each in chosen]


async def _run(plan: Plan, loops: list[str], dsn: str | None) -> dict[str, Any]:
    """Run all loops; return the report, as in the JSON."""
    settings = asdict(plan)
    for key in ("dsn", "loop"):
        del settings[key]
    report: dict[str, Any] = {
        "facts": facts(),
        "settings": settings,
        "figures": [asdict(figure) for figure in figures(plan)],
        "results": [],
        "notes": [],
    }
    async with _server(dsn, plan) as server:
        for loop in loops:
            given = {**asdict(plan), "loop": loop, "dsn": server}
            run = await _on_loop(given)
            report["results"] += results(run)
            report["notes"] += [note for note in run["notes"] if note not in report["notes"]]
            if "postgresql" in run:
                report["facts"]["postgresql"] = run["postgresql"]
    return report


@asynccontextmanager
async def _server(dsn: str | None, plan: Plan) -> AsyncIterator[str]:
    if dsn := dsn or os.environ.get("ASYNCPOOL_TEST_DSN"):
        yield make_conninfo(dsn, application_name=APPLICATION)
        return
    scale = plan.scale if "scale" in plan.rows else 0
    at_most = max(plan.to_open, scale, plan.size * len(POOLS)) + 30
    async with postgres(max_connections=at_most) as server:
        await _usual_password(server.dsn)
        yield make_conninfo(server.dsn, application_name=APPLICATION)


async def _usual_password(dsn: str) -> None:
    """Have the server make its verifier of the password anew: a test server's costs less."""
    password = str(conninfo_to_dict(dsn)["password"])
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(SQL("ALTER ROLE CURRENT_USER PASSWORD {}").format(password))


async def _on_loop(plan: dict[str, Any]) -> dict[str, Any]:
    """Run one loop in a process of its own, so that the loops do not affect each other."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks._worker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        limit=2**26,
        start_new_session=True,
    )
    assert worker.stdin is not None, "bug: it is a pipe"
    assert worker.stdout is not None, "bug: it is a pipe"
    worker.stdin.write(json.dumps(plan).encode() + b"\n")  # left open: the worker exits at its end
    result: dict[str, Any] | None = None
    with Console(stderr=True).status("starting") as status:
        try:
            async for line in worker.stdout:
                message = json.loads(line)
                result = message.get("result", result)
                status.update(message.get("progress", "done"))
        finally:
            if worker.returncode is None and result is None:
                worker.kill()
            code = await worker.wait()
    if result is None:
        msg = f"the run on {plan['loop']} ended with status {code} and no figures"
        raise WorkerFailed(msg)
    return result
