"""BEGIN in one packet with the first statement of a transaction.

Both are sent in libpq's pipeline mode before the first answer is read, which saves a round trip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus

from asyncpool._psycopg.internals import generators
from asyncpool._psycopg.transport import closed_error

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

FATAL, SYNC = int(ExecStatus.FATAL_ERROR), int(ExecStatus.PIPELINE_SYNC)


def with_begin(conn: Any, send: Callable[[], None]) -> PQGen[list[PGresult]]:
    """Begin a transaction and run one statement in it, in one round trip.

    Args:
        conn: an `asyncpool.Connection` with no transaction open.
        send: passes the statement to libpq, which is in pipeline mode.

    Returns:
        The results of the statement; where the BEGIN failed, its own.

    Raises:
        psycopg.Error: libpq refused the statement, or the connection was lost.
    """
    pgconn = conn.pgconn
    refused: Exception | None = None
    answers: list[list[PGresult]] = []
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(conn._get_tx_start_command(), None)
    try:
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
    if refused is not None:
        raise refused
    return next((each for each in answers if each[-1].status == FATAL), answers[-1])
