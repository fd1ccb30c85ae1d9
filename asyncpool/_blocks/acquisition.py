"""`pool.acquire()`: a connection until it is released."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any

from asyncpool._blocks.commit import (
    require_no_lost_work,
    warn_of_open_work,
)
from asyncpool._blocks.connection_block import (
    in_use_error,
    is_still_leased,
    reject_early_return,
)
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._core.lease import Lease
from asyncpool._psycopg.driver import ACT


async def _nothing() -> Any:
    """Do nothing; it only makes `USED`."""


USED = _nothing()
"""The coroutine of an acquisition that has got an idle connection; awaiting it raises."""
USED.close()


class Acquisition(Lease, Coroutine[Any, Any, ACT]):
    """`pool.acquire()`: await it, or use `async with`, which releases the connection at the end.

    It is its own lease if a connection was idle. It is a `Coroutine`, so that
    `asyncio.create_task` and `wait_for` accept it.
    """

    __slots__ = ("_conn", "_coroutine", "_entry", "_get", "_lease", "_pool", "_timeout")

    def __init__(
        self,
        pool: SupportsBorrowing[ACT],
        timeout: float | None,
        get: Callable[[float | None], Coroutine[Any, Any, ACT]] | None = None,
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._get = get
        """The function that acquires, if it is not the pool's own `getconn`."""
        self._coroutine: Coroutine[Any, Any, ACT] | None = None
        self.notes = None

    @property
    def is_manual(self) -> bool:  # type: ignore[override]
        """See `Lease`."""
        return not hasattr(self, "_conn")

    def _started(self) -> Coroutine[Any, Any, ACT]:
        if self._coroutine is None:
            self._coroutine = (self._get or self._pool.getconn)(self._timeout)
        return self._coroutine

    def __await__(self) -> Generator[Any, Any, ACT]:
        pool = self._pool
        if self._coroutine is not None:
            raise in_use_error()
        if self._get is None and not pool._sessions:
            conn = pool._acquire_now(self)
            if conn is not None:
                self._coroutine = USED
                return conn
        return (yield from self._started().__await__())

    def send(self, value: Any) -> Any:
        """See `Coroutine`."""
        return self._started().send(value)

    def throw(self, *args: Any) -> Any:
        """See `Coroutine`."""
        return self._started().throw(*args)

    def close(self) -> None:
        """See `Coroutine`."""
        if self._coroutine is not None:
            self._coroutine.close()

    async def __aenter__(self) -> ACT:
        conn = self._conn = await self
        core = self._pool._core
        self._entry = entry = core.ledger.leased.get(conn)
        if entry is not None:
            self._lease = None if entry.lease is self else core.bind(conn)
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pool, conn, entry = self._pool, self._conn, self._entry
        if entry is None:  # an overridden method has returned it
            await pool._return_conn(conn, failing=kind is not None, as_is=True)
            return
        lease = self if self._lease is None else self._lease
        is_plain = entry.lease is lease and lease.notes is None and self._get is None
        if is_plain and pool._core.release_now(entry):
            conn._pool = None
        elif is_still_leased(pool, conn, lease):
            await self._end(conn, failing=kind is not None)
        else:
            reject_early_return(pool, conn, failing=kind is not None)

    async def _end(self, conn: ACT, *, failing: bool) -> None:
        pool = self._pool
        is_ours = pool._core.lease_of(conn) is not None and pool._session_of(conn) is None
        if not failing and is_ours:
            warn_of_open_work(pool._core, conn)
            try:
                require_no_lost_work(conn)
            except BaseException:
                await pool._return_conn(conn, failing=True)
                raise
        await pool._return_conn(conn, failing=failing, as_is=True)
