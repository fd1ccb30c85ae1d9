"""`Cluster`: one pool for writes, which follows the primary, and one for reads on all hosts."""

from __future__ import annotations

import asyncio
import itertools
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from types import TracebackType
from typing import Any, Generic, Self

import anyio

from asyncpool._blocks.supports import Exc
from asyncpool._cluster.addresses import Address, Hosts, addresses_of
from asyncpool._cluster.budgets import BudgetChooser, Budgets
from asyncpool._cluster.changes import Changes
from asyncpool._cluster.choosing import Router
from asyncpool._cluster.kwargs import without_host
from asyncpool._cluster.members import Members
from asyncpool._cluster.own_writes import OwnWrites
from asyncpool._cluster.pools import HostPool, WritePool, now
from asyncpool._cluster.read_pool import ReadPool
from asyncpool._cluster.reports import (
    ClusterExplanation,
    ClusterHealth,
    HostStatus,
    explain,
    health_of,
    status_of,
)
from asyncpool._cluster.watch import Watch
from asyncpool._core.settings import duration
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import PoolError, PoolTimeout
from asyncpool.faults import classify
from asyncpool.pool import DEFAULT_CLASS, AsyncConnectionPool
from asyncpool.stats import PoolStats

__all__ = [
    "Cluster",
    "ClusterExplanation",
    "ClusterHealth",
    "HostStatus",
    "OwnWrites",
    "ReadPool",
]

_numbers = itertools.count(1)


class Cluster(Generic[ACT]):
    """The hosts of one PostgreSQL cluster: `write` goes to the primary, `read` to its standbys.

    Each host has a pool of its own, and `write` is one more. The cluster asks each host about once
    a second for its role and how far it lags, on a connection that the host's pool has. A pool for
    a host keeps at least one connection for that, whatever `min_size` is.

    The constructor does no I/O and needs no running loop. The cluster opens as a pool does, on
    `async with cluster:`, on `await cluster.open()`, or, if `open` is true, on its first use.

    Args:
        conninfo: a libpq connection string with several hosts, such as "host=db1,db2 dbname=shop",
            or a plain or async callable that returns a list of connection strings with one host
            each; it is called about once a second. A plain callable runs on the event loop, so
            one that waits, such as for DNS, has to be async. `target_session_attrs` and
            `load_balance_hosts` are ignored: the cluster chooses the host.
        connection_class: as for `AsyncConnectionPool`.
        min_size, max_size: the sizes of each pool.
        max_lag: seconds that a standby which takes reads may lag; None: any.
        read_from_primary: whether the primary takes reads beside the standbys; if false, it does
            so only while no standby can.
        token_wait: seconds that a read with a token waits for a standby before it goes to the
            primary.
        budget: a limit on the connections of all pools together, or a callable that returns one
            for the name of a host, such as "db1:5432", and for None, the pool for writes. A
            `Fleet` is for one server, so only the callable may return one, a new one each time.
        name: the prefix of the pools' names; None: "cluster-1" and so on.
        options: the other keyword arguments of `AsyncConnectionPool`, for each pool.

    Raises:
        TypeError, ValueError: an argument is invalid; the message has its name and value.
    """

    def __init__(
        self,
        conninfo: Hosts = "",
        *,
        connection_class: type[ACT] = DEFAULT_CLASS,  # type: ignore[assignment]
        min_size: int = 4,
        max_size: int | None = None,
        max_lag: float | None = None,
        token_wait: float = 0.1,
        read_from_primary: bool = False,
        budget: Budgets = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        budgets = BudgetChooser(budget)
        if not (name is None or isinstance(name, str)):
            msg = f"name must be a str, not {name!r}"
            raise TypeError(msg)
        if not (isinstance(conninfo, str) or callable(conninfo)):
            what = type(conninfo).__name__
            msg = f"conninfo must be a str or a callable that returns a list of str, not {what}"
            raise TypeError(msg)
        self.name = name or f"cluster-{next(_numbers)}"
        options.setdefault("classify", classify)
        AsyncConnectionPool(
            "", connection_class=connection_class, min_size=min_size, max_size=max_size, **options
        )  # raises at once if an option is invalid
        options["connection_class"] = connection_class
        options["kwargs"] = without_host(options.get("kwargs"))
        lazy = options.get("open", True)
        options["open"] = lazy = lazy is None or bool(lazy)

        def make_pool(address: Address, on_trouble: Callable[[], None]) -> HostPool[ACT]:
            return HostPool(
                address.conninfo,
                on_trouble,
                min_size=1,
                max_size=max_size or max(min_size, 1),
                name=f"{self_name}: {address.name}",
                budget=budgets.choose(address.name),
                **options,
            )

        self_name = self.name
        self._members = members = Members(
            Changes(self.name, now),
            make_pool,
            min_size=min_size,
            max_size=max_size,
            max_lag=math.inf if max_lag is None else duration("max_lag", max_lag),
            read_from_primary=bool(read_from_primary),
        )
        source = None
        if isinstance(conninfo, str):
            members.set_addresses(addresses_of(conninfo))
        else:
            source = conninfo
        watch = self._watch = Watch(members, source, lazy=lazy)
        keeper = _Keeper(watch)
        self.write: WritePool[ACT] = WritePool(
            members.leader.conninfo,
            watch.enter,
            members.suspect_primary,
            keeper,
            min_size=min_size,
            max_size=max_size,
            name=f"{self.name}: write",
            budget=budgets.choose(None),
            **options,
        )
        """The pool of the primary: an `AsyncConnectionPool` that follows it."""
        members.leader.serve(self.write)
        self.write.noted_for = members
        timeout = options.get("timeout", 30.0)
        router = Router(
            members,
            watch,
            timeout,
            fail_fast_after=options.get("fail_fast_after", 60.0),
            token_wait=token_wait,
            keeper=keeper,
        )
        self.read: ReadPool[ACT] = ReadPool(router)
        """The pool of the hosts that take reads."""

    def __repr__(self) -> str:
        members = self._members
        primary = "unknown" if members.primary is None else members.primary.name
        reads = f"readable={len(members.readable)}/{len(members.hosts)}"
        return f"<{type(self).__name__} {self.name!r} primary={primary} {reads}>"

    @property
    def closed(self) -> bool:
        """Whether the cluster cannot be used: closed, or not open yet."""
        return self._watch.closed or self._watch.home is None

    @property
    def pools(self) -> tuple[AsyncConnectionPool[ACT], ...]:
        """The pool for writes and the pool of each host, such as for metrics."""
        return (self.write, *(host.pool for host in self._members.all()))

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the cluster on the running event loop; do nothing if it is open there already.

        Args:
            wait: whether to wait as `wait` does.
            timeout: seconds to wait; see `wait`.

        Raises:
            PoolClosed: the cluster was closed; it cannot be opened again.
            PoolWrongLoop: the cluster is open on another loop.
            PoolTimeout: as for `wait`.
        """
        self._watch.start()
        await self.write.open()
        if wait:
            await self.wait(timeout)

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until the primary is known and a host takes reads, and their pools are filled.

        Args:
            timeout: seconds to wait.

        Raises:
            PoolTimeout: it was not so after `timeout` seconds. The cluster is closed, as a pool is.
            PoolClosed: the cluster is closed, or not open and `open` is false.
        """
        deadline, members = now() + duration("timeout", timeout), self._members
        self._watch.enter()
        try:
            while members.primary is None or not members.readable:
                if (left := deadline - now()) <= 0:
                    msg = f"cluster {self.name!r} was not ready within {timeout:g} s, so it was"
                    raise PoolTimeout(f"{msg} closed: {members.leader.describe()}", timeout=timeout)
                with anyio.move_on_after(left):
                    await members.changes.wait()
                self._watch.enter()
            await self.write.wait(max(deadline - now(), 0.0))
            await self.read.wait(max(deadline - now(), 0.0))
        except PoolTimeout:
            await self.close()
            raise

    async def close(self, timeout: float = 5.0) -> None:
        """Close all pools concurrently; see `AsyncConnectionPool.close`.

        When it returns, no connection, task or timer of the cluster is left.

        Args:
            timeout: seconds to wait for leased connections.
        """
        timeout = duration("timeout", timeout)
        self._watch.require_this_loop()
        work = self._close(timeout)
        closing = asyncio.get_running_loop().create_task(work, context=Context())
        with anyio.CancelScope(shield=True):
            await asyncio.shield(closing)

    async def drain(self, host: str) -> None:
        """Take a host out of service for reads: its connections are closed when they are returned.

        Requests that wait for one of its connections move to another host. The looks go on, on one
        connection. If the host is the primary, `write` still goes there.

        Args:
            host: the host's name, such as "db1:5432", or "db1" if no other host has it.

        Raises:
            TypeError, ValueError: no host has the name.
            PoolWrongLoop: the cluster is open on another event loop.
        """
        self._watch.require_this_loop()
        self._members.set_drained(self._members.find(host), drained=True)

    async def resume(self, host: str) -> None:
        """Put a drained host back into service.

        Args:
            host: as for `drain`.
        """
        self._watch.require_this_loop()
        self._members.set_drained(self._members.find(host), drained=False)

    def own_writes(self, after: str | None = None) -> OwnWrites:
        """Return a context whose reads see what was written in it: `with cluster.own_writes():`.

        Blocks and one-shots on `write` inside move its token on; those on `read` inside use it.

        Args:
            after: a token that the reads have to see too, such as that of the user's last request.

        Raises:
            TypeError, ValueError: `after` is no token.
        """
        return self.write.own_writes(after)

    def hosts(self) -> tuple[HostStatus, ...]:
        """Return the status of each host, in the order of the connection string."""
        return tuple(status_of(host) for host in self._members.all())

    def stats(self) -> dict[str, PoolStats]:
        """Return the statistics of each pool by the pool's name."""
        return {pool.name: pool.stats() for pool in self.pools}

    def explain(self) -> ClusterExplanation:
        """Explain which host does what, and why a host takes no reads.

        `str()` of the result is text for people. It contains no password.
        """
        return explain(self._members, self.write.explain(), now)

    async def health(self, timeout: float = 1.0) -> ClusterHealth:
        """Report whether writes and reads can be served, without raising.

        Args:
            timeout: seconds that the ping of each pool may take.
        """
        with suppress(PoolError):
            self._watch.enter()
        hosts = self._members.all()
        write, *reports = await asyncio.gather(
            self.write.health(timeout), *(host.pool.health(timeout) for host in hosts)
        )
        named = {host.name: report for host, report in zip(hosts, reports, strict=True)}
        return health_of(self._members, write, named)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _close(self, timeout: float) -> None:
        pools = [*self.pools, *self._watch.leaving]
        await self._watch.stop()
        await asyncio.gather(*(pool.close(timeout) for pool in pools))


class _Keeper:
    """Ends the watch of a cluster that is dropped with both of its pools."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __del__(self) -> None:
        watch = self._watch
        if watch.home is not None and not watch.closed:
            name = watch.members.name
            warnings.warn(f"cluster {name!r} was dropped without close()", ResourceWarning, 2)
            watch.abandon()
