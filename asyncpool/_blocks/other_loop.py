"""A block on an event loop other than the pool's, for code that was written for psycopg_pool.

Sockets are registered with a loop, and the pool's loop may run in another thread. So the block gets
a connection of its own, and touches nothing of the pool but the driver that opens and closes it.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import anyio

from asyncpool._blocks.commit import require_no_lost_work, run_shielded, wait_for_cancelled
from asyncpool._blocks.connection_block import PENDING, ConnectionBlock, in_use_error
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._core.pool import Core
from asyncpool._core.settings import duration
from asyncpool._psycopg.driver import ACT, CLOSE_TIMEOUT


def is_on_another_loop(core: Core[Any]) -> bool:
    """Whether the running event loop is not that of an open pool, and that one is not closed."""
    home = core.home
    if home is None or core.closed or home.is_closed():
        return False
    try:
        return asyncio.get_running_loop() is not home
    except RuntimeError:
        return False


class OtherLoopBlock(ConnectionBlock[ACT]):
    """A connection that is opened for the block, committed or rolled back, and closed at its end.

    It does not count in the pool's size.
    """

    __slots__ = ("_conn", "_others")

    _conn: ACT
    _others: set[OtherLoopBlock[ACT]]

    @classmethod
    def of(
        cls,
        pool: SupportsBorrowing[ACT],
        timeout: float | None,
        others: set[OtherLoopBlock[ACT]],
    ) -> Self:
        """Return a block that was not entered.

        Args:
            pool: the pool whose driver connects.
            timeout: seconds to wait for the connection; None: the pool's `timeout`.
            others: the pool's blocks of this kind that have a connection; at most `max_size`.
        """
        self = cls()
        self._pool, self._timeout, self._entry, self._others = pool, timeout, None, others
        return self

    async def __aenter__(self) -> ACT:
        if self._entry is not None:
            raise in_use_error()
        core = self._pool._core
        if len(self._others) >= core.settings.max_size:
            raise core.errors.wrong_loop(core.home)
        limit = core.settings.timeout if self._timeout is None else self._timeout
        self._entry = PENDING
        self._others.add(self)  # one step, as other threads do so too
        try:
            async with asyncio.timeout(duration("timeout", limit)):
                self._conn = await self._pool._driver.open()
        except TimeoutError as error:
            self._others.discard(self)
            raise core.errors.not_connected(limit) from error
        except BaseException:
            self._others.discard(self)
            raise
        return self._conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        conn = self._conn
        try:
            if kind is None:
                await wait_for_cancelled(self._pool._driver, conn)
                require_no_lost_work(conn)
                if not conn.closed:
                    await run_shielded(conn.commit)
        finally:
            # The end of the session is the roll-back of a failed block.
            self._others.discard(self)
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await self._pool._driver.close(conn)
