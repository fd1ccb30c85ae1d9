"""`asyncpool ping`: a health check that reports within a time limit whether a server answers.

It connects to all hosts at once and runs one statement on each; the first success is the answer.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from time import perf_counter

import psycopg
import typer

from asyncpool.cli._limit import TimeLimitReached, within
from asyncpool.cli._target import BadDSN, brief, hosts, place, place_of, read

MAX_LENGTH = 300
"""Maximum characters of the line, since health checks log it repeatedly."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a ping; the fields are the keys of `--json`."""

    ok: bool
    place: str | None
    """The host that answered, or all hosts if none did."""
    seconds: float
    """From the start of the connect to the statement's result, or to the failure."""
    server_version: str | None = None
    role: str | None = None
    """"primary" or "standby"; None: unknown, as before PostgreSQL 14."""
    error: str | None = None


def ping(dsn: str | None, timeout: float, *, as_json: bool) -> int:
    """Ping the server, print one line, and return the exit status."""
    began = perf_counter()
    places = None
    try:
        dsns = hosts(read(dsn))
        places = ",".join(map(place, dsns))
        answer = within(timeout, lambda: _first_of(dsns, began))
    except BadDSN as error:
        answer = Answer(False, None, 0.0, error=str(error))
    except TimeLimitReached:
        answer = Answer(False, places, timeout, error=f"{places}: no answer within {timeout:g} s")
    show(answer, as_json=as_json)
    return 0 if answer.ok else 1


def show(answer: Answer, *, as_json: bool) -> None:
    """Print the answer in one line: an error for people on stderr, all else on stdout."""
    if as_json:
        typer.echo(json.dumps(asdict(answer)))
    elif answer.ok:
        what = ", ".join(filter(None, [f"PostgreSQL {answer.server_version}", answer.role]))
        typer.echo(f"ok: {answer.place} answered in {answer.seconds * 1000:.1f} ms ({what})")
    else:
        line = f"error: {answer.error}"
        typer.echo(line if len(line) <= MAX_LENGTH else f"{line[: MAX_LENGTH - 3]}...", err=True)


async def _first_of(dsns: list[str], began: float) -> Answer:
    """Return the first good answer, or the errors of all hosts."""
    tasks = [asyncio.create_task(_ask(dsn, began)) for dsn in dsns]
    for next_one in asyncio.as_completed(tasks):
        if (answer := await next_one).ok:
            return answer
    answers = [task.result() for task in tasks]
    return Answer(
        False,
        ",".join(answer.place or "" for answer in answers),
        perf_counter() - began,
        error="; ".join(answer.error or "" for answer in answers),
    )


async def _ask(dsn: str, began: float) -> Answer:
    try:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute("SELECT 1")  # a pooler may answer an empty query itself
            standby = conn.info.parameter_status("in_hot_standby")
            version = conn.info.parameter_status("server_version") or "?"
            return Answer(
                True,
                place_of(conn),
                perf_counter() - began,
                server_version=version.split()[0],
                role={"on": "standby", "off": "primary"}.get(standby or ""),
            )
    except Exception as error:  # noqa: BLE001 - any error is reported in one line
        at = place(dsn)
        return Answer(False, at, perf_counter() - began, error=f"{at}: {brief(error)}")
