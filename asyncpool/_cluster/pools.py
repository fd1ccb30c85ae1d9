"""The pools of a cluster: one for each host, and one for writes that follows the primary.

They are pools like any other. They add what a cluster needs of them: a look, an end for the waits
on a host that takes no more requests, and the move to another primary.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any

import anyio
import psycopg
from psycopg.abc import Params, Query
from psycopg.rows import AsyncRowFactory

from asyncpool._cluster.noting import NotingPool
from asyncpool._cluster.sight import LOOK, Sight, sight_of
from asyncpool._core.entry import State
from asyncpool._core.redact import redacted
from asyncpool._core.runtime import Phase
from asyncpool._core.within import within
from asyncpool._pipeline.results import Answer
from asyncpool._psycopg.driver import ACT
from asyncpool._psycopg.own_statements import run_in_autocommit
from asyncpool._sql.kinds import Kind
from asyncpool.errors import PoolError, PoolTimeout, TooManyRequests
from asyncpool.faults import Fault
from asyncpool.pool import AsyncConnectionPool

PRIORITY = 1 << 30
"""The priority of a look, before all requests."""
LEAST = 0.5
"""Seconds that the statement of a look may take at least, however long it waited before."""


class HostLeft(PoolError):
    """The host takes no more requests, and the request has not been sent."""


class HostBusy(Exception):
    """No connection came free for a look; other requests have them."""


class HostDown(Exception):
    """A look has failed.

    Attributes:
        fault: what the last failed connect means.
    """

    def __init__(self, message: str, fault: Fault | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class HostPool(AsyncConnectionPool[ACT]):
    """The pool of one host.

    Args:
        conninfo: the host's connection string.
        on_trouble: called when a connect or statement has failed for the host's sake.
        options: those of the pool.
    """

    def __init__(self, conninfo: str, on_trouble: Callable[[], None], **options: Any) -> None:
        options["classify"] = partial(_classify, options["classify"], on_trouble)
        super().__init__(conninfo, **options)
        self.looks = 0
        """Looks and questions for tokens that were begun: requests of the pool, but no reads."""

    def _renew(self) -> None:
        super()._renew()
        self.looks = 0

    @property
    def is_open(self) -> bool:
        """Whether the pool is open on the running event loop."""
        return self._core.runtime.phase is Phase.OPEN and self._core.usable

    @property
    def is_filled(self) -> bool:
        """Whether `min_size` connections are open."""
        return self._core.ledger.has_min_size

    async def wait_filled(self, limit: float) -> None:
        """Wait until `min_size` connections are open, the limit is over, or waiting is useless."""
        with anyio.move_on_after(limit):
            await self._core.readiness.wait()

    def run_one(  # noqa: PLR0917 - the arguments of a one-shot
        self,
        answer: Answer,
        query: Query,
        params: Params | None,
        timeout: float | None,
        prepare: bool | None,
        binary: bool,
        row_factory: AsyncRowFactory[Any] | None,
    ) -> Coroutine[Any, Any, Any]:
        """Return the coroutine of a one-shot."""
        return self._run_one(
            answer, query, params, timeout, prepare, binary=binary, row_factory=row_factory
        )

    def is_plain_read(self, query: Query) -> bool:
        """Whether a statement only reads, so that it may be run again."""
        return self._dispatcher.profiles.get(query).kind is Kind.READ

    def fault_of(self, error: BaseException) -> Fault | None:
        """Return what an error means for the pool."""
        return self._core.outages.fault_of(error)

    def holds(self, conn: object) -> bool:
        """Whether the pool has leased a connection."""
        return conn in self._core.ledger.leased

    def is_of_session(self, conn: ACT) -> bool:
        """Whether a connection is that of a session."""
        return self._session_of(conn) is not None

    def in_session(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a task is in a session of the pool."""
        return task in self._sessions

    async def look(self, limit: float) -> Sight:
        """Ask the host for its role and position, before all other requests.

        Raises:
            HostDown: it has no connection that works, or did not answer.
            HostBusy: no connection came free.
        """
        at = self._core.runtime.time()
        self.looks += 1
        try:
            with within(priority=PRIORITY):
                conn = await self._borrow(limit)
        except (PoolTimeout, TooManyRequests) as error:
            if (why := self.why_down()) is not None:
                raise why from None
            if not (self._core.ledger.leased or self._has_no_room()):
                msg = f"no connection within {limit:g} s"
                raise HostDown(msg) from None
            raise HostBusy from error
        started = self._core.runtime.time()
        left = max(at + limit - started, LEAST)
        is_late, failing = False, True

        def end() -> None:
            # A cancellation would ask a host that hangs to cancel the statement.
            nonlocal is_late
            is_late = True
            _hang_up(conn)

        timer = asyncio.get_running_loop().call_later(left, end, context=Context())
        try:
            cur = await run_in_autocommit(conn, LOOK)
            result = cur.pgresult
            assert result is not None, "bug: a look without a result"
            sight = sight_of([result.get_value(0, column) for column in range(5)], started)
            failing = False
        except psycopg.Error as error:
            said = f"no answer within {left:.2g} s" if is_late else redacted(error).strip()
            raise HostDown(said) from None
        finally:
            timer.cancel()
            self._release_lease(conn, failing=failing)
        return sight

    def why_down(self) -> HostDown | None:
        """Return why the host is down, if connecting fails and no connection works."""
        outage = self._core.outages.outage
        if not outage or any(
            each.state in (State.IDLE, State.LEASED, State.CLEANING) and not each.is_retired
            for each in self._core.ledger.entries
        ):
            return None
        return HostDown(redacted(outage.error).strip(), outage.fault)

    def _has_no_room(self) -> bool:
        """Whether other pools have used up the budget."""
        budget = self._core.ledger.budget
        return budget is not None and budget.size >= budget.max_connections

    @property
    def served(self) -> int:
        """How many requests it has served, as a sign that the host answers."""
        counters, ledger = self._core.runtime.counters, self._core.ledger
        return ledger.leases + counters.requests_shared

    def dismiss_waiting(self, why: str) -> None:
        """End all waits in the pool's queue but those of looks: the requests move."""
        queue = self._core.ledger.queue
        for waiter in list(queue):
            if waiter.place is None or waiter.place[0] != PRIORITY:
                msg = f"pool {self.name!r} takes no more requests: {why}"
                queue.fail(waiter, HostLeft(msg))

    def set_sizes(self, min_size: int, max_size: int) -> None:
        """Change the sizes if they differ."""
        if self.is_open and (min_size, max_size) != (self.min_size, self.max_size):
            self._core.resize(min_size, max_size)

    def retire(self) -> bool:
        """Keep no connection but those in use; return whether there are any."""
        if self.is_open:
            self._core.resize(0, self.max_size)
            self._core.drain()
        return bool(self._core.ledger.leased)

    def replace_all(self) -> None:
        """Retire all connections; those in use when they are returned."""
        if self.is_open:
            self._core.drain()


class WritePool(NotingPool[ACT]):
    """The pool of the primary: `cluster.write`.

    It is an `AsyncConnectionPool` whose connections go to the host that is the primary.

    Args:
        conninfo: returns the connection string of the primary.
        begin: called when the pool opens.
        on_trouble: called when a connect or statement has failed for the host's sake.
        keeper: kept as long as the pool.
        options: those of the pool.
    """

    def __init__(
        self,
        conninfo: Callable[[], Coroutine[Any, Any, str]],
        begin: Callable[[], None],
        on_trouble: Callable[[], None],
        keeper: object,
        **options: Any,
    ) -> None:
        options["classify"] = partial(_classify, options["classify"], on_trouble)
        super().__init__(conninfo, **options)
        self._begin = begin
        self._keeper = keeper

    def _start(self) -> None:
        self._begin()
        super()._start()

    def connect_now(self) -> None:
        """Connect at once, if connects have failed and requests or sizes want one."""
        core = self._core
        if core.runtime.phase is Phase.OPEN and core.usable:
            outage = core.outages.outage
            outage.retry_at = outage.idle_retry_at = core.runtime.time()
            core.outages.retry.cancel()
            core.store.refill()

    def move(self, *, cut: bool) -> None:
        """Replace all connections, which are to a host that is not the primary any more.

        Args:
            cut: whether to hang up on connections in use, whose work another primary lacks.
        """
        core = self._core
        if core.runtime.phase is Phase.OPEN and core.usable:
            leased = list(core.ledger.leased)
            core.drain()
            core.store.stop_opening()
            if cut:
                for conn in leased:
                    _hang_up(conn)
            self.connect_now()


def _classify(
    classify: Callable[[BaseException], Fault | None],
    on_trouble: Callable[[], None],
    error: BaseException,
) -> Fault | None:
    fault = classify(error)
    if fault is not None or (isinstance(error, psycopg.OperationalError) and not error.sqlstate):
        on_trouble()
    return fault


def _hang_up(conn: psycopg.AsyncConnection[Any]) -> None:
    """Shut a connection's socket down: what runs on it fails at once, as if the server had left."""
    with suppress(OSError, psycopg.Error):
        shared = socket.socket(fileno=conn.fileno())
        try:
            shared.shutdown(socket.SHUT_RDWR)
        finally:
            shared.detach()  # libpq closes it


def now() -> float:
    """Return the instant for time limits, whatever the event loop."""
    return time.monotonic()
