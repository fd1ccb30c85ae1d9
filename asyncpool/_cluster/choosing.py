"""Which host serves a request: one that takes reads, with the fewest reads under way.

`Router.choose` is the one place that picks a host for a request that may have to wait for it, or
that must see what a token stands for. The fast path, `pick`, is for all others.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Container
from typing import Any, TypeVar

import anyio
import psycopg
from psycopg.abc import Query

from asyncpool._cluster.freshness import Freshness
from asyncpool._cluster.host import Host
from asyncpool._cluster.members import Members
from asyncpool._cluster.own_writes import Noted, noted_of
from asyncpool._cluster.pools import HostLeft, HostPool, now
from asyncpool._cluster.token import Token
from asyncpool._cluster.watch import Watch
from asyncpool._core.settings import duration
from asyncpool._core.within import current_limits, within
from asyncpool.errors import PoolTimeout, PoolUnavailable
from asyncpool.faults import Fault

T = TypeVar("T")
Work = Callable[[HostPool[Any], float | None], Awaitable[T]]
"""Runs a request on a pool, with a time limit or the pool's own."""

After = Token | Noted | None
"""A token, or the writes of a context, which a read has to see."""

HOST_FAULTS = {Fault.CONNECTION, Fault.SERVER, Fault.FAILOVER, Fault.CAPACITY, Fault.ACCESS}
VERDICT = 1.5
"""Seconds to wait for a look at a host that has failed a read."""
CONFLICT = "conflict with recovery"
"""In the errors of a standby that had to end a read; their SQLSTATE is also a deadlock's."""


class Router:
    """Chooses hosts for the reads of one cluster.

    Args:
        members: the hosts.
        watch: looks at them; its start is the start of the cluster.
        timeout: seconds that a request waits for a connection by default.
        fail_fast_after: seconds for which all hosts are down after which requests fail at once.
        token_wait: seconds to wait for a standby to replay a token.
        keeper: kept as long as the router, so that the cluster is not ended under a block.
    """

    def __init__(
        self,
        members: Members,
        watch: Watch,
        timeout: float,
        *,
        fail_fast_after: float,
        token_wait: float,
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
        self._freshness = Freshness(members, watch, token_wait)
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
            if host.reads.under_way < best.reads.under_way:
                best = host
        if best is readable[0]:
            readable.append(readable.pop(0))
        else:
            readable.remove(best)
            readable.append(best)
        return best

    def after(self, given: str | None) -> After:
        """Return what a read has to see: the token that it is given, or its context's writes.

        Raises:
            TypeError, ValueError: it is no token.
        """
        if given is not None:
            return Token.parse(given)
        noted = noted_of(self.members)
        return noted.token if noted is not None and noted.is_settled else noted

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
        after: After = None,
        without: Container[Host] = (),
        limit: float | None = None,
    ) -> Host:
        """Return a host for a request, and wait for one until the deadline.

        Args:
            deadline: an instant of `pools.now`.
            after: what the host has to have replayed.
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
        if isinstance(after, Noted):
            after = await after.required(max(deadline - now(), 0.0))
        while True:
            if after is not None:
                own = self._host_of_session()
                host = await self._freshness.host_after(after, deadline - now(), without, own)
            else:
                host = self.pick() if not without else self._pick_without(without)
            if host is not None:
                return host
            if self._is_useless():
                msg = f"cluster {self.members.name!r}: no host takes reads, and waiting is useless:"
                raise PoolUnavailable(f"{msg} {self.members.describe()}")
            left = deadline - now()
            if left <= 0:
                raise self._too_late(limit, after)
            with anyio.move_on_after(left):
                await self.members.changes.wait()

    def _too_late(self, limit: float, after: Token | None = None) -> PoolTimeout:
        what = "takes reads" if after is None else f"has replayed the token {str(after)!r}"
        msg = f"cluster {self.members.name!r}: no host {what} within {limit:g} s:"
        return PoolTimeout(f"{msg} {self.members.describe()}", timeout=limit)

    def _pick_without(self, without: Container[Host]) -> Host | None:
        self.watch.enter()
        others = [host for host in self.members.readable if host not in without]
        return min(others, key=lambda host: host.reads.under_way, default=None)

    def _is_useless(self) -> bool:
        """Whether every host refuses access, or has been down for a long time."""
        hosts, latest = self.members.all(), now() - self._fail_fast_after
        return bool(hosts) and all(
            each.error is not None and (each.fault is Fault.ACCESS or each.down_since <= latest)
            for each in hosts
        )

    async def place(self, work: Work[T], timeout: float | None, after: After) -> tuple[Host, T]:
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
            host.reads.under_way += 1
            done = False
            try:
                result = await work(host.pool, left)
                done = True
            except (HostLeft, PoolUnavailable):
                await self._leave(host, began + limit, limit)
            else:
                return host, result
            finally:
                if not done:
                    host.reads.under_way -= 1
            left = began + limit - now()

    async def run(
        self,
        work: Work[T],
        timeout: float | None,
        after: After,
        query: Query | None,
        began: float,
    ) -> T:
        """Run a one-shot, moved or run again where that is possible.

        Args:
            work: runs it on a pool.
            timeout: seconds for all; None: the default, for the waits alone.
            after: as for `choose`.
            query: if given, its text: a plain read that fails for its host's sake is run again on
                another host, once on each.
            began: when the request began.
        """
        limit, tried = self.limit(timeout), set[Host]()
        while True:
            host = await self.choose(began + limit, after, tried, limit)
            again = query is not None and host.pool.is_plain_read(query)
            host.reads.under_way += 1
            scope = anyio.CancelScope()
            if again:
                host.reads.scopes.add(scope)
            try:
                left = max(began + limit - now(), 0.0)
                with scope, within(None if timeout is not None else left):
                    return await work(host.pool, None if timeout is None else left)
                # Only the host's end has cancelled the scope.
                msg = f"host {host.name} went down while it ran a read: {host.reason}"
                raise psycopg.OperationalError(msg)
            except (HostLeft, PoolUnavailable):
                await self._leave(host, began + limit, limit)
                continue
            except psycopg.Error as error:
                tried.add(host)
                if not (again and _is_of_host(host, error)):
                    raise
                left = math.inf if timeout is None else began + limit - now()
                if left <= 0 or not await self._has_another(host, tried, left):
                    raise
            finally:
                host.reads.under_way -= 1
                host.reads.scopes.discard(scope)
            if timeout is None:
                began = now()  # the limit is for the waits alone

    def limit(self, timeout: float | None) -> float:
        """Return the seconds that a request may wait."""
        return self.timeout if timeout is None else duration("timeout", timeout)

    async def _has_another(self, host: Host, tried: Container[Host], left: float) -> bool:
        """Whether a host takes reads that has not failed this one.

        It waits for the next look at the one that has, because the primary may take reads after
        that.
        """
        seen = host.sight
        self.members.suspect(host.name)
        with anyio.move_on_after(min(VERDICT, left)):
            while not any(each not in tried for each in self.members.readable):
                if host.error is not None or host.sight is not seen:
                    return False
                await self.members.changes.wait()
            return True
        return False

    async def _leave(self, host: Host, deadline: float, limit: float) -> None:
        """Go on to another host; raise PoolTimeout if there is no time left for that."""
        await self.let_it_be_seen(host)
        if now() >= deadline:
            raise self._too_late(limit)

    async def let_it_be_seen(self, host: Host) -> None:
        """Yield once, so that a host whose pool fails at once is found to be down."""
        self.members.suspect(host.name)
        await asyncio.sleep(0)

    def hold(self, conn: object, host: Host) -> None:
        """Count a connection that was borrowed without a block, until it is let go."""
        if host.pool.is_of_session(conn):
            host.reads.under_way -= 1  # the session counts
        else:
            self._held[conn] = host
            host.reads.held += 1

    def let_go(self, conn: object) -> Host | None:
        """Return the host of a connection that is being released; None: it was not borrowed."""
        if not isinstance(conn, psycopg.AsyncConnection):
            return None
        if (host := self._held.pop(conn, None)) is not None:
            host.reads.held -= 1
            host.reads.under_way -= 1
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
            host.reads.under_way -= host.reads.held - number
            host.reads.held = number


def _is_of_host(host: Host, error: psycopg.Error) -> bool:
    """Whether a read has failed for its host's sake, and not for its own."""
    if isinstance(error, PoolTimeout):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    if error.sqlstate in ("57P03", "57P04"):
        return True
    return host.pool.fault_of(error) in HOST_FAULTS or CONFLICT in str(error)
