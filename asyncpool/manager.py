"""A pool for each of many databases, under one limit of connections.

It decides which pools there are. Who may open a connection is the budget's to say, and everything
else each pool's own.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextvars import Context
from types import TracebackType
from typing import Any, Generic, Self

import anyio
import psycopg

from asyncpool._blocks.blocks import Exc, Lease
from asyncpool._core.budget import Budget
from asyncpool._core.settings import count, duration
from asyncpool._psycopg.conninfo import check_conninfo
from asyncpool._psycopg.driver import Conninfo
from asyncpool.errors import PoolClosed
from asyncpool.pool import AsyncConnectionPool
from asyncpool.stats import PoolStats

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

K = TypeVar("K", bound=Hashable, default=Any)
Pool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]


class PoolManager(Generic[K]):
    """A pool for each database, opened when it is first asked for, under one limit for all.

    Its constructor does no I/O and needs no running loop.

    Args:
        conninfo: gives the connection string for a key, such as a tenant's name, or a callable as
            `AsyncConnectionPool` takes it; called once for each pool that is made. None: the keys
            are connection strings, and those with the same parameters share a pool.
        max_connections: the most connections of all pools together.
        max_size: the most connections of one pool.
        max_pools: the most pools that are kept; beyond it the least recently used of those that
            are at rest is closed. None: no limit.
        name: the beginning of the pools' names.
        options: keyword arguments for each `AsyncConnectionPool`; without `min_size` it is 0.

    Raises:
        TypeError, ValueError: an argument makes no sense, `options` included.
    """

    def __init__(
        self,
        conninfo: Callable[[K], Conninfo] | None = None,
        *,
        max_connections: int,
        max_size: int = 10,
        max_pools: int | None = None,
        name: str = "manager",
        **options: Any,
    ) -> None:
        if not (conninfo is None or callable(conninfo)):
            msg = f"conninfo must be a callable that takes a key, not {type(conninfo).__name__}"
            raise TypeError(msg)
        if max_pools is not None and not count("max_pools", max_pools):
            msg = "max_pools must be at least 1, or None: got 0"
            raise ValueError(msg)
        for taken in ("budget", "open"):
            if taken in options:
                msg = f"{taken} is the manager's own to give to its pools"
                raise TypeError(msg)
        self.name = name
        self.budget = Budget(max_connections)
        self._conninfo = conninfo
        self._max_pools = max_pools
        self._options = {"min_size": 0, "max_size": max_size} | options
        self._pools: OrderedDict[Hashable, Pool] = OrderedDict()
        """By key; the most recently used is the last."""
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        AsyncConnectionPool("", **self._options)  # says at once what makes no sense

    def __repr__(self) -> str:
        budget = self.budget
        sizes = f"pools={len(self)} size={budget.size}/{budget.max_connections}"
        return f"<{type(self).__name__} {self.name!r} {sizes}>"

    def __len__(self) -> int:
        return len(self._pools)

    def __contains__(self, key: K) -> bool:
        return self._identity(key) in self._pools

    def __iter__(self) -> Iterator[Pool]:
        return iter(list(self._pools.values()))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def pool(self, key: K) -> Pool:
        """The pool for a key, made if there is none; it opens on its first use.

        Do not keep it: with `max_pools` one at rest may be closed to make room for another.

        Raises:
            PoolClosed: the manager is closed.
            ValueError: the key is no connection string, where it has to be one.
            Exception: whatever `conninfo` raises.
        """
        if self._closed:
            msg = f"pool manager {self.name!r} is closed"
            raise PoolClosed(msg)
        identity = self._identity(key)
        pool = self._pools.get(identity)
        if pool is None or pool._core.closed:
            pool = self._pools[identity] = self._make(key)
            self._retire_surplus()
        self._pools.move_to_end(identity)
        return pool

    def connection(self, key: K, timeout: float | None = None) -> Tenancy[K]:
        """A connection of a key's pool for a block, as the pool's own `connection()`.

        Raises:
            PoolError: on entry, as there; also when the manager is closed.
            ValueError: on entry: the key is no connection string, where it has to be one.
        """
        return Tenancy(self, key, timeout)

    def stats(self) -> dict[str, PoolStats]:
        """The numbers of each pool, by its name."""
        return {pool.name: pool.stats() for pool in self}

    async def drop(self, key: K, timeout: float = 5.0) -> None:
        """Close the pool for a key, if there is one; for a database that is to go.

        Args:
            key: as for `pool`, which makes a new one if it is asked for the key again.
            timeout: seconds to wait for connections that are lent out.
        """
        duration("timeout", timeout)
        pool = self._pools.pop(self._identity(key), None)
        if pool is not None:
            await pool.close(timeout)

    async def close(self, timeout: float = 5.0) -> None:
        """Close all pools, at once; see `AsyncConnectionPool.close`.

        Args:
            timeout: seconds to wait for connections that are lent out.
        """
        duration("timeout", timeout)
        self._closed = True
        pools = list(self._pools.values())
        self._pools.clear()
        for pool in pools:
            self._start_closing(pool, timeout)
        closing = [task for task in self._closing if task.get_loop() is asyncio.get_running_loop()]
        if closing:
            # Cancelled, it leaves each to come to its end.
            with anyio.CancelScope(shield=True):
                await asyncio.wait(closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def _identity(self, key: K) -> Hashable:
        if self._conninfo is not None:
            return key
        if not isinstance(key, str):
            msg = f"the key must be a connection string, not {type(key).__name__}"
            raise TypeError(msg)
        return frozenset(check_conninfo(key).items())

    def _make(self, key: K) -> Pool:
        if self._conninfo is not None:
            return AsyncConnectionPool(
                self._conninfo(key), name=f"{self.name}: {key}", budget=self.budget, **self._options
            )
        params = check_conninfo(str(key))
        where = " ".join(
            f"{name}={str(params[name]).rpartition('@')[2]}"
            for name in ("dbname", "user", "host", "port")
            if name in params
        )
        return AsyncConnectionPool(
            str(key), name=f"{self.name}: {where}", budget=self.budget, **self._options
        )

    def _retire_surplus(self) -> None:
        """Close those that have rested longest, as long as there are too many."""
        surplus = 0 if self._max_pools is None else len(self._pools) - self._max_pools
        newest = next(reversed(self._pools))
        for identity, pool in list(self._pools.items()):
            if surplus <= 0:
                return
            if identity != newest and _is_at_rest(pool):
                del self._pools[identity]
                surplus -= 1
                self._start_closing(pool, 0.0)

    def _start_closing(self, pool: Pool, timeout: float) -> None:
        if not pool._core.opened:
            pool._core.store.closing = True  # nothing is there to be closed
            return
        work = pool.close(timeout)
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard, context=Context())


class Tenancy(Generic[K]):
    """`manager.connection(key)`: a connection of that pool for a block."""

    __slots__ = ("_key", "_lease", "_manager", "_timeout")

    def __init__(self, manager: PoolManager[K], key: K, timeout: float | None) -> None:
        self._manager = manager
        self._key = key
        self._timeout = timeout

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        self._lease: Lease[psycopg.AsyncConnection[Any]]
        self._lease = self._manager.pool(self._key).connection(self._timeout)
        return await self._lease.__aenter__()

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._lease.__aexit__(kind, error, tb)


def _is_at_rest(pool: Pool) -> bool:
    """Whether nobody has anything of it, or waits for it."""
    now = pool.stats()
    return now.leased == now.waiting == now.cleaning == 0
