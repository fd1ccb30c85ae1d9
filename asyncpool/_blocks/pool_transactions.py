"""The methods of the pool for one transaction, tried once or several times."""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar, cast

from asyncpool._blocks.overrides import OverriddenTransaction
from asyncpool._blocks.pool_blocks import PoolBlocks
from asyncpool._blocks.retrying import retry
from asyncpool._blocks.transaction import Transaction
from asyncpool._blocks.transaction_options import (
    Isolation,
    Setting,
    TransactionOptions,
    options_of,
)
from asyncpool._core.settings import count
from asyncpool._psycopg.driver import ACT

T = TypeVar("T")


class PoolTransactions(PoolBlocks[ACT]):
    """`transaction` and `run_transaction`."""

    def transaction(
        self,
        timeout: float | None = None,
        *,
        isolation: Isolation | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        settings: Mapping[str, Setting] | None = None,
        role: str | None = None,
    ) -> Transaction[ACT]:
        """Borrow a connection for a block that is one transaction, in autocommit mode too.

        `psycopg.Rollback` raised in the block rolls back and does not leave the block. BEGIN and
        the options are sent with the first statement, in one round trip; that statement raises the
        error of an option that the server refuses. What uses libpq directly (`conn.pgconn`) does
        not send them. The options are gone with the transaction,
        however it ends; the connection keeps none of them.

        Args:
            timeout: as for `connection`.
            isolation: a `psycopg.IsolationLevel` or its SQL name, such as "serializable"; None, as
                for the next two: the connection's own.
            read_only: whether the transaction may not write.
            deferrable: whether a serializable read-only transaction waits until it cannot fail.
            settings: values of server settings, as of SET LOCAL, such as {"app.tenant": 7}.
            role: the role of the transaction, as of SET LOCAL ROLE.

        Raises:
            TypeError, ValueError: an option is invalid.
            psycopg.errors.InFailedSqlTransaction: on exit, if the block handled the error of a
                statement, so that the transaction cannot be committed.
            psycopg.ProgrammingError: on entry, if there are options in a `session()` that has a
                transaction open.
            psycopg.OperationalError: `PoolTimeout` and all others of `connection`.
        """
        options = options_of(isolation, read_only, deferrable, settings, role)
        return self._transaction(timeout, options)

    async def run_transaction(
        self,
        work: Callable[[ACT], Awaitable[T]],
        timeout: float | None = None,
        *,
        attempts: int = 5,
        isolation: Isolation | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        settings: Mapping[str, Setting] | None = None,
        role: str | None = None,
    ) -> T:
        """Run an async function in a transaction, and again if that could not be serialized.

        Each attempt is a `transaction` block on a newly borrowed connection. If the server ends it
        with SQLSTATE 40001 or 40P01 (a deadlock), in a statement or at the COMMIT, it is rolled
        back, and the next attempt follows after a pause of at most 20 ms, doubled each time up to a
        second. Nothing else is retried.

        Args:
            work: called with the connection, once for each attempt.
            timeout: as for `connection`, for each attempt.
            attempts: the largest number of attempts, at least 1.
            isolation, read_only, deferrable, settings, role: as for `transaction`.

        Returns:
            The result of the attempt that was committed; None if `work` raised `psycopg.Rollback`.

        Raises:
            TypeError, ValueError: an argument is invalid.
            psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected: in the last
                attempt.
            psycopg.Error: all others of `transaction`.
            Exception: whatever else `work` raises.
        """
        if not callable(work):
            msg = f"work must be an async function of a connection, not {work!r}"
            raise TypeError(msg)
        if count("attempts", attempts) < 1:
            msg = f"attempts must be at least 1: got {attempts}"
            raise ValueError(msg)
        options = TransactionOptions(isolation, read_only, deferrable, settings, role)
        make = partial(self._transaction, timeout, options)
        return cast("T", await retry(make, work, attempts))

    def _transaction(
        self, timeout: float | None, options: TransactionOptions | None
    ) -> Transaction[ACT]:
        if self._overridden is not None and current_task() not in self._sessions:
            return cast("Transaction[ACT]", OverriddenTransaction(self._block(timeout), options))
        return Transaction(self, timeout, options)
