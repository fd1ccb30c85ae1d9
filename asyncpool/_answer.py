"""What a statement on a shared connection has given, read as a cursor would.

Each reads all at once, in its caller's own time: what makes rows belongs to the next statement of
the same text as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.pq import ExecStatus
from psycopg.rows import tuple_row

from asyncpool._cursor import Cursor
from asyncpool._rider import BINARY, Rider

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

TUPLES_OK = int(ExecStatus.TUPLES_OK)


def tag(rider: Rider) -> str:
    """What the server says that it did."""
    return _cursor(rider).statusmessage or ""


def all_rows(rider: Rider) -> list[Any]:
    """What `fetchall` gives."""
    tx = rider.statement.tx
    if (result := _rows(rider)) is not None and rider.track.conn.row_factory is tuple_row:
        tx.set_pgresult(result)
        return tx.load_rows(0, result.ntuples, tuple)
    cur = _cursor(rider)
    result = cur._check_result_for_fetch()
    return tx.load_rows(0, result.ntuples, cur._make_row)


def first_row(rider: Rider) -> Any | None:
    """What `fetchone` gives."""
    tx = rider.statement.tx
    if (result := _rows(rider)) is not None and rider.track.conn.row_factory is tuple_row:
        tx.set_pgresult(result)
        return tx.load_row(0, tuple) if result.ntuples else None
    cur = _cursor(rider)
    result = cur._check_result_for_fetch()
    return tx.load_row(0, cur._make_row) if result.ntuples else None


def first_value(rider: Rider) -> Any | None:
    """The first column of the first row."""
    if (result := _rows(rider)) is None:
        _cursor(rider)._check_result_for_fetch()  # it raises
        return None
    tx = rider.statement.tx
    tx.set_pgresult(result)
    row = tx.load_row(0, tuple) if result.ntuples else None
    return None if row is None else row[0]


def _rows(rider: Rider) -> PGresult | None:
    """The result, if it is one of rows and the only one."""
    results = rider.results
    if len(results) == 1 and results[0].status == TUPLES_OK:
        return results[0]
    return None


def _cursor(rider: Rider) -> Cursor[Any]:
    """A cursor that has run the statement.

    Raises:
        psycopg.Error: the statement's own.
    """
    cur: Cursor[Any] = Cursor.for_one_statement(rider.track.conn, binary=rider.format is BINARY)
    cur._reset()
    cur._tx = rider.statement.tx
    cur._query = rider.statement.pgq
    cur._check_results(rider.results)
    cur._set_results(rider.results)
    return cur
