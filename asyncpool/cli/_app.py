"""The commands and their options; what they do is in a file of its own each."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated

import typer

from asyncpool import __version__
from asyncpool.cli._demo import Plan, demo
from asyncpool.cli._doctor import doctor
from asyncpool.cli._facts import Asked
from asyncpool.cli._limit import end
from asyncpool.cli._ping import ping
from asyncpool.cli._top import top

app = typer.Typer(
    name="asyncpool",
    no_args_is_help=True,
    add_completion=False,
    # Its tracebacks show local variables, and a DSN is one of them.
    pretty_exceptions_enable=False,
)


def finite(value: float) -> float:
    """A number of seconds; "nan" and "inf" pass for floats above the least."""
    if not math.isfinite(value):
        raise typer.BadParameter("it must be a finite number of seconds")
    return value


GivenDSN = Annotated[
    str | None,
    typer.Argument(
        metavar="DSN",
        envvar="DATABASE_URL",
        help="Without one, libpq's own environment counts, PGHOST and so on, as for psql.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Say it in JSON.")]


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"asyncpool {__version__}")
        raise typer.Exit


@app.callback()
def asyncpool(
    show: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """An asyncio-native connection pool for psycopg 3 and PostgreSQL."""


@app.command("demo")
def run_demo(
    dsn: Annotated[
        str | None,
        typer.Argument(metavar="DSN", help="A server's; without it, one is started for the run."),
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="That use the pool at once.")] = 200,
    size: Annotated[int, typer.Option(min=1, help="Connections of the pool.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, help="The length of the run.")] = 10.0,
) -> None:
    """Move money from many tasks over few connections, kill these once, and check the books.

    The tables are pgbench's, in a schema of their own, asyncpool_demo, dropped at the end.

    Ctrl-C ends the run early, with the same check; a second one breaks off what is under way.

    Exit status: 0 if the books balance, 1 if not, or if it cannot run, 130 after Ctrl-C.
    """
    raise typer.Exit(asyncio.run(demo(Plan(dsn, tasks, size, seconds))))


@app.command("ping")
def run_ping(
    dsn: GivenDSN = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="Seconds for all of it.")
    ] = 3.0,
    as_json: Json = False,
) -> None:
    """Connect, run one statement, and say in one line whether that worked: for health checks.

    Of several hosts each is asked, all at once, and the first to answer counts.

    Exit status: 0 if a server answered in time, else 1.
    """
    end(ping(dsn, timeout, as_json=as_json))


@app.command("doctor")
def run_doctor(
    dsn: GivenDSN = None,
    max_size: Annotated[int, typer.Option(min=1, help="Connections of a pool, at most.")] = 10,
    workers: Annotated[int, typer.Option(min=1, help="Processes that have a pool each.")] = 1,
    timeout: Annotated[
        float, typer.Option(min=0.1, callback=finite, help="Seconds for all of it.")
    ] = 30.0,
    as_json: Json = False,
) -> None:
    """Look at a server as a pool would, and say what to change.

    It has one connection at a time, two where a pooler is in between, and writes nothing.

    Exit status: 0 with notes and warnings too, 1 if there is a problem.
    """
    end(doctor(dsn, Asked(max_size=max_size, workers=workers), timeout, as_json=as_json))


@app.command("top")
def run_top(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of an inspector's page.")],
    header: Annotated[
        list[str] | None,
        typer.Option(help="NAME: VALUE, for each request, such as what lets you in."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once, and leave.")] = False,
    as_json: Json = False,
) -> None:
    """Show an app's pools at work: who has which connection, who waits, what has happened.

    It reads the feed of an asyncpool.inspector that the app has mounted. Ctrl-C ends it. Where the
    output is no terminal it is shown once; with --json it is a line for each snapshot.

    Exit status: 0, or 1 if there is no inspector to be read.
    """
    raise typer.Exit(top(url, header or [], once=once, as_json=as_json))
