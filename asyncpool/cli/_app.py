"""The commands and their options; each command is implemented in a module of its own."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated

import typer

from asyncpool import __version__
from asyncpool.cli._demo import Run, demo
from asyncpool.cli._doctor import doctor
from asyncpool.cli._facts import Plan
from asyncpool.cli._limit import end
from asyncpool.cli._ping import ping
from asyncpool.cli._top import top

app = typer.Typer(
    name="asyncpool",
    no_args_is_help=True,
    add_completion=False,
    # typer's tracebacks would show local variables, among them the DSN.
    pretty_exceptions_enable=False,
)


def finite(value: float) -> float:
    """Refuse "nan" and "inf", which typer accepts as numbers above the minimum."""
    if not math.isfinite(value):
        raise typer.BadParameter("it must be a finite number of seconds")
    return value


GivenDSN = Annotated[
    str | None,
    typer.Argument(
        metavar="DSN",
        envvar="DATABASE_URL",
        help="Without it, libpq's environment variables are used (PGHOST etc.), as in psql.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"asyncpool {__version__}")
        raise typer.Exit


@app.callback()
def asyncpool(
    show: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """An asyncio-native connection pool for psycopg 3 and PostgreSQL."""


@app.command("demo")
def run_demo(
    dsn: Annotated[
        str | None,
        typer.Argument(metavar="DSN", help="The server; without it, one is started for the run."),
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="Concurrent users of the pool.")] = 200,
    size: Annotated[int, typer.Option(min=1, help="Size of the pool.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of the run.")] = 10.0,
) -> None:
    """Transfer money in many tasks over few connections, kill these once, check the balances.

    The tables are those of pgbench, in the schema asyncpool_demo, which is dropped at the end.

    Ctrl-C ends the run early, with the same check; a second Ctrl-C aborts running transfers.

    Exit status: 0 if the balances agree, 1 if not or if the demo cannot run, 130 after Ctrl-C.
    """
    raise typer.Exit(asyncio.run(demo(Run(dsn, tasks, size, seconds))))


@app.command("ping")
def run_ping(
    dsn: GivenDSN = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="Seconds for the whole command.")
    ] = 3.0,
    as_json: Json = False,
) -> None:
    """Connect, run one statement, and report the result in one line, for health checks.

    Of several hosts, all are asked at once; the first answer counts.

    Exit status: 0 if a server answered in time, else 1.
    """
    end(ping(dsn, timeout, as_json=as_json))


@app.command("doctor")
def run_doctor(
    dsn: GivenDSN = None,
    max_size: Annotated[int, typer.Option(min=1, help="Maximum size of a pool.")] = 10,
    workers: Annotated[int, typer.Option(min=1, help="Processes with one pool each.")] = 1,
    timeout: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="Seconds for the whole command.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """Check a server as a pool would see it, and say what to change.

    The doctor uses one connection at a time, two through a pooler, and writes nothing.

    Exit status: 1 if there is a problem, else 0, also with notes and warnings.
    """
    end(doctor(dsn, Plan(max_size=max_size, workers=workers), timeout, as_json=as_json))


@app.command("top")
def run_top(
    url: Annotated[str, typer.Argument(metavar="URL", help="The address of an inspector's page.")],
    header: Annotated[
        list[str] | None,
        typer.Option(help="NAME: VALUE, a header of each request, such as credentials."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show one snapshot and exit.")] = False,
    as_json: Json = False,
) -> None:
    """Show an app's pools live: their leases, waiters and events.

    It reads the feed of the asyncpool.inspector that the app has mounted. The key q or Ctrl-C ends
    it. On an output that is no terminal it shows one snapshot; with --json it prints one line a
    snapshot.

    Exit status: 0, or 1 if no inspector can be read.
    """
    raise typer.Exit(top(url, header or [], once=once, as_json=as_json))
