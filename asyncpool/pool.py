"""`AsyncConnectionPool`, the pool that an application uses, with psycopg_pool's names."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import sys
import warnings
import weakref
from asyncio import current_task
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Self, cast

import psycopg
from psycopg.rows import AsyncRowFactory, TupleRow

from asyncpool._blocks.blocks import (
    Acquisition,
    Cursor,
    Exc,
    Lease,
    SessionBlock,
    TracedLease,
    Transaction,
    note,
)
from asyncpool._blocks.commit import commit, warn_of_open_work
from asyncpool._blocks.hints import give_hints
from asyncpool._blocks.keys import Keys
from asyncpool._blocks.one_shots import OneShots
from asyncpool._blocks.options import PoolOptions
from asyncpool._blocks.overrides import (
    NAMES,
    ConnectionOverrideLease,
    LeaseTransaction,
    OverriddenLease,
    Overrides,
    borrow,
    release_through_override,
)
from asyncpool._blocks.session import Session
from asyncpool._core.budget import Budget
from asyncpool._core.maintenance import ping_all, run_maintenance
from asyncpool._core.pool import Core
from asyncpool._core.runtime import Phase
from asyncpool._core.settings import Settings, count, duration, sizes
from asyncpool._core.stacks import capture
from asyncpool._diagnostics.explain import explain
from asyncpool._diagnostics.leaks import log_leak
from asyncpool._diagnostics.snapshot import snapshot, snapshot_from_any_thread
from asyncpool._pipeline.dispatcher import Dispatcher
from asyncpool._psycopg.callbacks import resolve
from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.driver import (
    ACT,
    Conninfo,
    Kwargs,
    PsycopgDriver,
    ResetLevel,
    can_share,
    ping,
    version,
)
from asyncpool._psycopg.process import (
    close_after_loop_ended,
    loop_has_ended,
    renew,
    renew_after_fork,
)
from asyncpool.errors import (
    PoolClosed,
    PoolError,
    PoolForked,
    PoolTimeout,
    PoolWrongLoop,
    ReleaseError,
)
from asyncpool.faults import Fault, classify
from asyncpool.health import HealthReport, check_health
from asyncpool.insight import Explanation
from asyncpool.sizing import Advice, advise
from asyncpool.stats import PoolStats, psycopg_keys, since

_numbers = itertools.count(1)

# The cast gives the default of ACT: type checkers read it from the parameter or the TypeVar.
DEFAULT_CLASS = cast("type[psycopg.AsyncConnection[TupleRow]]", Connection)


class AsyncConnectionPool(PoolOptions, OneShots[ACT]):
    """A bounded pool of psycopg connections for the tasks of one event loop.

    The constructor does no I/O and needs no running loop. The pool opens on `async with pool:`, on
    `await pool.open()`, or, if `open` is true, on its first use.

    Args:
        conninfo: a libpq connection string, or a plain or async callable that returns one for each
            new connection (rotated credentials).
        connection_class: the class whose `connect` makes the connections: `asyncpool.Connection`,
            a class derived from it, or any other `psycopg.AsyncConnection`. The pool does not watch
            the sockets of the last, and they are slower.
        kwargs: keyword arguments for `connect`, or a plain or async callable that returns them.
        min_size: the number of connections to keep open.
        max_size: the most connections, in every state; None: as many as `min_size`.
        open: whether the first use opens the pool; if false, use before `open()` is an error.
        configure: an async callable to set up each new connection before its first lease.
        check: an async callable to test each connection before it is leased; if it raises, the
            connection is replaced and the next one is tried without a pause.
        reset: how the pool cleans a returned connection in a background task: None or "rollback"
            (end the open transaction), "session" (also settings, role, LISTEN, cursors and advisory
            locks), "discard" (also temporary tables, values of sequences and prepared statements),
            or an async callable. The levels take one round trip. "session" and "discard" also
            restore psycopg's attributes, such as autocommit and row_factory, and undo each SET of
            `configure`: give permanent settings as `options=-c name=value` in the conninfo.
        name: the pool's name in messages and logs; None: "pool-1" and so on.
        close_returns: whether `conn.close()` returns the connection (psycopg 3.3 or later).
        timeout: seconds that a request waits for a connection.
        max_waiting: the most requests in the wait queue; 0: no limit.
        max_lifetime: seconds after which a connection is replaced, minus up to 5 % of jitter.
        max_idle: seconds after which an idle connection above `min_size` is closed.
        reconnect_timeout: seconds of failing connects after which `reconnect_failed` is called.
            The pool keeps trying while requests wait or the size is below `min_size`.
        reconnect_failed: a plain or async callable that gets the pool, once for each outage.
        leak_timeout: seconds that a lease may last before a warning says who has the connection,
            where it was borrowed and its last statement; None: no limit. It costs each request less
            than a microsecond.
        fail_fast_after: seconds of failing connects after which requests fail at once instead of
            after `timeout`, while no connection can be leased. If the server refuses access, as for
            a wrong password, they fail at once, or after 15 s if it gave access before.
        classify: a callable that says what an error means for the pool; see `asyncpool.classify`.
        budget: a limit on the connections of several pools together.
        num_workers: at least 1; accepted for compatibility with psycopg_pool, without effect.
        ping_interval: seconds of silence after which an idle connection is pinged.
        ping_timeout: seconds that a ping may take.
        pipeline: whether one-shot statements use libpq's pipeline mode, in which plain reads of
            many tasks share connections; if false, each statement borrows a connection.
        shared_size: the most connections that one-shots share; None: all of them.

    Raises:
        TypeError, ValueError: an argument is invalid; the message has its name and value.
    """

    _keeps_idle: ClassVar[bool] = True

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        connection_class: type[ACT] = DEFAULT_CLASS,  # type: ignore[assignment]
        kwargs: Kwargs | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = True,  # noqa: A002
        configure: Callable[[ACT], Awaitable[None]] | None = None,
        check: Callable[[ACT], Awaitable[None]] | None = None,
        reset: ResetLevel | Callable[[ACT], Awaitable[None]] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: Callable[[Self], Any] | None = None,
        leak_timeout: float | None = None,
        fail_fast_after: float = 60.0,
        classify: Callable[[BaseException], Fault | None] = classify,
        budget: Budget | None = None,
        num_workers: int = 3,
        ping_interval: float = 30.0,
        ping_timeout: float = 5.0,
        pipeline: bool = True,
        shared_size: int | None = None,
    ) -> None:
        if count("num_workers", num_workers) < 1:
            msg = f"num_workers must be at least 1: got {num_workers}"
            raise ValueError(msg)
        for what, given in (
            ("configure", configure),
            ("check", check),
            ("reconnect_failed", reconnect_failed),
            ("classify", classify),
        ):
            if given is not None and not callable(given):
                msg = f"{what} must be a callable, not {given!r}"
                raise TypeError(msg)
        if not (budget is None or isinstance(budget, Budget)):
            msg = f"budget must be an asyncpool.Budget, not {budget!r}"
            raise TypeError(msg)
        if close_returns and version() < (3, 3):
            msg = f"close_returns needs psycopg 3.3 or later: this is {psycopg.__version__}"
            raise ValueError(msg)
        self.close_returns = close_returns
        self.num_workers = num_workers
        self._lazy = open is None or bool(open)
        min_size, max_size = sizes(min_size, max_size, keeps_idle=self._keeps_idle)
        self._settings = Settings(
            name=name or f"pool-{next(_numbers)}",
            min_size=min_size,
            max_size=max_size,
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            fail_fast_after=fail_fast_after,
            leak_timeout=math.inf if leak_timeout is None else leak_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            keeps_idle=self._keeps_idle,
        )
        self._driver = PsycopgDriver(conninfo, kwargs, connection_class, configure, reset)
        self._driver.owner = weakref.ref(self)
        self._check = check
        self._budget = budget
        self._overridden = Overrides(type(self), ORIGINALS)
        self._is_overridden = bool(self._overridden)
        """Whether a subclass overrides a method that borrows or returns a connection."""
        self._traces = leak_timeout is not None
        """Whether the place where each connection is borrowed is recorded."""
        self._lease: type[Lease[ACT]] = TracedLease if self._traces else Lease
        if any(name in self._overridden for name in NAMES[1:]):
            self._lease = OverriddenLease
        self._cleanups: dict[ACT, Callable[[], Awaitable[object]]] = {}
        """By connection: the work to do first when a subclass's method returns it."""
        self._blocks: dict[ACT, Lease[ACT]] = {}
        """By connection of a one-shot: its block, if a subclass overrides `connection`."""
        self._classify = classify
        self._reconnect_failed: Callable[[Any], Any] | None = reconnect_failed
        self._slow_wait: tuple[float, Callable[[float], None]] = (math.inf, _ignore)
        self._pipeline = bool(pipeline) and not self._is_overridden
        self._shared_size = None if shared_size is None else count("shared_size", shared_size)
        self._core = self._new_core()
        self._last_pop = snapshot(self._core)
        renew_after_fork(self)

    def __repr__(self) -> str:
        now = snapshot(self._core)
        bound = self._core.settings.max_size_text
        sizes = f"size={now.size}/{bound} idle={now.idle} leased={now.leased}"
        return f"<{type(self).__name__} {self.name!r} {sizes} waiting={now.waiting}>"

    # Borrowing and returning

    def connection(self, timeout: float | None = None) -> Lease[ACT]:
        """Borrow a connection for a block: `async with pool.connection() as conn`.

        At the end of the block its transaction is committed in the caller's task, so that errors
        surface there. If the block raises, the pool rolls back in a background task. If the
        transaction has failed and the block handled the error, the commit is a rollback as in
        psycopg, and a warning names the place.

        Args:
            timeout: seconds to wait for a connection; None: the pool's `timeout`. 0 takes an idle
                connection or fails at once.

        Raises:
            PoolTimeout: on entry, if no connection became available in time.
            TooManyRequests: on entry, if `max_waiting` requests wait already.
            PoolClosed: the pool is closed, or was closed while the block waited or ran.
            psycopg.OperationalError: on exit, if the connection was closed, by anyone, while work
                may have been uncommitted.
        """
        lease = self._lease()
        lease._pool = self
        lease._timeout = timeout
        return lease

    def _block(self, timeout: float | None) -> Lease[ACT]:
        """Return what `connection` does, for blocks and one-shots that build on it.

        A subclass may override `connection`.
        """
        if self._is_overridden and self._overridden.applies("connection"):
            return ConnectionOverrideLease(self, self.connection(timeout))
        return AsyncConnectionPool.connection(self, timeout)

    def transaction(self, timeout: float | None = None) -> Transaction[ACT]:
        """Borrow a connection for a block that is one transaction, in autocommit mode too.

        `psycopg.Rollback` raised in the block rolls back and does not leave the block.

        Args:
            timeout: as for `connection`.

        Raises:
            psycopg.errors.InFailedSqlTransaction: on exit, if the block handled the error of a
                statement, so that the transaction cannot be committed.
            psycopg.OperationalError: `PoolTimeout` and all others of `connection`.
        """
        if self._is_overridden and current_task() not in self._sessions:
            return cast("Transaction[ACT]", LeaseTransaction(self._block(timeout)))
        return Transaction(self, timeout)

    def session(self, timeout: float | None = None) -> SessionBlock[ACT]:
        """Borrow one connection for a block and for all that this task borrows inside the block.

        The work is committed at the end and rolled back on error, as with `connection`. If a
        transaction is open, each block inside is a savepoint, and its failure undoes only its own
        work; otherwise the block inside commits its work. One-shots run in the open transaction, or
        by themselves if there is none. `release` of a connection borrowed inside ends only that
        use. `getconn(key=...)` borrows another connection. Tasks started inside are not part of the
        session. If an async generator holds the session and is abandoned, the session ends for the
        task.

        Args:
            timeout: as for `connection`.

        Raises:
            psycopg.errors.InFailedSqlTransaction: as for `transaction`.
            ReleaseError: on exit, if a block inside with work has not ended, has ended in another
                task, or could not be undone: the whole session is rolled back. Also if an async
                generator that holds the session is closed early, and the roll-back undoes work
                done outside the generator.
            PoolDeadlock: from a block or one-shot inside, while a stream(), COPY or notifies() of
                the task is open on the connection.
            psycopg.OperationalError: `PoolTimeout` and all others of `connection`.
        """
        return SessionBlock(self, self._block(timeout))

    def cursor(
        self,
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
        autocommit: bool | None = None,
        timeout: float | None = None,
    ) -> Cursor[ACT]:
        """Borrow a connection for a block and open a cursor on it.

        The block commits and rolls back as that of `connection`.

        Args:
            binary: whether results come in PostgreSQL's binary format.
            row_factory: the cursor's row factory; None: the connection's.
            autocommit: the connection's mode for the block, restored however the block ends; None:
                unchanged.
            timeout: as for `connection`.

        Raises:
            TypeError: `autocommit` is neither a bool nor None.
            psycopg.OperationalError: `PoolTimeout` and all others of `connection`.
        """
        if autocommit is not None and not isinstance(autocommit, bool):
            msg = f"autocommit must be True, False or None, not {autocommit!r}"
            raise TypeError(msg)
        keywords: dict[str, Any] = {} if row_factory is None else {"row_factory": row_factory}
        return Cursor(
            self._block(timeout),
            lambda conn: conn.cursor(binary=binary, **keywords),
            autocommit,
        )

    def acquire(self, timeout: float | None = None, *, session: bool = True) -> Acquisition[ACT]:
        """Borrow a connection until `release`: `conn = await pool.acquire()`.

        `async with pool.acquire() as conn` returns it at the end of the block and commits nothing.
        A transaction that is open when the connection is returned is rolled back, with a warning
        that names the place.

        Args:
            timeout: as for `connection`.
            session: whether to take part in the task's `session()`, if it is in one; if false,
                another connection is borrowed, and no method of a subclass is called.

        Raises:
            PoolTimeout, TooManyRequests, PoolClosed: as for `connection`.
        """
        if not session:
            return Acquisition(self, timeout, self._borrow)
        if not self._is_overridden:
            return Acquisition(self, timeout)
        if self._overridden.applies("getconn"):
            return Acquisition(self, timeout, self.getconn)
        return Acquisition(self, timeout, partial(AsyncConnectionPool.getconn, self))

    async def release(self, conn: ACT) -> None:
        """Return a connection without waiting; the pool cleans it in a background task.

        Args:
            conn: the connection that was borrowed.

        Raises:
            ReleaseError: the connection belongs to another pool or to none, or was already
                returned.
            PoolClosed: the pool was closed during the lease, and uncommitted work is lost.
        """
        if self._is_overridden and self._overridden.leads("release", "putconn", conn):
            await self._overridden.release_through_override(self, "putconn", conn)
            return
        if getattr(conn, "_pool", None) is not self:
            raise self._not_leased(conn)
        if not (self._sessions or self._autocommit_modes or self._keys.held):
            # The fast path: the common case of the code below, inlined.
            if self._core.release_now(conn):
                conn._pool = None
                return
        elif (session := self._sessions.get(conn)) is not None:
            session.end_use()
            return
        warn_of_open_work(self._core, conn)
        self._return(conn)
        self._keys.forget(conn)

    async def getconn(self, timeout: float | None = None, *, key: Hashable | None = None) -> ACT:
        """Borrow a connection as `acquire` does, or the connection that belongs to a key.

        A key keeps its connection from the first `getconn` until the connection is returned in any
        way. Further calls with the key get the same connection at once, and must take turns.

        Args:
            timeout: as for `connection`.
            key: any hashable; None: a connection for this caller alone.

        Raises:
            TypeError: the key is not hashable.
            PoolTimeout, TooManyRequests, PoolClosed: as for `connection`.
        """
        if key is not None:
            self._ensure_open()
            self._core.admit()
            return await self._keys.borrow(key, timeout, self._borrow)
        if self._sessions and (session := self._sessions.get(current_task())) is not None:
            return await session.borrow(timeout)
        return await self._borrow(timeout)

    async def putconn(self, conn: ACT, key: Hashable | None = None, *, close: bool = False) -> None:
        """Return a connection as `release` does, and free its key if it has one.

        Args:
            conn: the connection that was borrowed.
            key: the key that the connection must belong to; None: any or none.
            close: whether to close the connection instead of leasing it again; the connection of a
                session is closed at the end of the session.

        Raises:
            TypeError: the key is not hashable.
            ReleaseError: as for `release`, or the connection does not belong to the key.
            PoolClosed: as for `release`.
        """
        if key is not None:
            self._keys.require(key, conn)
        if not close:
            if self._is_overridden and self._overridden.leads("putconn", "release", conn):
                await self._overridden.release_through_override(self, "release", conn)
            else:
                await AsyncConnectionPool.release(self, conn)
            return
        if getattr(conn, "_pool", None) is not self:
            raise self._not_leased(conn)
        if (session := self._sessions.get(conn)) is not None:
            session.end_use()
            session.entry.retire()
            return
        self._return(conn, discard=True)
        self._keys.forget(conn)

    # Opening and closing

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
        self._core.admit()
        if wait:
            await self.wait(timeout)

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until `min_size` connections are open.

        Any number of tasks may wait at any time.

        Args:
            timeout: seconds to wait.

        Raises:
            PoolTimeout: `timeout` seconds have passed, or the server refuses access. The pool is
                closed, as in psycopg_pool, and the last connect error is the cause.
            PoolClosed: the pool is closed, or not open and `open` is false.
        """
        timeout = duration("timeout", timeout)
        self._ensure_open()
        self._core.admit()
        try:
            async with asyncio.timeout(timeout):
                filled = await self._core.readiness.wait()
            if not filled:
                failure = self._core.errors.unavailable()
                await self.close()
                try:
                    raise failure
                finally:
                    del failure  # its traceback has this frame
        except TimeoutError:
            ready, cause = snapshot(self._core), self._core.outages.last_error
            await self.close()
            opened = f"{ready.size - ready.opening} of {ready.min_size} connections were opened"
            what = opened if self._keeps_idle else "no connection was opened"
            msg = f"not ready within {timeout:g} s: {what}, so the pool was closed"
            raise PoolTimeout(msg, timeout=timeout, max_size=ready.max_size) from cause
        self._core.admit()

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool: wake all waiters with PoolClosed, wait for leases, close the connections.

        When it returns, no connection, task or timer of the pool is left. A cancelled anyio scope
        does not interrupt it. If the calling task is cancelled, it gets its CancelledError at once,
        and the pool finishes closing in the background.

        Args:
            timeout: seconds to wait for leased connections, before they are closed too.
        """
        timeout = duration("timeout", timeout)
        if loop_has_ended(self._core):
            await close_after_loop_ended(self)
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
        self._core.admit()
        work = ping_all(self._core, list(self._core.ledger.idle))
        task = self._core.runtime.tasks.spawn(work, "check")
        await asyncio.wait({task})
        if task.cancelled():
            self._core.admit()  # raises if the pool was closed during the pings
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
        self._core.admit()
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

    # Observing

    async def health(self, timeout: float = 1.0) -> HealthReport:
        """Report whether the pool can serve requests, without raising or joining the wait queue.

        A pool that opens on its first use opens on this call too.

        Args:
            timeout: seconds that the one ping, or the one connect of a null pool, may take.
        """
        with contextlib.suppress(PoolError):
            self._ensure_open()
        return await check_health(self._core, timeout)

    async def advise(
        self, workers: int = 1, *, utilisation: float = 0.8, p99_wait: float | None = None
    ) -> Advice:
        """Recommend a size for the pool from the load measured since it was opened.

        The model assumes random arrivals; the quantiles are those of the last 1,024 uses. The pool
        asks the server, for at most a second, how many connections it leaves to this role; if that
        fails, the advice says why.

        Args:
            workers: the number of pools like this one on the same server, such as one per process.
            utilisation: the largest average share of the connections in use, between 0 and 1.
            p99_wait: seconds that 99 of 100 requests may wait at most; None: no limit.

        Returns:
            The measurements, the expected waits at several sizes and the recommended size.

        Raises:
            TypeError, ValueError: an argument is invalid.
            PoolClosed, PoolForked, PoolWrongLoop: the pool cannot be used here.
        """
        self._ensure_open()
        self._core.admit()
        return await advise(self._core, self.fetchval, workers, utilisation, p99_wait)

    def stats(self) -> PoolStats:
        """Return the current sizes and the counters since the pool was made.

        A thread without an event loop may call it too: the snapshot is then made on the pool's
        loop. If that loop is busy for a second, the durations are those of the last snapshot.
        """
        return snapshot_from_any_thread(self._core)

    def get_stats(self) -> dict[str, int]:
        """Return the statistics under the keys of psycopg_pool's `get_stats`."""
        return psycopg_keys(since(snapshot(self._core), self._last_pop))

    def pop_stats(self) -> dict[str, int]:
        """Return what `get_stats` does, and restart its counters at zero."""
        now = snapshot(self._core)
        before, self._last_pop = self._last_pop, now
        return psycopg_keys(since(now, before))

    def on_slow_wait(self, threshold: float, callback: Callable[[float], None] | None) -> None:
        """Set a callback for long waits for a connection, including waits that fail.

        The pool calls it right after the wait, in the task that waited. A pool has one callback: a
        new one replaces the old one.

        Args:
            threshold: seconds from which a wait is long.
            callback: a plain function that gets the seconds of the wait; None: no callback.

        Raises:
            TypeError, ValueError: an argument is invalid.
        """
        limit = duration("threshold", threshold)
        if callback is not None and not callable(callback):
            msg = f"callback must be callable or None: got {callback!r}"
            raise TypeError(msg)
        self._slow_wait = (math.inf, _ignore) if callback is None else (limit, callback)
        self._core.slow_wait, self._core.on_slow_wait = self._slow_wait

    def explain(self) -> Explanation:
        """Explain who has which connection, who waits, what failed and what to do.

        `str()` of the result is text for people. It contains no password and no parameter of a
        statement.
        """
        return explain(self._core)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        core = getattr(self, "_core", None)
        if core is None or core.runtime.phase is not Phase.OPEN:
            return
        warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, 2, source=self)
        for conn in core.abandon_all():
            conn._pool = None
            with contextlib.suppress(StopIteration, Exception):
                conn.close().send(None)

    def _new_core(self) -> Core[ACT]:
        pool = weakref.ref(self)
        core = Core(
            self._settings,
            self._driver,
            check=None if self._check is None else partial(self._driver.run_check, self._check),
            on_outage=partial(_handle_outage, pool),
            classify=self._classify,
            on_leak=partial(_report_leak, pool),
            is_listening=self._driver.is_listening,
            budget=self._budget,
        )
        enabled = self._pipeline and self._shared_size != 0 and can_share(self.connection_class)
        self._dispatcher = Dispatcher(
            core, self._shared_size, enabled=enabled, passes_on=not self._driver.resets
        )
        core.slow_wait, core.on_slow_wait = self._slow_wait
        self._keys: Keys[ACT] = Keys(core)
        self._autocommit_modes: dict[ACT, bool] = {}
        self._sessions: dict[object, Session[ACT]] = {}
        return core

    def _renew(self) -> None:
        self._settings = self._core.settings
        self._core = self._new_core()
        self._last_pop = snapshot(self._core)

    def _start(self) -> None:
        self._core.open()
        self._core.runtime.tasks.spawn(run_maintenance(weakref.ref(self._core)), "keeper")

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
            msg = f"pool {self.name!r} is not open yet: use `async with pool` or await pool.open()"
            raise PoolClosed(msg)
        self._start()

    async def _borrow_conn(self, timeout: float | None) -> ACT:
        """Borrow a connection for a one-shot."""
        if not self._is_overridden:
            return await self._borrow(timeout)
        if not self._overridden.applies("connection"):
            return cast("ACT", await borrow(self, timeout))
        block = self._block(timeout)
        conn = await block.__aenter__()
        self._blocks[conn] = block
        return conn

    async def _return_conn(
        self,
        conn: ACT,
        *,
        failing: bool,
        cleanup: Callable[[], Awaitable[object]] | None = None,
        as_is: bool = False,
    ) -> None:
        """Return the connection of a one-shot, or of a block that commits nothing.

        Args:
            conn: the connection.
            failing: whether an error propagates, which an error of the return must not hide.
            first: work to do with the connection before its reset.
            as_is: whether to leave a transaction uncommitted that a subclass's method has begun.
        """
        if not self._is_overridden:
            self._release_lease(conn, failing=failing, cleanup=cleanup)
            return
        block = self._blocks.pop(conn, None)
        if block is None:
            try:
                if not (failing or as_is or cleanup):
                    await commit(self._core, self._driver, conn)
            except BaseException:
                await release_through_override(self, conn, failing=True)
                raise
            await release_through_override(self, conn, failing=failing, cleanup=cleanup)
        elif failing or cleanup is not None:
            await block.abort(cleanup or partial(self._driver.roll_back, conn))
        else:
            await block.__aexit__(None, None, None)

    async def _borrow(self, timeout: float | None) -> ACT:
        conn = self._acquire_now()
        if conn is None:
            self._ensure_open()
            conn = await self._core.acquire(timeout)
            self._mark_leased(conn)
        return conn

    def _acquire_now(self) -> ACT | None:
        conn = self._core.acquire_now()
        if conn is not None:
            self._mark_leased(conn)
        return conn

    def _mark_leased(self, conn: ACT) -> None:
        conn._pool = self  # type: ignore[assignment]
        if self._traces:
            note(self._core.ledger.leased[conn], capture(sys._getframe(1)))

    def _not_leased(self, conn: object) -> ReleaseError:
        owner = getattr(conn, "_pool", None)
        what = "no pool has leased it" if owner is None else f"it is leased from {owner!r}"
        return ReleaseError(
            f"pool {self.name!r} cannot accept {conn!r}: {what}; was it released already?"
        )

    def _return(
        self,
        conn: ACT,
        cleanup: Callable[[], Awaitable[object]] | None = None,
        *,
        discard: bool = False,
    ) -> None:
        if self._cleanups:
            cleanup = self._cleanups.pop(conn, None) or cleanup
        if self._autocommit_modes and (mode := self._autocommit_modes.pop(conn, None)) is not None:
            cleanup = partial(self._driver.restore_autocommit, conn, autocommit=mode)
        conn._pool = None
        try:
            if discard:
                self._core.discard(conn)
            else:
                self._core.release(conn, cleanup)
        except PoolWrongLoop:
            conn._pool = self  # type: ignore[assignment]
            raise

    def _release_lease(
        self, conn: ACT, *, failing: bool, cleanup: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        try:
            if self._sessions and (session := self._sessions.get(conn)) is not None:
                session.end_use()
            else:
                self._return(conn, cleanup)
        except PoolError as error:
            if not failing:
                raise
            self._core.runtime.record("return failed", str(error))


give_hints(AsyncConnectionPool)
ORIGINALS = {name: getattr(AsyncConnectionPool, name) for name in NAMES}
"""The pool's own methods, to detect which ones a subclass overrides."""


def _ignore(waited: float) -> None:
    """Ignore a slow wait."""


def _report_leak(pool: weakref.ref[AsyncConnectionPool[Any]], *leak: Any) -> None:
    if (alive := pool()) is not None:
        log_leak(alive._core, *leak)


async def _handle_outage(pool: weakref.ref[AsyncConnectionPool[Any]]) -> None:
    if (alive := pool()) is not None:
        await alive.reconnect_failed()
