"""The methods of the pool for one transaction, tried once or several times."""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Mapping
from functools import partial
from typing import cast

from asyncpool._blocks.overrides import OverriddenTransaction
from asyncpool._blocks.pool_blocks import PoolBlocks
from asyncpool._blocks.retrying import Retrying
from asyncpool._blocks.transaction import Transaction
from asyncpool._blocks.transaction_options import (
    Isolation,
    Setting,
    TransactionOptions,
    options_of,
)
from asyncpool._core.settings import count
from asyncpool._psycopg.driver import ACT


class PoolTransactions(PoolBlocks[ACT]):
    """`transaction` and `retrying`."""

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

        `psycopg.Rollback` raised in the block rolls back and does not leave the block. The options
        are sent with BEGIN, in one round trip, and are gone with the transaction, however it ends;
        the connection keeps none of them.

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

    def retrying(
        self,
        timeout: float | None = None,
        *,
        attempts: int = 5,
        isolation: Isolation | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        settings: Mapping[str, Setting] | None = None,
        role: str | None = None,
    ) -> Retrying[ACT]:
        """Run a transaction again if it deadlocked or could not be serialized.

        `async for attempt in pool.retrying():` with `async with attempt as conn:` in it. Each
        attempt is a `transaction` block on a newly borrowed connection. If the server ends it with
        SQLSTATE 40001 or 40P01, in a statement or at the COMMIT, it is rolled back, and the next
        attempt follows after a pause of at most 20 ms, doubled each time up to a second. Any other
        error ends the loop, and so does the failure of the last attempt.

        Args:
            timeout: as for `connection`, for each attempt.
            attempts: the largest number of attempts, at least 1.
            isolation, read_only, deferrable, settings, role: as for `transaction`.

        Raises:
            TypeError, ValueError: an argument is invalid.
            psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected: in the last
                attempt.
            psycopg.Error: all others of `transaction`.
        """
        if count("attempts", attempts) < 1:
            msg = f"attempts must be at least 1: got {attempts}"
            raise ValueError(msg)
        options = TransactionOptions(isolation, read_only, deferrable, settings, role)
        return Retrying(partial(self._transaction, timeout, options), attempts)

    def _transaction(
        self, timeout: float | None, options: TransactionOptions | None
    ) -> Transaction[ACT]:
        if self._overridden is not None and current_task() not in self._sessions:
            return cast("Transaction[ACT]", OverriddenTransaction(self._block(timeout), options))
        return Transaction(self, timeout, options)
