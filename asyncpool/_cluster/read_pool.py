"""`cluster.read`: the face of a pool, on the hosts that take reads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast, overload

import psycopg
from psycopg.rows import AsyncRowFactory, Row

from asyncpool._blocks.retrying import retry
from asyncpool._blocks.transaction_options import Isolation, Setting, options_of
from asyncpool._cluster.choosing import Router
from asyncpool._cluster.pools import HostPool, now
from asyncpool._cluster.read_blocks import ReadAcquisition, ReadBlock, ReadSession
from asyncpool._cluster.read_shots import ReadShots
from asyncpool._core.settings import count, duration
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import PoolError, PoolTimeout, ReleaseError
from asyncpool.health import HealthReport
from asyncpool.insight import Explanation
from asyncpool.stats import PoolStats, together

T = TypeVar("T")


class ReadPool(ReadShots[ACT]):
    """Reads on the hosts of a cluster: `cluster.read`.

    Each request goes to the host that takes reads and has the fewest of them under way. If that
    host goes down while the request waits for a connection, the request moves to another one, with
    the rest of its time. The methods are those of `AsyncConnectionPool`, but for `listen`, as a
    standby has no notifications, and `turn`. Each takes a token as `after`; it then runs on a host
    that has replayed what the token stands for.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    def __repr__(self) -> str:
        parts = [pool.stats() for pool in self._pools()]
        sizes = " ".join(
            f"{name}={sum(getattr(each, name) for each in parts)}"
            for name in ("size", "idle", "leased", "waiting")
        )
        hosts = f"hosts={len(self._router.members.readable)}/{len(parts)}"
        return f"<{type(self).__name__} {self.name!r} {hosts} {sizes}>"

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self._router.members.name

    @property
    def closed(self) -> bool:
        """Whether the cluster cannot be used: closed, or not open yet."""
        return self._router.watch.closed or self._router.watch.home is None

    @property
    def timeout(self) -> float:
        """Seconds that a request waits for a host and a connection by default."""
        return self._router.timeout

    def connection(
        self, timeout: float | None = None, *, after: str | None = None
    ) -> ReadBlock[ACT]:
        """Borrow a connection of a host that takes reads, for a block.

        Args:
            timeout: seconds to wait for a host and a connection; None: the pool's `timeout`. 0
                takes an idle connection of one host or fails at once.
            after: a token; the host has replayed what the token stands for.

        Raises:
            PoolTimeout: on entry, if no host took reads in time, which the message explains for
                each host, or no connection became available in time.
            TooManyRequests, PoolClosed, psycopg.OperationalError: as for
                `AsyncConnectionPool.connection`.
        """
        return ReadBlock(self._router, HostPool.connection, timeout, after)

    def session(self, timeout: float | None = None, *, after: str | None = None) -> ReadBlock[ACT]:
        """Borrow one connection for a block and all that this task reads inside the block.

        All of it runs on the block's host. See `AsyncConnectionPool.session`.

        Args:
            timeout, after: as for `connection`.
        """
        return ReadSession(self._router, HostPool.session, timeout, after)

    @overload
    def cursor(
        self,
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[Row],
        autocommit: bool | None = None,
        timeout: float | None = None,
        after: str | None = None,
    ) -> ReadBlock[psycopg.AsyncCursor[Row]]: ...

    @overload
    def cursor(
        self,
        *,
        binary: bool = False,
        row_factory: None = None,
        autocommit: bool | None = None,
        timeout: float | None = None,
        after: str | None = None,
    ) -> ReadBlock[psycopg.AsyncCursor[Any]]: ...

    def cursor(
        self,
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
        autocommit: bool | None = None,
        timeout: float | None = None,
        after: str | None = None,
    ) -> ReadBlock[psycopg.AsyncCursor[Any]]:
        """Borrow a connection of a host that takes reads, for a block, and open a cursor on it.

        Args:
            binary, row_factory, autocommit: as for `AsyncConnectionPool.cursor`.
            timeout, after: as for `connection`.
        """

        def make(pool: HostPool[Any], left: float | None) -> Any:
            return pool.cursor(
                binary=binary, row_factory=row_factory, autocommit=autocommit, timeout=left
            )

        return ReadBlock(self._router, make, timeout, after)

    def transaction(
        self,
        timeout: float | None = None,
        *,
        isolation: Isolation | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        settings: Mapping[str, Setting] | None = None,
        role: str | None = None,
        after: str | None = None,
    ) -> ReadBlock[ACT]:
        """Borrow a connection of a host that takes reads, for a block that is one transaction.

        Args:
            timeout, after: as for `connection`.
            isolation, read_only, deferrable, settings, role: as for
                `AsyncConnectionPool.transaction`; a standby refuses "serializable".

        Raises:
            TypeError, ValueError: an option is invalid.
        """
        options_of(isolation, read_only, deferrable, settings, role)

        def make(pool: HostPool[Any], left: float | None) -> Any:
            return pool.transaction(
                left,
                isolation=isolation,
                read_only=read_only,
                deferrable=deferrable,
                settings=settings,
                role=role,
            )

        return ReadBlock(self._router, make, timeout, after)

    async def run_transaction(
        self,
        work: Callable[[ACT], Awaitable[T]],
        timeout: float | None = None,
        *,
        attempts: int = 5,
        after: str | None = None,
        **options: Any,
    ) -> T:
        """Run an async function in a transaction, and again if that could not be serialized.

        Each attempt is a `transaction` block, perhaps on another host. A standby ends a read that
        conflicts with what it replays with such an error.

        Args:
            work: called with the connection, once for each attempt.
            timeout, after: as for `connection`, for each attempt.
            attempts: the largest number of attempts, at least 1.
            options: the other arguments of `transaction`.

        Raises:
            TypeError, ValueError: an argument is invalid.
            Exception: as for `AsyncConnectionPool.run_transaction`.
        """
        if not callable(work):
            msg = f"work must be an async function of a connection, not {work!r}"
            raise TypeError(msg)
        if count("attempts", attempts) < 1:
            msg = f"attempts must be at least 1: got {attempts}"
            raise ValueError(msg)
        make = partial(self.transaction, timeout, after=after, **options)
        return cast("T", await retry(make, work, attempts))

    def acquire(
        self, timeout: float | None = None, *, after: str | None = None
    ) -> ReadAcquisition[ACT]:
        """Borrow a connection of a host that takes reads, until `release`.

        `async with read.acquire() as conn` returns it at the end of the block.

        Args:
            timeout, after: as for `connection`.
        """
        return ReadAcquisition(self._router, HostPool.acquire, timeout, after)

    async def release(self, conn: ACT) -> None:
        """Return a connection without waiting; its pool cleans it in a background task.

        Raises:
            ReleaseError: the connection was not borrowed here, or was already returned.
            PoolClosed: the cluster was closed during the lease, and uncommitted work is lost.
        """
        await self._let_go(conn, HostPool.release)

    async def getconn(self, timeout: float | None = None, *, after: str | None = None) -> ACT:
        """Borrow a connection as `acquire` does."""
        return await self.acquire(timeout, after=after)

    async def putconn(self, conn: ACT, *, close: bool = False) -> None:
        """Return a connection as `release` does.

        Args:
            conn: the connection that was borrowed.
            close: whether to close it instead of leasing it again.
        """
        await self._let_go(conn, partial(HostPool.putconn, close=close))

    async def check(self) -> None:
        """Ping all idle connections of all hosts, and replace those that fail."""
        self._router.watch.enter()
        await asyncio.gather(*(pool.check() for pool in self._pools() if pool.is_open))

    async def drain(self) -> None:
        """Replace every current connection; leased connections when they are returned.

        `cluster.drain(host)` takes a host out of service.
        """
        self._router.watch.enter()
        for pool in self._pools():
            pool.replace_all()

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until a host takes reads and has `min_size` connections open.

        Args:
            timeout: seconds to wait.

        Raises:
            PoolTimeout: it was not so in time; unlike a pool, the cluster stays open.
            PoolClosed: the cluster is closed, or not open and `open` is false.
        """
        deadline = now() + duration("timeout", timeout)
        host = await self._router.choose(deadline, limit=timeout)
        while not host.pool.is_filled:
            if (left := deadline - now()) <= 0:
                msg = f"cluster {self.name!r}: {host.name} has too few connections"
                raise PoolTimeout(f"{msg} after {timeout:g} s", timeout=timeout)
            await host.pool.wait_filled(left)
            if not host.pool.is_filled:
                await self._router.let_it_be_seen(host)
            host = await self._router.choose(deadline, limit=timeout)

    def stats(self) -> PoolStats:
        """Return the statistics of all hosts' pools together.

        `cluster.hosts()` has those of each host. The looks count as requests.
        """
        return together(f"{self.name}: read", [pool.stats() for pool in self._pools()])

    def explain(self) -> dict[str, Explanation]:
        """Explain each host's pool by the host's name; `cluster.explain()` is about all."""
        return {host.name: host.pool.explain() for host in self._router.members.all()}

    async def health(self, timeout: float = 1.0) -> dict[str, HealthReport]:
        """Report the health of each host's pool by the host's name.

        `cluster.health()` is about all.

        Args:
            timeout: seconds that each ping may take.
        """
        with suppress(PoolError):
            self._router.watch.enter()
        hosts = self._router.members.all()
        reports = await asyncio.gather(*(host.pool.health(timeout) for host in hosts))
        return {host.name: report for host, report in zip(hosts, reports, strict=True)}

    def _pools(self) -> list[HostPool[Any]]:
        return [host.pool for host in self._router.members.all()]

    async def _let_go(
        self, conn: ACT, give_back: Callable[[HostPool[Any], ACT], Awaitable[None]]
    ) -> None:
        self._router.watch.require_this_loop()
        host = self._router.let_go(conn)
        if host is None:
            msg = f"cluster {self.name!r} cannot accept {conn!r}: it was not borrowed here"
            raise ReleaseError(f"{msg}; was it released already?")
        await give_back(host.pool, conn)
