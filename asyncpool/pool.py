"""The face: what an application sees of the pool, under the names that psycopg's users know."""

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
    ByConnection,
    ByMethods,
    OnLease,
    Overrides,
    borrow,
    give_back,
)
from asyncpool._blocks.session import Session
from asyncpool._core.budget import Budget
from asyncpool._core.maintenance import keep, ping_all
from asyncpool._core.pool import Core
from asyncpool._core.settings import Settings, count, duration, sizes
from asyncpool._core.stacks import above
from asyncpool._diagnostics.explain import explain
from asyncpool._diagnostics.leaks import tell_of_leak
from asyncpool._diagnostics.snapshot import beside, snapshot
from asyncpool._pipeline.dispatcher import Dispatcher
from asyncpool._psycopg.callbacks import settle
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
from asyncpool._psycopg.process import close_over, forks_with, has_outlived, start_over
from asyncpool.errors import (
    PoolClosed,
    PoolError,
    PoolForked,
    PoolTimeout,
    PoolWrongLoop,
    ReleaseError,
)
from asyncpool.faults import Fault, classify
from asyncpool.health import HealthReport, examine
from asyncpool.insight import Explanation
from asyncpool.sizing import Advice, advise
from asyncpool.stats import PoolStats, psycopg_keys, since

_numbers = itertools.count(1)

# Of the type that ACT is by default: type checkers take it from here, or from there.
WATCHED = cast("type[psycopg.AsyncConnection[TupleRow]]", Connection)


class AsyncConnectionPool(PoolOptions, OneShots[ACT]):
    """A bounded set of psycopg connections for the tasks of one event loop.

    The constructor does no I/O and needs no running loop. The pool opens on `async with pool:`, on
    `await pool.open()`, or, where `open` is true, on its first use.

    Args:
        conninfo: a libpq connection string, or a callable, plain or async, that gives one for each
            new connection (rotated credentials).
        connection_class: the class whose `connect` makes the connections: `asyncpool.Connection`,
            one derived from it, or any other `psycopg.AsyncConnection`, which is then slower and
            not watched.
        kwargs: keyword arguments for `connect`, a mapping or a callable that gives one.
        min_size: connections that are kept open.
        max_size: the most there may be, in every state; None: as many as `min_size`.
        open: whether the first use opens the pool; if false, use before `open()` is an error.
        configure: async callable that gets each new connection before anybody else.
        check: async callable that gets each connection before it is lent; if it raises, the
            connection is replaced and the next is tried at once.
        reset: how a returned connection is made clean, in the pool's own task: None or "rollback"
            (end the transaction, if one is open), "session" (also settings, role, LISTEN, cursors
            and advisory locks), "discard" (also temporary tables, sequences' values and prepared
            statements), or an async callable. The named ones take one round trip. "session" and
            "discard" also put back psycopg's attributes, such as autocommit and row_factory, and
            undo what `configure` has SET: give settings that are to stay as
            `options=-c name=value` in the conninfo.
        name: for messages and logs; "pool-1" and so on when left out.
        close_returns: whether `conn.close()` returns the connection (psycopg 3.3 or later).
        timeout: seconds that a request waits for a connection.
        max_waiting: the most requests in the line; 0 is no limit.
        max_lifetime: seconds after which a connection is replaced, less up to 5 % of jitter.
        max_idle: seconds after which an idle connection above `min_size` is closed.
        reconnect_timeout: seconds of failing connects after which `reconnect_failed` is called.
            The pool goes on trying as long as somebody waits or `min_size` is not reached.
        reconnect_failed: plain or async callable that gets the pool, once an outage.
        leak_timeout: seconds for which a connection may be lent before a warning says who has it,
            where it was borrowed and what it did last; None: for ever. It costs each request less
            than a microsecond.
        fail_fast_after: seconds of failing connects after which requests fail at once, and no more
            after `timeout`, as long as nothing can be lent. Where access is refused, as for a wrong
            password, they always do.
        classify: what an error means beyond its statement; see `asyncpool.classify`.
        budget: a limit for the connections of several pools together.
        num_workers: accepted for psycopg_pool's sake; work here needs no workers.
        ping_interval: seconds without a sign of life after which an idle connection is pinged.
        ping_timeout: seconds that a ping may take.
        pipeline: whether one-shot statements use libpq's pipeline mode, in which plain reads of
            many tasks share connections; if false, each statement borrows one.
        shared_size: the most connections that are shared; None: as many as there are.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message has its name and value.
    """

    _keeps_idle: ClassVar[bool] = True

    def __init__(
        self,
        conninfo: Conninfo = "",
        *,
        connection_class: type[ACT] = WATCHED,  # type: ignore[assignment]
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
        self._forked = False
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
        self._changed = Overrides(type(self), ORIGINALS)
        self._overrides = bool(self._changed)
        """Whether a subclass has changed how a connection is borrowed or returned."""
        self._lease: type[Lease[ACT]] = Lease if leak_timeout is None else TracedLease
        if any(name in self._changed for name in NAMES[1:]):
            self._lease = ByMethods
        self._firsts: dict[ACT, Callable[[], Awaitable[object]]] = {}
        """What is to be done with a connection whose block is ended by a subclass's method."""
        self._blocks: dict[ACT, Lease[ACT]] = {}
        """The block of a one-shot's connection, where a subclass has changed `connection`."""
        self._classify = classify
        self._reconnect_failed: Callable[[Any], Any] | None = reconnect_failed
        self._slow_wait: tuple[float, Callable[[float], None]] = (math.inf, nobody)
        self._pipeline = bool(pipeline) and not self._overrides
        self._shared_size = None if shared_size is None else count("shared_size", shared_size)
        self._core = self._new_core()
        self._popped = snapshot(self._core)
        forks_with(self)

    def __repr__(self) -> str:
        now = snapshot(self._core)
        bound = self._core.settings.bound_in_words
        sizes = f"size={now.size}/{bound} idle={now.idle} leased={now.leased}"
        return f"<{type(self).__name__} {self.name!r} {sizes} waiting={now.waiting}>"

    # Borrowing and returning

    def connection(self, timeout: float | None = None) -> Lease[ACT]:
        """A connection for a block: `async with pool.connection() as conn`.

        At the end of the block its transaction is committed, in the caller's task, so that errors
        surface there. If the block raises, the pool rolls back in a task of its own.

        Args:
            timeout: seconds to wait for a connection; None: the pool's `timeout`. 0 takes one that
                is idle or fails at once.

        Raises:
            PoolTimeout: on entry, when there was none in time.
            TooManyRequests: on entry, when `max_waiting` requests wait already.
            PoolClosed: the pool is closed, or closed while the block waited or ran.
            psycopg.OperationalError: on exit, when the connection was closed, by anybody, with work
                that may have been open. Where an error was handled inside, and the transaction has
                failed, the commit is a rollback as in psycopg, and a warning says where.
        """
        lease = self._lease()
        lease._pool = self
        lease._timeout = timeout
        return lease

    def _block(self, timeout: float | None) -> Lease[ACT]:
        """What other blocks stand on: `connection`, as a subclass may have changed it."""
        if self._overrides and self._changed.applies("connection"):
            return ByConnection(self, self.connection(timeout))
        return AsyncConnectionPool.connection(self, timeout)

    def transaction(self, timeout: float | None = None) -> Transaction[ACT]:
        """A connection for a block that is one transaction, in autocommit mode too.

        Args and errors are those of `connection`. `psycopg.Rollback` in the block rolls back and is
        not raised further.

        Raises:
            psycopg.errors.InFailedSqlTransaction: on exit, when an error of a statement was handled
                inside, so that nothing can be committed.
        """
        if self._overrides and current_task() not in self._sessions:
            return cast("Transaction[ACT]", OnLease(self._block(timeout)))
        return Transaction(self, timeout)

    def session(self, timeout: float | None = None) -> SessionBlock[ACT]:
        """A connection for a block, and for all that this task borrows from the pool inside of it.

        It is committed at the end and rolled back on error, as with `connection`. A block inside,
        of any kind, is a savepoint where a transaction is open: its failure undoes its own work
        alone. Where none is open, it commits what it has done. One-shots run in the transaction
        that is open, or by themselves. `release` of what was borrowed inside only ends that use. By
        a key another connection is borrowed. Tasks that are started inside are not part of it.
        Where an async generator holds it, and is abandoned, what its task does next is not either.

        Args and errors are those of `connection`.

        Raises:
            psycopg.errors.InFailedSqlTransaction: as for `transaction`.
            ReleaseError: on exit, where a block inside that has work has not ended, or not in this
                task, or could not be undone: nothing of the session stays. Also where an async
                generator that holds it is closed early, and work from outside of it is undone.
            PoolDeadlock: from a block or one-shot inside, while a stream(), COPY or notifies() of
                the task is open on the connection.
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
        """A cursor on a connection of its own, for a block; else as `connection`.

        Args:
            binary: whether results come in PostgreSQL's binary format.
            row_factory: what makes rows, None: the connection's own.
            autocommit: the connection's mode for the block, which is put back however that ends;
                None: as it is.
            timeout: seconds to wait for a connection.

        Raises:
            TypeError: `autocommit` is neither a bool nor None.
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

    def acquire(self, timeout: float | None = None) -> Acquisition[ACT]:
        """A connection, to be given to `release` later: `conn = await pool.acquire()`.

        Also `async with pool.acquire() as conn`, which returns it at the end of the block, and
        commits nothing. Args and errors are those of `connection`. A transaction that is open when
        it is returned is rolled back, with a warning that says where.
        """
        if not self._overrides:
            return Acquisition(self, timeout)
        if self._changed.applies("getconn"):
            return Acquisition(self, timeout, self.getconn)
        return Acquisition(self, timeout, partial(AsyncConnectionPool.getconn, self))

    async def release(self, conn: ACT) -> None:
        """Return a connection. It does not wait: whatever must be cleaned, the pool cleans.

        Raises:
            ReleaseError: the connection is another pool's, or nobody's, or was returned already.
            PoolClosed: the pool was closed meanwhile, and its work is lost.
        """
        if self._overrides and self._changed.leads("release", "putconn", conn):
            await self._changed.give_back(self, "putconn", conn)
            return
        if getattr(conn, "_pool", None) is not self:
            raise self._not_lent(conn)
        if not (self._sessions or self._modes or self._keys.held):
            # What the rest comes to for nearly everybody, written out.
            if self._core.release_now(conn):
                conn._pool = None
                return
        elif (session := self._sessions.get(conn)) is not None:
            session.take_back()
            return
        warn_of_open_work(self._core, conn)
        self._return(conn)
        self._keys.forget(conn)

    async def getconn(self, timeout: float | None = None, *, key: Hashable | None = None) -> ACT:
        """The same as `await acquire(timeout)`; by a key, the connection that the key has.

        A key has its connection from the first `getconn` until it is returned, in whichever way.
        Whoever asks meanwhile gets the same one at once; it is for them to take turns.

        Args:
            timeout: seconds to wait for a connection, as for `connection`.
            key: anything hashable; None: a connection that is nobody else's.

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
        """The same as `release(conn)`; its key, if it has one, is free then.

        Args:
            conn: what was borrowed.
            key: the key that must have it; None: whichever has.
            close: whether the connection is closed, and not lent again; a session's, at its end.

        Raises:
            TypeError: the key is not hashable.
            ReleaseError, PoolClosed: as for `release`; also where the key has another connection.
        """
        if key is not None:
            self._keys.require(key, conn)
        if not close:
            if self._overrides and self._changed.leads("putconn", "release", conn):
                await self._changed.give_back(self, "release", conn)
            else:
                await AsyncConnectionPool.release(self, conn)
            return
        if getattr(conn, "_pool", None) is not self:
            raise self._not_lent(conn)
        if (session := self._sessions.get(conn)) is not None:
            session.take_back()
            session.entry.retire()
            return
        self._return(conn, dismiss=True)
        self._keys.forget(conn)

    # From the beginning to the end

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool on this event loop; on one that is open already it does nothing.

        Where the loop that it was open on has ended, it opens afresh, as a lazy one does on use.

        Args:
            wait: whether to wait until `min_size` connections are there.
            timeout: seconds to wait for that; see `wait`.

        Raises:
            PoolClosed: it was closed; a pool is opened once.
            PoolWrongLoop: it is open on another loop.
        """
        self._forked = False
        if has_outlived(self._core) and not self._core.closed:
            start_over(self)
        if not self._core.opened and not self._core.closed:
            self._start()
        self._core.admit()
        if wait:
            await self.wait(timeout)

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until `min_size` connections have been opened.

        Any number of tasks may wait, at any time.

        Raises:
            PoolTimeout: not within `timeout` seconds, or access is refused; the pool is closed
                then, as in psycopg_pool, and the last connect error is the cause.
        """
        timeout = duration("timeout", timeout)
        self._ensure_open()
        self._core.admit()
        try:
            async with asyncio.timeout(timeout):
                filled = await self._core.store.fill()
            if not filled:
                failure = self._core.errors.unavailable()
                await self.close()
                raise failure
        except TimeoutError:
            ready, cause = snapshot(self._core), self._core.store.last_error
            await self.close()
            opened = f"{ready.size - ready.opening} of {ready.min_size} connections were opened"
            what = opened if self._keeps_idle else "no connection was opened"
            msg = f"not ready within {timeout:g} s: {what}, so the pool was closed"
            raise PoolTimeout(msg, timeout=timeout, max_size=ready.max_size) from cause
        self._core.admit()

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool: wake all waiters with PoolClosed, wait for what is lent out, close all.

        Args:
            timeout: seconds to wait for connections that are lent out; then they are closed too.

        When it returns, no connection, task or timer of the pool is left. A cancelled anyio scope
        does not stop it; a task cancelled meanwhile gets its CancelledError at once, and the pool
        closes by itself.
        """
        timeout = duration("timeout", timeout)
        if has_outlived(self._core):
            await close_over(self)
        await self._core.close(timeout)

    async def closeall(self) -> None:
        """The same as `close(timeout=0)`: what is lent out is closed too, and its work is lost."""
        await self.close(timeout=0)

    @property
    def closed(self) -> bool:
        """Whether the pool cannot be used: closed, or not open yet."""
        return self._core.closed or not self._core.opened

    @property
    def connection_class(self) -> type[ACT]:
        """The class of the connections."""
        return self._driver.connection_class

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change both sizes. What is too many is closed at once if idle, else on its return."""
        min_size, max_size = sizes(min_size, max_size, keeps_idle=self._keeps_idle)
        self._outlive()
        self._core.resize(min_size, max_size)

    async def check(self) -> None:
        """Ping all idle connections, several at once, and replace those that fail.

        It takes `ping_timeout` for each at most. Cancelled, it leaves the rest to the pool.
        """
        self._ensure_open()
        self._core.admit()
        work = ping_all(self._core, list(self._core.ledger.idle))
        task = self._core.store.tasks.spawn(work, "check")
        await asyncio.wait({task})
        if task.cancelled():
            self._core.admit()  # the pool was closed meanwhile
        else:
            task.result()

    async def drain(self) -> None:
        """Replace every connection there is now; those lent out, when they come back.

        For changes that only reach new connections, such as adapters registered globally.
        """
        self._ensure_open()
        self._core.admit()
        self._core.drain()

    async def reconnect_failed(self) -> None:
        """Called once connecting has failed for `reconnect_timeout` seconds.

        It calls what the constructor was given under this name; a subclass may do otherwise.
        """
        if self._reconnect_failed is not None:
            await settle(partial(self._reconnect_failed, self))

    @staticmethod
    async def check_connection(conn: psycopg.AsyncConnection[Any]) -> None:
        """One round trip with no transaction; raises if the connection is broken.

        To be given as `check`.
        """
        await ping(conn)

    # Looking in

    async def health(self, timeout: float = 1.0) -> HealthReport:
        """Say whether the pool can serve; it never raises and never waits in the line.

        A pool that opens on its first use is opened by this too.

        Args:
            timeout: seconds that its one ping may take.
        """
        with contextlib.suppress(PoolError):
            self._ensure_open()
        return await examine(self._core, timeout)

    async def advise(
        self, workers: int = 1, *, utilisation: float = 0.8, p99_wait: float | None = None
    ) -> Advice:
        """How large the pool should be, by what it has measured since it was opened.

        Requests are taken to come at random; the quantiles are those of the last 1,024 uses. The
        server is asked, within a second, how many connections it leaves to this role; where it
        cannot be, the advice says so.

        Args:
            workers: pools like this one, as of so many processes, on the same server.
            utilisation: the share of the connections that is to be lent at most, on average.
            p99_wait: seconds that 99 of 100 requests are to wait at most; None: any.

        Raises:
            TypeError, ValueError: an argument makes no sense.
            PoolClosed, PoolForked, PoolWrongLoop: as for any use of the pool.
        """
        self._ensure_open()
        self._core.admit()
        return await advise(self._core, self.fetchval, workers, utilisation, p99_wait)

    def stats(self) -> PoolStats:
        """The sizes now and the counters since the pool was made.

        A thread with no event loop may call it too: it is made on the pool's loop then, and waited
        for; if that is busy for a second, what is known without it is told.
        """
        return beside(self._core)

    def get_stats(self) -> dict[str, int]:
        """The same as psycopg_pool's method of this name, under its keys."""
        return psycopg_keys(since(snapshot(self._core), self._popped))

    def pop_stats(self) -> dict[str, int]:
        """The same, and the counters of `get_stats` start at zero again."""
        now = snapshot(self._core)
        before, self._popped = self._popped, now
        return psycopg_keys(since(now, before))

    def on_slow_wait(self, threshold: float, callback: Callable[[float], None] | None) -> None:
        """Be told of long waits for a connection, also of those in vain.

        The function is called with the wait's seconds, in the task that has waited, at once. There
        is one at most: it takes the place of the one before it.

        Args:
            threshold: seconds from which on a wait is long.
            callback: a plain function; None: no more.

        Raises:
            TypeError, ValueError: an argument makes no sense.
        """
        limit = duration("threshold", threshold)
        if callback is not None and not callable(callback):
            msg = f"callback must be callable or None: got {callback!r}"
            raise TypeError(msg)
        self._slow_wait = (math.inf, nobody) if callback is None else (limit, callback)
        self._core.slow_wait, self._core.on_slow_wait = self._slow_wait

    def explain(self) -> Explanation:
        """Who holds what since when, who waits, what failed, and what to do; `str()` of it is text.

        No password and no parameter of a statement is in it.
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
        if core is None or not core.opened or core.closed:
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
            check=None if self._check is None else partial(self._driver.ask, self._check),
            on_outage=partial(_tell_of_outage, pool),
            classify=self._classify,
            on_leak=partial(_tell_of_leak, pool),
            listens=self._driver.listens,
            budget=self._budget,
        )
        enabled = self._pipeline and self._shared_size != 0 and can_share(self.connection_class)
        self._dispatcher = Dispatcher(
            core, self._shared_size, enabled=enabled, passes_on=not self._driver.resets
        )
        core.slow_wait, core.on_slow_wait = self._slow_wait
        self._keys: Keys[ACT] = Keys(core)
        self._modes: dict[ACT, bool] = {}
        self._sessions: dict[object, Session[ACT]] = {}
        return core

    def _renew(self) -> None:
        self._settings = self._core.settings
        self._core = self._new_core()
        self._popped = snapshot(self._core)

    def _start(self) -> None:
        self._core.open()
        self._core.store.tasks.spawn(keep(weakref.ref(self._core)), "keeper")

    def _outlive(self) -> None:
        if self._lazy and has_outlived(self._core) and not self._core.closed:
            start_over(self)

    def _ensure_open(self) -> None:
        self._outlive()
        if self._core.opened or self._core.closed:
            return
        if self._forked:
            msg = f"pool {self.name!r} was opened before a fork: await pool.open() in the child"
            raise PoolForked(msg)
        if not self._lazy:
            msg = f"pool {self.name!r} is not open yet: use `async with pool` or await pool.open()"
            raise PoolClosed(msg)
        self._start()

    async def _borrow_conn(self, timeout: float | None) -> ACT:
        """Borrow for a one-shot."""
        if not self._overrides:
            return await self._borrow(timeout)
        if not self._changed.applies("connection"):
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
        first: Callable[[], Awaitable[object]] | None = None,
        as_is: bool = False,
    ) -> None:
        """Return what a one-shot has borrowed, or a block that commits nothing.

        Args:
            conn: the connection.
            failing: whether an error is on its way, which another one is not to hide.
            first: work that must be done with it before it is reset.
            as_is: whether a transaction that a subclass's method has begun is not committed.
        """
        if not self._overrides:
            self._give_back(conn, failing=failing, first=first)
            return
        block = self._blocks.pop(conn, None)
        if block is None:
            try:
                if not (failing or as_is or first):
                    await commit(self._core, self._driver, conn)
            except BaseException:
                await give_back(self, conn, failing=True)
                raise
            await give_back(self, conn, failing=failing, first=first)
        elif failing or first is not None:
            await block.give_up(first or partial(self._driver.roll_back, conn))
        else:
            await block.__aexit__(None, None, None)

    async def _borrow(self, timeout: float | None) -> ACT:
        conn = self._lend_now()
        if conn is None:
            self._ensure_open()
            conn = await self._core.acquire(timeout)
            self._lent(conn)
        return conn

    def _lend_now(self) -> ACT | None:
        conn = self._core.acquire_now()
        if conn is not None:
            self._lent(conn)
        return conn

    def _lent(self, conn: ACT) -> None:
        conn._pool = self  # type: ignore[assignment]
        if self._lease is TracedLease:
            note(self._core.ledger.leased[conn], above(sys._getframe(1)))

    def _not_lent(self, conn: object) -> ReleaseError:
        owner = getattr(conn, "_pool", None)
        what = f"it is lent out by {owner!r}" if owner is not None else "no pool has lent it out"
        return ReleaseError(
            f"pool {self.name!r} cannot take back {conn!r}: {what}; was it released already?"
        )

    def _return(
        self,
        conn: ACT,
        first: Callable[[], Awaitable[object]] | None = None,
        *,
        dismiss: bool = False,
    ) -> None:
        if self._firsts:
            first = self._firsts.pop(conn, None) or first
        if self._modes and (mode := self._modes.pop(conn, None)) is not None:
            first = partial(self._driver.turn_back, conn, autocommit=mode)
        conn._pool = None
        try:
            if dismiss:
                self._core.dismiss(conn)
            else:
                self._core.release(conn, first)
        except PoolWrongLoop:
            conn._pool = self  # type: ignore[assignment]
            raise

    def _give_back(
        self, conn: ACT, *, failing: bool, first: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        try:
            if self._sessions and (session := self._sessions.get(conn)) is not None:
                session.take_back()
            else:
                self._return(conn, first)
        except PoolError as error:
            if not failing:
                raise
            self._core.store.record("return failed", str(error))


give_hints(AsyncConnectionPool)
ORIGINALS = {name: getattr(AsyncConnectionPool, name) for name in NAMES}
"""The pool's own methods, by which it is known whether a class has changed them."""


def nobody(waited: float) -> None:
    """Who is told of slow waits where nobody wants to be."""


def _tell_of_leak(pool: weakref.ref[AsyncConnectionPool[Any]], *leak: Any) -> None:
    if (alive := pool()) is not None:
        tell_of_leak(alive._core, *leak)


async def _tell_of_outage(pool: weakref.ref[AsyncConnectionPool[Any]]) -> None:
    if (alive := pool()) is not None:
        await alive.reconnect_failed()
