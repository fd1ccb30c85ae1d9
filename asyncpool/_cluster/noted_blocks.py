"""Blocks whose COMMIT brings a token along, for `own_writes()`.

The query for the token is sent in one packet with the block's COMMIT, so it takes no round trip of
its own. Where that is not possible, as in autocommit mode, the block leaves a note only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from asyncpool._blocks.connection_block import ConnectionBlock, TracedBlock
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._blocks.transaction import Transaction
from asyncpool._blocks.transaction_options import TransactionOptions
from asyncpool._cluster.own_writes import Noted, noted_of
from asyncpool._cluster.token import POSITION, Token
from asyncpool._psycopg.committing import AfterCommit, ask_after_commit, ask_nothing
from asyncpool._psycopg.driver import ACT


@contextmanager
def asking(conn: Any, *, wanted: bool) -> Iterator[Callable[[], Token | None]]:
    """Ask for a token with the next COMMIT of a connection; yield a function that returns it."""
    question: AfterCommit | None = ask_after_commit(conn, POSITION) if wanted else None

    def token() -> Token | None:
        row = None if question is None else question.row
        return None if row is None else Token.of_row(row)

    try:
        yield token
    finally:
        if question is not None:
            ask_nothing(conn)


class NotedBlock(ConnectionBlock[ACT]):
    """`connection()` in a context of `own_writes()`, which gets the token of the block's COMMIT."""

    __slots__ = ("_noted",)

    _noted: Noted | None
    """The context that knows of this block, which has not ended."""

    async def __aenter__(self) -> ACT:
        conn = await super().__aenter__()
        pool: Any = self._pool
        self._noted = noted = noted_of(pool.noted_for or pool)
        if noted is not None:
            noted.begin()
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._noted is None:
            await super().__aexit__(kind, error, tb)
            return
        wanted = kind is None and not self.joined and self.holds()
        with asking(None if self.joined else self._entry.conn, wanted=wanted) as token:
            try:
                await super().__aexit__(kind, error, tb)
            finally:
                self._end(token())

    async def abort(self, cleanup: Callable[[], Awaitable[object]]) -> None:
        """See `ConnectionBlock`."""
        try:
            await super().abort(cleanup)
        finally:
            self._end(None)

    def _end(self, token: Token | None) -> None:
        noted, self._noted = self._noted, None
        if noted is not None:
            noted.end(token)


class NotedTracedBlock(NotedBlock[ACT], TracedBlock[ACT]):
    """A `NotedBlock` for a pool with a `leak_timeout`."""

    __slots__ = ()


class NotedTransaction(Transaction[ACT]):
    """`transaction()` in a context of `own_writes()`, which cannot commit before its end.

    Args:
        pool, timeout, options: as for `Transaction`.
        noted: the context.
    """

    __slots__ = ("_noted",)

    def __init__(
        self,
        pool: SupportsBorrowing[ACT],
        timeout: float | None,
        options: TransactionOptions | None,
        noted: Noted,
    ) -> None:
        super().__init__(pool, timeout, options)
        self._noted = noted

    async def _enter(self) -> ACT:
        conn = await super()._enter()
        if self._join is None:
            self._noted.drop_use(self._lease)
        return conn

    async def _exit(self, kind: Exc, error: BaseException | None, tb: TracebackType | None) -> bool:
        joined = self._join is not None
        with asking(None if joined else self._conn, wanted=kind is None and not joined) as token:
            try:
                return await super()._exit(kind, error, tb)
            finally:
                if kind is None:
                    self._noted.note(token())
