"""COMMIT by a short way: one statement, safe from the scopes of anyio around it.

psycopg's `commit` and a scope around it cost more than the statement itself.
"""

from __future__ import annotations

import math
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.internals import SUPPORTED, generators
from asyncpool._psycopg.operation import closed_error
from asyncpool._psycopg.socket_watcher import READY

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

OK = int(ConnStatus.OK)
COMMAND_OK, TUPLES_OK = int(ExecStatus.COMMAND_OK), int(ExecStatus.TUPLES_OK)
OPEN = {int(TransactionStatus.INTRANS), int(TransactionStatus.INERROR)}
COMMIT = psycopg.AsyncConnection.commit
WAIT = Connection.wait
"""The methods that the short way stands for: one that is overridden or patched is called."""


def can_commit(conn: Any, *, blocks: int = 0) -> bool:
    """Whether `commit` may be called: no more than a transaction is open, and nothing runs.

    A scope of anyio with a deadline limits the wait for the answer, which `commit` does not do.

    Args:
        conn: the connection.
        blocks: the number of transaction blocks that are open.
    """
    cls = type(conn)
    is_own = COMMIT.__module__ == "psycopg.connection_async" and not hasattr(COMMIT, "__wrapped__")
    if not (SUPPORTED and is_own and getattr(cls, "commit", None) is COMMIT and cls.wait is WAIT):
        return False
    transport, lock = conn._transport, conn.lock
    return (
        transport is not None
        and transport.phase is READY
        and conn.pgconn.status == OK
        and conn.pgconn.transaction_status in OPEN
        and conn._pipeline is None
        and conn._num_transactions == blocks
        and conn._tpc is None
        and not (lock._locked or lock._waiters)
        and anyio.current_effective_deadline() == math.inf
    )


async def commit(conn: Any) -> None:
    """Commit the open transaction; a scope of anyio that is cancelled waits for the answer.

    Raises:
        psycopg.Error: the server refused the COMMIT, or the connection was lost.
    """
    transport, lock = conn._transport, conn.lock
    answers: list[PGresult | psycopg.Error] = []
    if (question := conn._after_commit) is None:
        gen = _commit(conn.pgconn, answers)
    else:
        gen = _commit_and_ask(conn.pgconn, answers, question)
    lock._locked = True
    shielded = False
    try:
        try:
            await transport.start(gen)
        except StopIteration:
            pass  # the answer was there without waiting
        except CancelledError as error:
            # Only a cancellation by an anyio scope has a message; it is repeated at every await.
            if not (error.args and anyio.current_effective_deadline() == -math.inf):
                raise
            shielded = True
        if shielded:
            with anyio.CancelScope(shield=True):
                if (future := transport.rejoin(gen)) is not None:
                    await future
    except BaseException:
        transport.abandon(gen, conn)
        del answers  # its error's traceback has this frame
        raise
    finally:
        lock.release()
    _check(answers)


def _commit(pgconn: Any, answers: list[PGresult | psycopg.Error]) -> PQGen[None]:
    """Send COMMIT, and add the answer to a list, which is there whoever waits for it."""
    pgconn.send_query(b"COMMIT")
    try:
        results = yield from generators.execute(pgconn)
        if results and results[-1].status != COMMAND_OK:
            # Raised here, so that the transport reports it as it does the error of a statement.
            raise psycopg.errors.error_from_result(results[-1], encoding=pgconn._encoding)
    except psycopg.Error as error:
        answers.append(error)
        raise
    else:
        answers += results[-1:]
    finally:
        del answers  # as in `commit`


class AfterCommit:
    """A query that is sent in one packet with the next COMMIT of a connection.

    Args:
        query: a statement that returns one row.
    """

    def __init__(self, query: bytes) -> None:
        self.query = query
        self.row: list[bytes | None] | None = None
        """The row that was read after the COMMIT; None: the transaction was not committed that way,
        or the query has failed, which is no error of the COMMIT."""


def ask_after_commit(conn: Any, query: bytes) -> AfterCommit | None:
    """Have `commit` send a query with its COMMIT, until `ask_nothing`; return None if it cannot."""
    if not isinstance(conn, Connection):
        return None
    question = conn._after_commit = AfterCommit(query)
    return question


def ask_nothing(conn: Any) -> None:
    """Undo `ask_after_commit`."""
    if isinstance(conn, Connection):
        conn._after_commit = None


def _commit_and_ask(
    pgconn: Any, answers: list[PGresult | psycopg.Error], question: AfterCommit
) -> PQGen[None]:
    """Send COMMIT and a query as one simple query; the first result alone is the COMMIT's."""
    pgconn.send_query(b"COMMIT; " + question.query)
    try:
        results = yield from generators.execute(pgconn)
        if results and results[0].status != COMMAND_OK:
            raise psycopg.errors.error_from_result(results[0], encoding=pgconn._encoding)
    except psycopg.Error as error:
        answers.append(error)
        raise
    else:
        answers += results[:1]
        # A transaction that had failed was rolled back, which the tag tells.
        was_committed = bool(results) and results[0].command_status == b"COMMIT"
        if was_committed and len(results) == 2 and results[1].status == TUPLES_OK:
            row = results[1]
            question.row = [row.get_value(0, field) for field in range(row.nfields)]
    finally:
        del answers  # as in `commit`


def _check(answers: list[PGresult | psycopg.Error]) -> None:
    if not answers:
        raise closed_error("the outcome of its COMMIT is unknown")
    answer = answers.pop()
    if isinstance(answer, psycopg.Error):
        raise answer
