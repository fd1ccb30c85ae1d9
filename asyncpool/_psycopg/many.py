"""`executemany`: one statement with many sets of values, sent together.

psycopg waits for the socket twice for each set of values. Here they are sent in libpq's pipeline
mode, some dozens at a time, and their results are read when they arrive. As in psycopg, one Sync
follows them all, so that in autocommit they are one transaction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.abc import Params, PQGen, Query
from psycopg.pq import ExecStatus, TransactionStatus

from asyncpool._psycopg.internals import READY_R, READY_W, WAIT_R, WAIT_W, Prepare, generators
from asyncpool._psycopg.operation import closed_error
from asyncpool._psycopg.riding import UnsentBegin, in_transaction, require_accepted, settled_begin
from asyncpool._psycopg.sending import Execution, StatementSender
from asyncpool._psycopg.socket_watcher import READY
from asyncpool._psycopg.statement import Statement

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

FATAL, SYNC = int(ExecStatus.FATAL_ERROR), int(ExecStatus.PIPELINE_SYNC)
FAILED = {FATAL, int(ExecStatus.PIPELINE_ABORTED)}
IDLE = int(TransactionStatus.IDLE)
WAIT_RW: Any = WAIT_R | WAIT_W

AT_ONCE = 64
"""Sets of values after which results are read, and other tasks may run."""


async def execute_many(
    cursor: Any, query: Query, params_seq: Iterable[Params], *, commits: bool = False
) -> bool:
    """Execute a statement with each set of values; return False where psycopg must do it.

    Args:
        cursor: an `asyncpool.Connection`'s cursor.
        query, params_seq: as for `executemany`.
        commits: whether to begin and commit a transaction, if the connection is idle and in
            autocommit mode; after an error it is left open.

    Raises:
        psycopg.Error, TypeError, ...: a statement failed, or values cannot be converted.
    """
    conn = cursor._conn
    if commits and (in_transaction(conn) or not conn._autocommit):
        return False
    sender: StatementSender = conn._statements
    transport = conn._transport
    if (
        transport is None
        or transport.phase is not READY
        or conn._pipeline is not None
        or conn._prepared._to_flush
        or conn.lock._locked
        or conn.lock._waiters
        or cursor._closed
        or cursor._adapters is not sender.version
        or not isinstance(params_seq, list | tuple)
        or not params_seq
    ):
        return False
    try:
        statement = sender.find(query, params_seq[0])
    except Exception:  # noqa: BLE001 - psycopg raises it again, when it has begun a transaction
        return False
    if not statement.may_follow_begin:
        return False
    batch = Batch(cursor, query, params_seq, statement)
    async with conn.lock:
        await conn.wait(batch.run(commits=commits))
    return True


class Batch:
    """The executions of one statement with many sets of values.

    Args:
        cursor: the cursor that gets the number of rows.
        query, rows: the statement and its values.
        statement: the converted statement.
    """

    def __init__(
        self, cursor: Any, query: Query, rows: Iterable[Params], statement: Statement
    ) -> None:
        self._cursor = cursor
        self._conn = cursor._conn
        self._pgconn = cursor._conn.pgconn
        self._sender: StatementSender = cursor._conn._statements
        self._query = query
        self._rows = iter(rows)
        self._statement = statement
        self._sent: deque[Execution | None] = deque()
        """The executions in flight; None for one whose statement was prepared before."""
        self._begins = 0
        """The number of commands in flight before them: BEGIN, and the block's settings."""
        self._partial: list[PGresult] = []
        """Results that have come of the first command in flight."""
        self._preparing: list[PGresult] = []
        """The results of the PREPARE of the first execution in flight."""
        self._done: list[PGresult] = []
        """Results that the cursor has not counted yet."""
        self._failure: list[PGresult] = []
        """The results of the first command that has failed."""

    def run(self, *, commits: bool) -> PQGen[None]:
        """Send all and read their results; set the number of rows in the cursor."""
        conn, pgconn, cursor = self._conn, self._pgconn, self._cursor
        if conn._traced:
            conn._last_query = self._query
        unsent = None if conn._unsent_begin is None else settled_begin(conn)
        require_accepted(unsent)
        pgconn.enter_pipeline_mode()
        cursor._reset()
        cursor._rowcount, cursor._execmany_returning = 0, False
        self._send_begin(unsent, commits=commits)
        refused: Exception | None = None
        try:
            try:
                yield from self._send_all()
            except psycopg.OperationalError:
                raise
            except Exception as error:  # noqa: BLE001 - raised when what was sent has ended
                refused = error
            if commits and refused is None and not self._failure:
                pgconn.send_query_params(b"COMMIT", None)
            pgconn.pipeline_sync()
            yield from self._read_all()
        except psycopg.OperationalError:
            if not self._failure:
                raise  # else the server has said why it ended the session
        else:
            pgconn.exit_pipeline_mode()
        if unsent is not None:
            unsent.refused = pgconn.transaction_status == IDLE
            conn._unsent_begin = unsent if unsent.refused else None
        cursor._set_results(self._done)
        self._sender.refresh(self._statement)
        if refused is not None:
            raise refused
        if self._failure:
            cursor._check_results(self._failure)
        cursor._query, cursor._last_query = self._statement.pgq, self._query
        self._statement.lend(cursor)

    def _send_begin(self, unsent: UnsentBegin | None, *, commits: bool) -> None:
        """Send the commands that begin a transaction, if one is to begin."""
        conn, pgconn = self._conn, self._pgconn
        commands: Sequence[bytes] = ()
        if unsent is not None:
            commands = unsent.commands
        elif commits:
            commands = (b"BEGIN",)
        elif not conn._autocommit and pgconn.transaction_status == IDLE:
            commands = (conn._get_tx_start_command(),)
        for command in commands:
            pgconn.send_query_params(command, None)
        self._begins = len(commands)

    def _send_all(self) -> PQGen[None]:
        """Send all executions, until one has failed."""
        pgconn, more = self._pgconn, self._send_some()
        while more and not self._failure:
            while not (ready := (yield WAIT_RW)):
                continue
            if ready & READY_R:
                pgconn.consume_input()
                self._read_some()
            if ready & READY_W and not pgconn.flush():
                more = self._send_some()

    def _read_all(self) -> PQGen[None]:
        """Read all results up to that of the Sync."""
        yield from generators.send(self._pgconn)
        while True:
            results = yield from generators.fetch_many(self._pgconn)
            results, self._partial = self._partial + results, []
            if not results:
                raise closed_error()
            if results[-1].status == SYNC:
                break
            self._add(results)

    def _send_some(self) -> bool:
        """Send the next sets of values; return whether there may be more.

        Raises:
            psycopg.Error, TypeError, ...: values cannot be converted; those before are sent.
        """
        sender, pgconn, sent = self._sender, self._pgconn, self._sent
        statement, prepared, result_format = self._statement, sender.prepared, self._cursor.format
        pgq = statement.pgq
        rows = list(islice(self._rows, AT_ONCE))
        for params in rows:
            statement.dump(params)
            name = prepared._names.get((pgq.query, pgq.types))
            if name is not None and prepared.prepare_threshold is not None:
                pgconn.send_query_prepared(name, pgq.params, pgq.formats, result_format)
                sent.append(None)
                continue
            execution = Execution(self._query, params, True, result_format)
            sender.identify(execution, statement)
            sender.send(execution)
            sent.append(execution)
        return len(rows) == AT_ONCE

    def _read_some(self) -> None:
        """Read the results that have come."""
        pgconn = self._pgconn
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is not None:
                self._partial.append(result)
            elif self._partial:
                results, self._partial = self._partial, []
                self._add(results)
            else:
                break

    def _add(self, results: list[PGresult]) -> None:
        """Record the results of the first command in flight."""
        if self._begins:
            self._begins -= 1
        elif self._sent:
            execution = self._sent[0]
            if execution is not None and execution.state is Prepare.SHOULD:
                if not self._preparing:
                    self._preparing = results
                    return
                results, self._preparing = self._preparing + results, []
                if results[0].status in FAILED:
                    self._sender.prepared._names.pop(execution.key, None)
            self._sent.popleft()
            if execution is not None:
                self._sender.record_outcome(execution, results)
            if not self._failure and results[-1].status not in FAILED:
                self._done += results
                if len(self._done) >= AT_ONCE:
                    self._cursor._set_results(self._done)
                    self._done = []
                return
        if not self._failure and results[-1].status in FAILED:
            self._failure = results
