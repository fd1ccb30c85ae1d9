"""The pool for writes: `token()`, and what it notes of the writes in a context of `own_writes()`.

Outside of such a context nothing is noted, and blocks are those of any pool.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from psycopg.abc import Params, Query
from psycopg.rows import tuple_row

from asyncpool._blocks.connection_block import ConnectionBlock, TracedBlock
from asyncpool._blocks.transaction import Transaction
from asyncpool._blocks.transaction_options import TransactionOptions
from asyncpool._cluster.noted_blocks import NotedBlock, NotedTracedBlock, NotedTransaction
from asyncpool._cluster.own_writes import Noted, OwnWrites, noted_of, nothing_noted, own_writes
from asyncpool._cluster.token import POSITION, Token
from asyncpool._core.lease import Lease
from asyncpool._pipeline.results import Answer
from asyncpool._psycopg.driver import ACT
from asyncpool._sql.kinds import Kind
from asyncpool.pool import AsyncConnectionPool

T = TypeVar("T")


class NotingPool(AsyncConnectionPool[ACT]):
    """A pool whose writes can be read elsewhere, given their token."""

    noted_for: object = None
    """The key of the pool's contexts, which differs from those of other pools; None: the pool."""

    async def token(self, *, timeout: float | None = None) -> str:
        """Return a token for all that was committed by now, which `cluster.read` takes as `after=`.

        It is a short str, such as "16/B374D848@1", for a cookie or a header. It is right also with
        `synchronous_commit = off`. In a block of `cluster.own_writes()` it is not needed.

        Args:
            timeout: as for `execute`.

        Raises:
            psycopg.errors.ObjectNotInPrerequisiteState: the server is no primary any more.
            psycopg.OperationalError: `PoolTimeout` and all others of `fetchone`.
        """
        return str(await self.position(timeout))

    async def position(self, timeout: float | None = None) -> Token:
        """Return what `token` does, as a `Token`."""
        with nothing_noted():
            row = await self.fetchone(POSITION, timeout=timeout, row_factory=tuple_row)
        return Token.of_row(row or ())

    def own_writes(self, after: str | None = None) -> OwnWrites:
        """Return a context of this pool's writes; see `Cluster.own_writes`."""
        return own_writes(self.noted_for or self, self.position, after)

    # What a context notes

    def _noted(self) -> Noted | None:
        return noted_of(self.noted_for or self)

    @property
    def _block_class(self) -> type[ConnectionBlock[ACT]]:
        if self._noted() is None:
            return self._plain_block_class
        return NotedTracedBlock if issubclass(self._plain_block_class, TracedBlock) else NotedBlock

    @_block_class.setter
    def _block_class(self, value: type[ConnectionBlock[ACT]]) -> None:
        self._plain_block_class = value

    def _transaction(
        self, timeout: float | None, options: TransactionOptions | None
    ) -> Transaction[ACT]:
        if (noted := self._noted()) is None:
            return super()._transaction(timeout, options)
        return NotedTransaction(self, timeout, options, noted)

    async def _borrow(self, timeout: float | None) -> ACT:
        conn = await super()._borrow(timeout)
        if (noted := self._noted()) is not None and (lease := self._core.lease_of(conn)):
            noted.add_use(lease, self._use(conn, lease))
        return conn

    def _acquire_now(self, lease: Lease) -> ACT | None:
        conn = super()._acquire_now(lease)
        if conn is not None and (noted := self._noted()) is not None:
            noted.add_use(lease, self._use(conn, lease))
        return conn

    def _use(self, conn: ACT, lease: Lease) -> Callable[[], bool]:
        """Return a function that tells whether a lease lasts; it does not hold the connection."""
        return partial(_lasts, self, weakref.ref(conn), lease)

    def _has_leased(self, conn: ACT, lease: Lease) -> bool:
        return self._core.lease_of(conn) is lease

    def _run_one(
        self, answer: Answer, query: Query, *args: Any, **keywords: Any
    ) -> Coroutine[Any, Any, Any]:
        work = super()._run_one(answer, query, *args, **keywords)
        if (noted := self._noted()) is None:
            return work
        is_read = self._dispatcher.profiles.get(query).kind is Kind.READ
        return _unnoted(work) if is_read else _noting(noted, work)

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, timeout: float | None = None
    ) -> int:
        """See `AsyncConnectionPool.executemany`."""
        work = super().executemany(query, params_seq, timeout=timeout)
        return await _noting(self._noted(), work)

    async def batch(
        self,
        statements: Iterable[Query | tuple[Query, Params | None]],
        *,
        timeout: float | None = None,
    ) -> list[list[Any] | str]:
        """See `AsyncConnectionPool.batch`."""
        work = super().batch(statements, timeout=timeout)
        return await _noting(self._noted(), work)


async def _noting(noted: Noted | None, work: Coroutine[Any, Any, T]) -> T:
    """Run a write, and note it in a context, also if it fails: its outcome may be unknown."""
    try:
        return await work
    finally:
        if noted is not None:
            noted.note()


async def _unnoted(work: Coroutine[Any, Any, T]) -> T:
    """Run a plain read, also on a borrowed connection, without a note."""
    with nothing_noted():
        return await work


def _lasts(pool: NotingPool[Any], found: weakref.ref[Any], lease: Lease) -> bool:
    conn = found()
    return conn is not None and pool._has_leased(conn, lease)
