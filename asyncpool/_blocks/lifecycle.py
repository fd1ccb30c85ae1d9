"""The life of the pool: open, wait, close, replace what has outlived its event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import psycopg

from asyncpool._blocks.notifications import Notifications
from asyncpool._blocks.renewal import SupportsRenewal, close_after_loop_ended, loop_has_ended, renew
from asyncpool._blocks.supports import SupportsBorrowing
from asyncpool._blocks.turn import Turns
from asyncpool._core.maintenance import ping_all, run_maintenance
from asyncpool._core.runtime import Phase
from asyncpool._core.settings import duration, sizes
from asyncpool._psycopg.callbacks import resolve
from asyncpool._psycopg.driver import ACT
from asyncpool._psycopg.own_statements import ping
from asyncpool.errors import PoolForked


class Lifecycle(SupportsBorrowing[ACT], SupportsRenewal[ACT]):
    """Opens, resizes, drains and closes a pool."""

    _keeps_idle: ClassVar[bool]
    _lazy: bool
    """Whether the first use opens the pool."""
    _reconnect_failed: Callable[[Any], Any] | None
    _turns: Turns
    _listening: set[Notifications[Any]]
    """The blocks of `listen` that have begun and not ended."""

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool on the running event loop; do nothing if it is open there already.

        If the loop of an open pool has ended, the pool opens again on this one.

        Args:
            wait: whether to wait until `min_size` connections are open.
            timeout: seconds to wait for them; see `wait`.

        Raises:
            PoolClosed: the pool was closed; a closed pool cannot be opened again.
            PoolWrongLoop: the pool is open on another loop.
            PoolTimeout: as for `wait`.
        """
        if loop_has_ended(self._core) and not self._core.closed:
            renew(self)
        if self._core.runtime.phase in (Phase.NEW, Phase.FORKED):
            self._start()
        self._core.require_usable()
        if wait:
            await self.wait(timeout)

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until `min_size` connections are open, and those returned before it are clean.

        Any number of tasks may wait at any time. If a reset takes longer than `timeout`, return
        nevertheless: its connection is open.

        Args:
            timeout: seconds to wait.

        Raises:
            PoolTimeout: fewer were open after `timeout` seconds, or the server refuses access. The
                pool is closed, as in psycopg_pool, and the last connect error is the cause.
            PoolClosed: the pool is closed, or not open and `open` is false.
        """
        timeout = duration("timeout", timeout)
        self._ensure_open()
        self._core.require_usable()
        filled = None
        try:
            async with asyncio.timeout(timeout):
                filled = await self._core.readiness.wait()
                filled = filled and await self._settle()
            if not filled:
                failure = self._core.errors.unavailable()
                await self.close()
                try:
                    raise failure
                finally:
                    del failure  # its traceback has this frame
        except TimeoutError:
            ledger = self._core.ledger
            if filled and ledger.has_min_size:
                # A reset or a close takes longer, which is no reason to end a pool.
                self._core.require_usable()
                return
            opened, cause = ledger.remaining - ledger.opening, self._core.outages.last_error
            what = f"{opened} of {ledger.settings.min_size} connections are open"
            what = what if self._keeps_idle else "no connection was opened"
            await self.close()
            raise self._core.errors.not_ready(timeout, what, cause) from cause
        self._core.require_usable()

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool: wake all waiters with PoolClosed, wait for leases, close the connections.

        Iterations over notifications end first, without an error. When `close` returns, no
        connection, task or timer of the pool is left. A cancelled anyio scope does not interrupt
        it. If the calling task is cancelled, it gets its CancelledError at once, and the pool
        finishes closing in the background.

        Args:
            timeout: seconds to wait for leased connections, before they are closed too.
        """
        timeout = duration("timeout", timeout)
        if loop_has_ended(self._core):
            await close_after_loop_ended(self)
        if self._core.usable:
            for notifications in list(self._listening):
                notifications._end()
            self._turns.close()
        await self._core.close(timeout)

    async def closeall(self) -> None:
        """Close the pool and its leased connections without waiting; their open work is lost.

        Equivalent to `close(timeout=0)`.
        """
        await self.close(timeout=0)

    @property
    def closed(self) -> bool:
        """Whether the pool cannot be used: closed, or not open yet."""
        return self._core.runtime.phase is not Phase.OPEN

    @property
    def connection_class(self) -> type[ACT]:
        """The class whose `connect` makes the connections."""
        return self._driver.connection_class

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change both sizes; surplus connections are closed at once if idle, else on return.

        Args:
            min_size: the number of connections to keep open.
            max_size: the most connections, in every state; None: as many as `min_size`.

        Raises:
            TypeError, ValueError: a size is invalid; nothing changes.
        """
        min_size, max_size = sizes(min_size, max_size, keeps_idle=self._keeps_idle)
        self._leave_ended_loop()
        self._core.resize(min_size, max_size)

    async def check(self) -> None:
        """Ping all idle connections concurrently and replace those that fail.

        Each ping takes at most `ping_timeout` seconds. If the caller is cancelled, the pings go on
        in the background.

        Raises:
            PoolClosed, PoolForked, PoolWrongLoop: the pool cannot be used here.
        """
        self._ensure_open()
        self._core.require_usable()
        work = ping_all(self._core, list(self._core.ledger.idle))
        task = self._core.runtime.tasks.spawn(work, "pings")
        await asyncio.wait({task})
        if task.cancelled():
            self._core.require_usable()  # raises if the pool was closed during the pings
        else:
            task.result()

    async def drain(self) -> None:
        """Replace every current connection; leased connections when they are returned.

        Use it after a change that affects only new connections, such as a globally registered
        adapter.

        Raises:
            PoolClosed, PoolForked, PoolWrongLoop: the pool cannot be used here.
        """
        self._ensure_open()
        self._core.require_usable()
        self._core.drain()

    async def reconnect_failed(self) -> None:
        """Handle an outage of `reconnect_timeout` seconds; the pool calls this once per outage.

        The default calls the constructor's `reconnect_failed`; a subclass may override it.
        """
        if self._reconnect_failed is not None:
            await resolve(partial(self._reconnect_failed, self))

    @staticmethod
    async def check_connection(conn: psycopg.AsyncConnection[Any]) -> None:
        """Test a connection by one round trip outside a transaction, as the pool's `check=`.

        Args:
            conn: the connection to test.

        Raises:
            psycopg.OperationalError: the connection is broken.
        """
        await ping(conn)

    async def _settle(self) -> bool:
        """Wait for resets, or for the closing of what is not kept; return whether it is full."""
        tasks = self._core.runtime.tasks
        if cleaning := tasks.running("reset"):
            await asyncio.wait(cleaning)
            if self._keeps_idle:
                return await self._core.readiness.wait()
        if not self._keeps_idle and (closing := tasks.running("close")):
            await asyncio.wait(closing)
        return True

    def _start(self) -> None:
        self._core.open()
        self._core.runtime.tasks.spawn(run_maintenance(weakref.ref(self._core)), "maintenance")

    def _leave_ended_loop(self) -> None:
        if self._lazy and loop_has_ended(self._core) and not self._core.closed:
            renew(self)

    def _ensure_open(self) -> None:
        self._leave_ended_loop()
        phase = self._core.runtime.phase
        if phase is Phase.OPEN or phase is Phase.CLOSED:
            return
        if phase is Phase.FORKED:
            msg = f"pool {self.name!r} was opened before a fork: await pool.open() in the child"
            raise PoolForked(msg)
        if not self._lazy:
            raise self._core.errors.not_open()
        self._start()
