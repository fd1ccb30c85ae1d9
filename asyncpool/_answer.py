"""The outcome of a one-shot statement, read as a cursor would.

Each reads all at once, in its caller's own time, and leaves no result behind: what makes rows is
kept for the next statement of the same text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ExecStatus
from psycopg.rows import tuple_row

from asyncpool._cursor import Cursor
from asyncpool._request import BINARY, Request

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

Fetch = Callable[[psycopg.AsyncCursor[Any]], Awaitable[Any]]

TUPLES_OK = int(ExecStatus.TUPLES_OK)
DONE = {TUPLES_OK, int(ExecStatus.COMMAND_OK)}


def tag(request: Request) -> str:
    """Return the server's command tag, as `statusmessage`."""
    results = request.results
    if len(results) == 1 and results[0].status in DONE:
        return (results[0].command_status or b"").decode()
    with _cursor(request) as cur:
        return cur.statusmessage or ""


def all_rows(request: Request) -> list[Any]:
    """Return all rows, as `fetchall`."""
    if (result := _plain_rows(request)) is not None:
        tx = request.statement.tx
        tx.set_pgresult(result)
        try:
            return tx.load_rows(0, result.ntuples, tuple)
        finally:
            tx.set_pgresult(None)
    with _cursor(request) as cur:
        result = cur._check_result_for_fetch()
        return cur._tx.load_rows(0, result.ntuples, cur._make_row)


def first_row(request: Request) -> Any | None:
    """Return the first row or None, as `fetchone`."""
    if (result := _plain_rows(request)) is not None:
        tx = request.statement.tx
        tx.set_pgresult(result)
        try:
            return tx.load_row(0, tuple) if result.ntuples else None
        finally:
            tx.set_pgresult(None)
    with _cursor(request) as cur:
        result = cur._check_result_for_fetch()
        return cur._tx.load_row(0, cur._make_row) if result.ntuples else None


def first_value(request: Request) -> Any | None:
    """Return the first column of the first row; None where there is none."""
    if (result := _only_result(request)) is None:
        with _cursor(request) as cur:
            cur._check_result_for_fetch()  # it raises
        return None
    tx = request.statement.tx
    tx.set_pgresult(result)
    try:
        row = tx.load_row(0, tuple) if result.ntuples else None
    finally:
        tx.set_pgresult(None)
    return row[0] if row else None


def _plain_rows(request: Request) -> PGresult | None:
    """Return the result where its rows are to be tuples."""
    return _only_result(request) if request.row_factory is tuple_row else None


def _only_result(request: Request) -> PGresult | None:
    """Return the result, if it is one of rows and the only one."""
    results = request.results
    if len(results) == 1 and results[0].status == TUPLES_OK:
        return results[0]
    return None


@contextmanager
def _cursor(request: Request) -> Iterator[Cursor[Any]]:
    """Make a cursor that has run the statement.

    Raises:
        psycopg.Error: the statement's own.
    """
    tx = request.statement.tx
    cur: Cursor[Any] = Cursor.for_one_statement(request.conn, binary=request.format is BINARY)
    cur._row_factory = request.row_factory
    try:
        cur._reset()
        cur._tx = tx
        cur._query = request.statement.pgq
        cur._check_results(request.results)
        cur._set_results(request.results)
        yield cur
    finally:
        tx.set_pgresult(None)


async def _tag(cur: psycopg.AsyncCursor[Any]) -> str:
    return cur.statusmessage or ""


async def _value(cur: psycopg.AsyncCursor[Any]) -> Any:
    cur.row_factory = tuple_row
    row = await cur.fetchone()
    return row[0] if row else None


@dataclass(frozen=True, slots=True)
class Answer:
    """The part of a statement's outcome that its caller gets."""

    read: Callable[[Request], Any]
    """Reads it from the results of a request."""
    fetch: Fetch
    """Fetches it from a cursor."""


TAG = Answer(tag, _tag)
ALL_ROWS = Answer(all_rows, lambda cur: cur.fetchall())
FIRST_ROW = Answer(first_row, lambda cur: cur.fetchone())
FIRST_VALUE = Answer(first_value, _value)
