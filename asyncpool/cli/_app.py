"""The commands and their options; what they do is in a file of its own each."""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from asyncpool.cli._demo import Plan, demo

app = typer.Typer(
    name="asyncpool",
    no_args_is_help=True,
    add_completion=False,
    # Its tracebacks show local variables, and a DSN is one of them.
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        try:
            number = version("asyncpool")
        except PackageNotFoundError:
            number = "(not installed)"
        typer.echo(f"asyncpool {number}")
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
