"""`AsyncConnectionPool`, the pool that an application uses, with psycopg_pool's names."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, cast

import psycopg
from psycopg.rows import TupleRow

from asyncpool._blocks.connection_block import ConnectionBlock, TracedBlock
from asyncpool._blocks.hints import give_hints
from asyncpool._blocks.keys import Keys
from asyncpool._blocks.lifecycle import Lifecycle
from asyncpool._blocks.listening import Listening
from asyncpool._blocks.one_shots import OneShots
from asyncpool._blocks.options import PoolOptions
from asyncpool._blocks.overrides import NAMES, OverriddenBlock, Overrides
from asyncpool._blocks.pool_transactions import PoolTransactions
from asyncpool._blocks.renewal import register_for_forks
from asyncpool._blocks.supports import Exc
from asyncpool._blocks.turn import Turns
from asyncpool._core.budget import Budget
from asyncpool._core.error_factory import OWN_CLASSES, ErrorClasses
from asyncpool._core.pool import Core
from asyncpool._core.runtime import Phase
from asyncpool._core.settings import Settings, count, sizes
from asyncpool._diagnostics.explain import explain
from asyncpool._diagnostics.leaks import last_statement, log_leak
from asyncpool._diagnostics.snapshot import rolled_back, snapshot, snapshot_from_any_thread
from asyncpool._pipeline.dispatcher import Dispatcher
from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.driver import ACT
from asyncpool._psycopg.internals import VERSION
from asyncpool._psycopg.marked import make_driver
from asyncpool._psycopg.own_statements import ResetLevel
from asyncpool._psycopg.preparing import RunCounts
from asyncpool._psycopg.sharing import can_share
from asyncpool._psycopg.sources import Conninfo, Kwargs
from asyncpool.errors import PoolError
from asyncpool.faults import Fault, classify
from asyncpool.health import HealthReport, check_health
from asyncpool.insight import Explanation
from asyncpool.sizing import Advice, advise
from asyncpool.stats import PoolStats, psycopg_keys, since

_numbers = itertools.count(1)

# The cast gives the default of ACT: type checkers read it from the parameter or the TypeVar.
DEFAULT_CLASS = cast("type[psycopg.AsyncConnection[TupleRow]]", Connection)


class AsyncConnectionPool(
    PoolOptions, OneShots[ACT], PoolTransactions[ACT], Listening[ACT], Lifecycle[ACT]
):
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
        overload: which requests get `TooManyRequests` instead of a place in the wait queue: "wait":
            those that could not be served within their time limit; "refuse": while the queue stands
            for longer than one and a half time limits, also those that would wait for more than a
            tenth of theirs; None: neither, so that all wait. See docs/overload.md.
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
        ping_interval: seconds of silence after which an idle or listening connection is pinged.
        ping_timeout: seconds that a ping may take.
        pipeline: whether one-shot statements use libpq's pipeline mode, in which plain reads of
            many tasks share connections; if false, each statement borrows a connection.
        shared_size: the most connections that one-shots share; None: all of them.

    Raises:
        TypeError, ValueError: an argument is invalid; the message has its name and value.
    """

    _keeps_idle: ClassVar[bool] = True
    _error_classes: ClassVar[ErrorClasses] = OWN_CLASSES
    _originals: ClassVar[dict[str, object]]
    """The pool's own methods, to detect which ones a subclass overrides."""
    _last_pop: PoolStats

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
        overload: Literal["wait", "refuse"] | None = "wait",
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
        if close_returns and VERSION < (3, 3):
            msg = f"close_returns needs psycopg 3.3 or later: this is {psycopg.__version__}"
            raise ValueError(msg)
        self.close_returns, self.num_workers = close_returns, num_workers
        self._lazy = open is None or bool(open)
        min_size, max_size = sizes(min_size, max_size, keeps_idle=self._keeps_idle)
        settings = Settings(
            name=name or f"pool-{next(_numbers)}",
            min_size=min_size,
            max_size=max_size,
            timeout=timeout,
            max_waiting=max_waiting,
            overload=overload,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            fail_fast_after=fail_fast_after,
            leak_timeout=math.inf if leak_timeout is None else leak_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            keeps_idle=self._keeps_idle,
        )
        runs = RunCounts() if self._keeps_idle else None
        marks = None if budget is None else budget.marks
        driver = make_driver(marks, conninfo, kwargs, connection_class, configure, reset, runs)
        self._driver, driver.owner = driver, weakref.ref(self)
        self._reconnect_failed = reconnect_failed
        self._overridden = Overrides(type(self), self._originals) or None
        self._traces = leak_timeout is not None
        self._block_class = TracedBlock if self._traces else ConnectionBlock
        if self._overridden and any(name in self._overridden for name in NAMES[1:]):
            self._block_class = OverriddenBlock
        pool: weakref.ref[AsyncConnectionPool[Any]] = weakref.ref(self)
        self._make_core = partial(
            Core[ACT],
            driver=self._driver,
            check=None if check is None else partial(self._driver.run_check, check),
            on_outage=partial(_handle_outage, pool),
            classify=classify,
            on_leak=partial(_report_leak, pool),
            is_listening=self._driver.is_listening,
            budget=budget,
            error_classes=self._error_classes,
            last_statement=last_statement,
        )
        enabled = bool(pipeline) and self._overridden is None and shared_size != 0
        self._set_core(self._make_core(settings))
        self._dispatcher = Dispatcher(
            self._core,
            None if shared_size is None else count("shared_size", shared_size),
            enabled=enabled and can_share(self.connection_class),
            passes_on=not self._driver.resets,
        )
        register_for_forks(self)

    def __repr__(self) -> str:
        now = snapshot(self._core)
        bound = self._core.settings.max_size_text
        sizes = f"size={now.size}/{bound} idle={now.idle} leased={now.leased}"
        return f"<{type(self).__name__} {self.name!r} {sizes} waiting={now.waiting}>"

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
        self._core.require_usable()
        return await advise(self._core, self.fetchval, workers, utilisation, p99_wait)

    def stats(self) -> PoolStats:
        """Return the current sizes and the counters since the pool was made.

        A thread without an event loop may call it too: the snapshot is then made on the pool's
        loop. If that loop is busy for a second, the durations are those of the last snapshot.
        """
        return snapshot_from_any_thread(self._core)

    def get_stats(self) -> dict[str, int]:
        """Return the statistics under the keys of psycopg_pool's `get_stats`.

        As there, a returned connection is available at once if there is no `reset`, although it may
        still have to be rolled back.
        """
        return self._psycopg_keys(snapshot(self._core), self._last_pop)

    def pop_stats(self) -> dict[str, int]:
        """Return what `get_stats` does, and restart its counters at zero."""
        now = snapshot(self._core)
        before, self._last_pop = self._last_pop, now
        return self._psycopg_keys(now, before)

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

    def _psycopg_keys(self, now: PoolStats, before: PoolStats) -> dict[str, int]:
        coming = 0 if self._driver.resets else rolled_back(self._core)
        return psycopg_keys(since(now, before), available=now.idle + coming)

    def _set_core(self, core: Core[ACT]) -> None:
        self._core = core
        self._keys = Keys(core)
        self._turns = Turns(core)
        self._sessions = {}
        self._listening = set()
        self._last_pop = snapshot(core)

    def _renew(self) -> None:
        old, core = self._core, self._make_core(self._core.settings)
        core.slow_wait, core.on_slow_wait = old.slow_wait, old.on_slow_wait
        self._set_core(core)
        self._dispatcher = self._dispatcher.renewed(core)


give_hints(AsyncConnectionPool)
AsyncConnectionPool._originals = {name: getattr(AsyncConnectionPool, name) for name in NAMES}


def _report_leak(pool: weakref.ref[AsyncConnectionPool[Any]], *leak: Any) -> None:
    if (alive := pool()) is not None:
        log_leak(alive._core, *leak)


async def _handle_outage(pool: weakref.ref[AsyncConnectionPool[Any]]) -> None:
    if (alive := pool()) is not None:
        await alive.reconnect_failed()
