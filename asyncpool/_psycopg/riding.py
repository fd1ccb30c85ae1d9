"""BEGIN in one packet with the first statement of a transaction.

BEGIN, the settings and the statement are sent in libpq's pipeline mode before the first answer is
read, which saves a round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus, TransactionStatus

from asyncpool._psycopg.internals import generators
from asyncpool._psycopg.operation import closed_error

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

FATAL, SYNC = int(ExecStatus.FATAL_ERROR), int(ExecStatus.PIPELINE_SYNC)
IDLE = int(TransactionStatus.IDLE)


class UnsentBegin:
    """The BEGIN of a block that has been entered, which waits for the first statement.

    Args:
        commands: BEGIN, and the statements that set the transaction's settings.
    """

    __slots__ = ("commands", "refused")

    def __init__(self, commands: Sequence[bytes]) -> None:
        self.commands = commands
        self.refused = False
        """Whether the server has refused the BEGIN, so that no statement can run."""


def unsent_begin(conn: Any) -> UnsentBegin | None:
    """Return the BEGIN that a connection, or one in a wrapper, has not sent yet, if any.

    Where the statement that it was sent with was cancelled, the state tells whether it has begun.
    """
    unsent: UnsentBegin | None = getattr(conn, "_unsent_begin", None)
    return None if unsent is None or conn.pgconn.transaction_status != IDLE else unsent


def settled_begin(conn: Any) -> UnsentBegin | None:
    """Return the BEGIN that is still to be sent, before an operation; forget one that has run."""
    if (unsent := unsent_begin(conn)) is None:
        conn._unsent_begin = None
    return unsent


def in_transaction(conn: Any) -> bool:
    """Whether a transaction is open, also in a block that has not sent its BEGIN yet."""
    idle: bool = conn.pgconn.transaction_status == IDLE
    return not idle or unsent_begin(conn) is not None


def forget_begin(conn: Any) -> bool:
    """Forget the BEGIN of a block that ends; return whether it was unsent."""
    was_unsent = unsent_begin(conn) is not None
    if getattr(conn, "_unsent_begin", None) is not None:
        conn._unsent_begin = None
    return was_unsent


def send_begin(conn: Any) -> PQGen[None]:
    """Send the BEGIN of a connection by itself.

    Raises:
        psycopg.Error: the server refused it.
    """
    if (unsent := settled_begin(conn)) is not None:
        result = (yield from with_begin(conn, unsent))[-1]
        if result.status == FATAL:
            raise psycopg.errors.error_from_result(result, encoding=conn.pgconn._encoding)


async def begin_now(conn: Any) -> None:
    """Send the BEGIN of a connection before a block or a pipeline begins in its transaction."""
    async with conn.lock:
        await conn.wait(send_begin(conn))


async def begin_before(conn: Any, gen: PQGen[Any]) -> None:
    """Send the BEGIN of a connection before an operation that it cannot be sent with."""
    try:
        await conn.wait(send_begin(conn))
    except BaseException:
        gen.close()
        raise


def with_begin(
    conn: Any, unsent: UnsentBegin | None = None, send: Callable[[], None] | None = None
) -> PQGen[list[PGresult]]:
    """Begin a transaction and run one statement in it, in one round trip.

    Args:
        conn: an `asyncpool.Connection` with no transaction open.
        unsent: the BEGIN of a block; None: the connection's own.
        send: passes the statement to libpq, which is in pipeline mode; None: there is none.

    Returns:
        The results of the statement; where the BEGIN or a setting failed, those of that.

    Raises:
        psycopg.Error: libpq refused the statement, or the connection was lost.
    """
    pgconn = conn.pgconn
    require_accepted(unsent)
    refused: Exception | None = None
    answers: list[list[PGresult]] = []
    pgconn.enter_pipeline_mode()
    for command in (conn._get_tx_start_command(),) if unsent is None else unsent.commands:
        pgconn.send_query_params(command, None)
    try:
        if send is not None:
            send()
    except Exception as error:  # noqa: BLE001 - raised when the BEGIN has ended
        refused = error
    pgconn.pipeline_sync()
    try:
        yield from generators.send(pgconn)
        while True:
            results = yield from generators.fetch_many(pgconn)
            if not results:
                raise closed_error()
            if results[-1].status == SYNC:
                break
            answers.append(results)
    except psycopg.OperationalError:
        if not any(each[-1].status == FATAL for each in answers):
            raise  # else the server has said why it ended the session
    else:
        pgconn.exit_pipeline_mode()
    if unsent is not None:
        unsent.refused = answers[0][-1].status == FATAL
        if not unsent.refused:
            conn._unsent_begin = None
    if refused is not None:
        raise refused
    return next((each for each in answers if each[-1].status == FATAL), answers[-1])


def require_accepted(unsent: UnsentBegin | None) -> None:
    """Raise InFailedSqlTransaction if the server has refused a BEGIN before."""
    if unsent is not None and unsent.refused:
        msg = "the server has refused the BEGIN of this block"
        raise psycopg.errors.InFailedSqlTransaction(msg)
