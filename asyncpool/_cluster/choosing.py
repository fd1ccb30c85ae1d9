"""Which host serves a request: one that takes reads, with the fewest reads under way.

`Router.choose` is the one place that picks a host for a request that may have to wait for it, or
that must see what a token stands for. The fast path, `pick`, is for all others.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Container
from typing import Any, TypeVar

import anyio
import psycopg
from psycopg.abc import Query

from asyncpool._cluster.host import Host
from asyncpool._cluster.members import Members
from asyncpool._cluster.pools import HostLeft, HostPool, now
from asyncpool._cluster.watch import Watch
from asyncpool._core.settings import duration
from asyncpool._core.within import current_limits, within
from asyncpool.errors import PoolTimeout, PoolUnavailable
from asyncpool.faults import Fault

T = TypeVar("T")
Work = Callable[[HostPool[Any], float | None], Awaitable[T]]
"""Runs a request on a pool, with a time limit or the pool's own."""

HOST_FAULTS = {Fault.CONNECTION, Fault.SERVER, Fault.FAILOVER, Fault.CAPACITY, Fault.ACCESS}
CONFLICT = "conflict with recovery"
"""In the errors of a standby that had to end a read; their SQLSTATE is also a deadlock's."""


class Router:
    """Chooses hosts for the reads of one cluster.

    Args:
        members: the hosts.
        watch: looks at them; its start is the start of the cluster.
        timeout: seconds that a request waits for a connection by default.
        fail_fast_after: seconds for which all hosts are down after which requests fail at once.
        keeper: kept as long as the router, so that the cluster is not ended under a block.
    """

    def __init__(
        self,
        members: Members,
        watch: Watch,
        timeout: float,
        fail_fast_after: float,
        keeper: object,
    ) -> None:
        self.members = members
        self.watch = watch
        self.timeout = duration("timeout", timeout)
        self._keeper = keeper
        self._fail_fast_after = duration("fail_fast_after", fail_fast_after)
        self.sessions: dict[asyncio.Task[Any] | None, Host] = {}
        """The hosts of the tasks that are in a `session()`."""
        self._held = weakref.WeakKeyDictionary[object, Host]()
        """The hosts of the connections that were borrowed by `acquire` or `getconn`. A connection
        is not kept by it, so that its pool can find a forgotten lease."""
        watch.after_look = weakref.WeakMethod(self.recount)

    def pick(self) -> Host | None:
        """Return the host with the fewest reads under way; None: no host takes reads now.

        Of several, it is the one that was chosen the longest time ago. The caller counts the read
        in `under_way`.
        """
        if self.watch.home is not asyncio.get_running_loop():
            self.watch.enter()
        if self.sessions and (host := self._host_of_session()) is not None:
            return host
        readable = self.members.readable
        if not readable:
            return None
        best = readable[0]
        for host in readable:
            if host.under_way < best.under_way:
                best = host
        if best is readable[0]:
            readable.append(readable.pop(0))
        else:
            readable.remove(best)
            readable.append(best)
        return best

    def _host_of_session(self) -> Host | None:
        """Return the host of the session that the task is in."""
        task = asyncio.current_task()
        host = self.sessions.get(task)
        if host is not None and not host.pool.in_session(task):
            del self.sessions[task]  # it was in an async generator that was abandoned
            return None
        return host

    async def choose(
        self,
        deadline: float,
        after: str | None = None,
        without: Container[Host] = (),
        limit: float | None = None,
    ) -> Host:
        """Return a host for a request, and wait for one until the deadline.

        Args:
            deadline: an instant of `pools.now`.
            after: a token; the host has replayed what the token stands for.
            without: hosts that were tried before.
            limit: the time limit in seconds, for the error message.

        Raises:
            PoolTimeout: no host takes reads in time; it says for each host why.
            PoolUnavailable: every host refuses access.
            PoolClosed: the cluster is closed.
        """
        if limit is None or current_limits().deadline < deadline:
            deadline = min(deadline, current_limits().deadline)
            limit = round(max(deadline - now(), 0.0), 3)
        while True:
            host = self.pick() if not without else self._pick_without(without)
            if after is not None and (primary := self.members.primary) is not None:
                host = None if primary.error is not None else primary
            if host is not None:
                return host
            if self._is_useless():
                msg = f"cluster {self.members.name!r}: no host takes reads, and waiting is useless:"
                raise PoolUnavailable(f"{msg} {self.members.describe()}")
            left = deadline - now()
            if left <= 0:
                msg = f"cluster {self.members.name!r}: no host takes reads within {limit:g} s:"
                raise PoolTimeout(f"{msg} {self.members.describe()}", timeout=limit)
            with anyio.move_on_after(left):
                await self.members.changes.wait()

    def _pick_without(self, without: Container[Host]) -> Host | None:
        self.watch.enter()
        others = [host for host in self.members.readable if host not in without]
        return min(others, key=lambda host: host.under_way, default=None)

    def _is_useless(self) -> bool:
        """Whether every host refuses access, or has been down for a long time."""
        hosts, latest = self.members.all(), now() - self._fail_fast_after
        return bool(hosts) and all(
            each.error is not None and (each.fault is Fault.ACCESS or each.down_since <= latest)
            for each in hosts
        )

    async def place(
        self, work: Work[T], timeout: float | None, after: str | None
    ) -> tuple[Host, T]:
        """Run the part of a request that waits for a connection; move it if its host goes down.

        The host counts it as under way afterwards, unless it has failed.

        Args:
            work: waits for a connection of a pool.
            timeout: seconds for all; None: the default.
            after: as for `choose`.
        """
        began, limit = now(), self.limit(timeout)
        left: float | None = timeout
        while True:
            host = self.pick() if after is None else None
            if host is None:
                host = await self.choose(began + limit, after, limit=limit)
                left = max(began + limit - now(), 0.0)
            host.under_way += 1
            done = False
            try:
                result = await work(host.pool, left)
                done = True
            except (HostLeft, PoolUnavailable):
                await self.let_it_be_seen(host)
            else:
                return host, result
            finally:
                if not done:
                    host.under_way -= 1
            left = max(began + limit - now(), 0.0)

    async def run(
        self,
        work: Work[T],
        timeout: float | None,
        after: str | None,
        query: Query | None,
        began: float,
    ) -> T:
        """Run a one-shot, moved or run again where that is possible.

        Args:
            work: runs it on a pool.
            timeout: seconds for all; None: the default, for the waits alone.
            after: as for `choose`.
            query: if given, its text: a plain read that fails for its host's sake is run again on
                another host.
            began: when the request began.
        """
        limit, tried = self.limit(timeout), set[Host]()
        while True:
            host = await self.choose(began + limit, after, tried, limit)
            again = query is not None and host.pool.is_plain_read(query)
            host.under_way += 1
            scope = anyio.CancelScope()
            if again:
                host.scopes.add(scope)
            try:
                left = max(began + limit - now(), 0.0)
                with scope, within(None if timeout is not None else left):
                    return await work(host.pool, None if timeout is None else left)
            except (HostLeft, PoolUnavailable):
                await self.let_it_be_seen(host)
            except psycopg.Error as error:
                others = any(each not in tried | {host} for each in self.members.readable)
                if not (again and others and _is_of_host(host, error)):
                    raise
                tried.add(host)
            finally:
                host.under_way -= 1
                host.scopes.discard(scope)
            if scope.cancelled_caught:
                tried.add(host)
            if all(each in tried for each in self.members.readable):
                tried.clear()

    def limit(self, timeout: float | None) -> float:
        """Return the seconds that a request may wait."""
        return self.timeout if timeout is None else duration("timeout", timeout)

    async def let_it_be_seen(self, host: Host) -> None:
        """Yield once, so that a host whose pool fails at once is found to be down."""
        self.members.suspect(host.name)
        await asyncio.sleep(0)

    def hold(self, conn: object, host: Host) -> None:
        """Count a connection that was borrowed without a block, until it is let go."""
        if self._host_of_session() is host:
            host.under_way -= 1  # the session counts
        else:
            self._held[conn] = host
            host.held += 1

    def let_go(self, conn: object) -> Host | None:
        """Return the host of a connection that is being released; None: it was not borrowed."""
        if not isinstance(conn, psycopg.AsyncConnection):
            return None
        if (host := self._held.pop(conn, None)) is not None:
            host.held -= 1
            host.under_way -= 1
            return host
        session = self._host_of_session()
        return session if session is not None and session.pool.holds(conn) else None

    def recount(self) -> None:
        """Do not count connections that were returned in another way than by `release`."""
        for conn, host in list(self._held.items()):
            if not host.pool.holds(conn):
                del self._held[conn]
        held = list(self._held.values())
        for host in self.members.all():
            number = held.count(host)
            host.under_way -= host.held - number
            host.held = number


def _is_of_host(host: Host, error: psycopg.Error) -> bool:
    """Whether a read has failed for its host's sake, and not for its own."""
    if isinstance(error, PoolTimeout):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    if error.sqlstate in ("57P03", "57P04"):
        return True
    return host.pool.fault_of(error) in HOST_FAULTS or CONFLICT in str(error)
