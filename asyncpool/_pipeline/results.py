"""The results of a one-shot statement, read as a cursor would read them.

The caller's task reads all of them at once and keeps none: the transformer is used again for the
next statement of the same text. An `Answer` is a pair of functions: one reads the answer from a
request, the other fetches it from a cursor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import psycopg
from psycopg.pq import ExecStatus
from psycopg.rows import tuple_row

from asyncpool._pipeline.request import Request
from asyncpool._psycopg.cursor import Cursor
from asyncpool._psycopg.sending import BINARY

Answer = tuple[Callable[[Request], Any], Callable[[psycopg.AsyncCursor[Any]], Awaitable[Any]]]

TUPLES_OK, COMMAND_OK = int(ExecStatus.TUPLES_OK), int(ExecStatus.COMMAND_OK)


def _tag(request: Request) -> str:
    results = request.results
    if len(results) == 1 and (results[0].status == COMMAND_OK or results[0].status == TUPLES_OK):
        return (results[0].command_status or b"").decode()
    try:
        return _cursor(request, tuple_row).statusmessage or ""
    finally:
        request.statement.tx.set_pgresult(None)


def _rows(request: Request, most: int | None, factory: Any) -> list[Any]:
    """Return at most `most` rows; None: all."""
    tx, results = request.statement.tx, request.results
    try:
        if factory is tuple_row and len(results) == 1 and results[0].status == TUPLES_OK:
            result, make = results[0], cast("Any", tuple)
            tx.set_pgresult(result)
        else:
            cur = _cursor(request, factory)
            result, make = cur._check_result_for_fetch(), cur._make_row
        count = result.ntuples
        return tx.load_rows(0, count if most is None else min(most, count), make)
    finally:
        tx.set_pgresult(None)


def _cursor(request: Request, factory: Any) -> Cursor[Any]:
    """Return a cursor with the statement's results.

    Raises:
        psycopg.Error: the statement failed.
    """
    cur: Cursor[Any] = Cursor.for_one_statement(request.conn, binary=request.format is BINARY)
    cur._row_factory = factory
    cur._reset()
    cur._tx, cur._query = request.statement.tx, request.statement.pgq
    cur._check_results(request.results)
    cur._set_results(request.results)
    return cur


def _all_rows(request: Request) -> list[Any]:
    return _rows(request, None, request.row_factory)


def _first_row(request: Request) -> Any | None:
    rows = _rows(request, 1, request.row_factory)
    return rows[0] if rows else None


def _first_value(request: Request) -> Any | None:
    rows = _rows(request, 1, tuple_row)
    return rows[0][0] if rows and rows[0] else None


async def _fetch_tag(cur: psycopg.AsyncCursor[Any]) -> str:
    return cur.statusmessage or ""


async def _fetch_value(cur: psycopg.AsyncCursor[Any]) -> Any | None:
    cur.row_factory = tuple_row
    row = await cur.fetchone()
    return row[0] if row else None


TAG: Answer = _tag, _fetch_tag
ALL_ROWS: Answer = _all_rows, lambda cur: cur.fetchall()
FIRST_ROW: Answer = _first_row, lambda cur: cur.fetchone()
FIRST_VALUE: Answer = _first_value, _fetch_value
