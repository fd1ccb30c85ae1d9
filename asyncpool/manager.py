"""`PoolManager`: a pool for each of many databases, under one limit of connections.

The manager decides only which pools exist. The budget decides which pool may open a connection.
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

from asyncpool._blocks.connection_block import ConnectionBlock
from asyncpool._blocks.supports import Exc
from asyncpool._core.budget import Budget
from asyncpool._core.settings import count, duration
from asyncpool._psycopg.conninfo import check_conninfo
from asyncpool._psycopg.sources import Conninfo
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
    """A pool for each database, opened on first use, under one limit of connections for all.

    The constructor does no I/O and needs no running loop.

    Args:
        conninfo: a function from a key, such as a tenant's name, to the `conninfo` of its
            `AsyncConnectionPool`; called once for each pool. None: the keys are connection strings,
            and keys with the same parameters share a pool.
        max_connections: the most connections of all pools together.
        max_size: the most connections of one pool.
        max_pools: the most pools to keep; above it the manager closes the least recently used
            pools that are not in use. None: no limit.
        name: the prefix of the pools' names.
        options: keyword arguments for each `AsyncConnectionPool`; `min_size` defaults to 0.

    Raises:
        TypeError, ValueError: an argument or an option is invalid.
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
        for reserved in ("budget", "open"):
            if reserved in options:
                msg = f"{reserved} is not an option here: the manager sets it for each pool"
                raise TypeError(msg)
        self.name = name
        self.budget = Budget(max_connections)
        self._conninfo = conninfo
        self._max_pools = max_pools
        self._options = {"min_size": 0, "max_size": max_size} | options
        self._pools: OrderedDict[Hashable, Pool] = OrderedDict()
        """By key, the most recently used last."""
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        AsyncConnectionPool("", **self._options)  # raises at once if an option is invalid

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
        """Return the pool for a key; a new pool opens on its first use.

        Do not keep the pool: with `max_pools`, an unused one may be closed to make room.

        Args:
            key: a key of `conninfo`, or a connection string if the manager has no `conninfo`.

        Raises:
            PoolClosed: the manager is closed.
            TypeError, ValueError: the manager has no `conninfo`, and the key is not a valid
                connection string.
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

    def connection(self, key: K, timeout: float | None = None) -> ManagedBlock[K]:
        """Borrow a connection from the pool for a key, for a block.

        Args:
            key: as for `pool`.
            timeout: seconds to wait for a connection; None: the pool's `timeout`.

        Raises:
            psycopg.OperationalError: as for `AsyncConnectionPool.connection`.
            Exception: on entry, as for `pool`.
        """
        return ManagedBlock(self, key, timeout)

    def stats(self) -> dict[str, PoolStats]:
        """Return the statistics of each pool by the pool's name."""
        return {pool.name: pool.stats() for pool in self}

    async def drop(self, key: K, timeout: float = 5.0) -> None:
        """Close the pool for a key, if there is one, such as before its database is dropped.

        Args:
            key: as for `pool`, which makes a new pool if it is called with the key again.
            timeout: seconds to wait for leased connections.
        """
        duration("timeout", timeout)
        pool = self._pools.pop(self._identity(key), None)
        if pool is not None:
            await pool.close(timeout)

    async def close(self, timeout: float = 5.0) -> None:
        """Close all pools concurrently; see `AsyncConnectionPool.close`.

        Args:
            timeout: seconds to wait for leased connections.
        """
        duration("timeout", timeout)
        self._closed = True
        pools = list(self._pools.values())
        self._pools.clear()
        for pool in pools:
            self._start_closing(pool, timeout)
        closing = [task for task in self._closing if task.get_loop() is asyncio.get_running_loop()]
        if closing:
            # If the task is cancelled here, each pool finishes closing by itself.
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
        """Close the least recently used pools that are not in use, while there are too many."""
        surplus = 0 if self._max_pools is None else len(self._pools) - self._max_pools
        newest = next(reversed(self._pools))
        for identity, pool in list(self._pools.items()):
            if surplus <= 0:
                return
            if identity != newest and _is_unused(pool):
                del self._pools[identity]
                surplus -= 1
                self._start_closing(pool, 0.0)

    def _start_closing(self, pool: Pool, timeout: float) -> None:
        if pool._core.home is None:
            pool._core.close_unopened()  # a pool that was never opened has nothing to close
            return
        work = pool.close(timeout)
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard, context=Context())


class ManagedBlock(Generic[K]):
    """`manager.connection(key)`: a block with a connection of that key's pool."""

    __slots__ = ("_block", "_key", "_manager", "_timeout")

    def __init__(self, manager: PoolManager[K], key: K, timeout: float | None) -> None:
        self._manager = manager
        self._key = key
        self._timeout = timeout

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        self._block: ConnectionBlock[psycopg.AsyncConnection[Any]]
        self._block = self._manager.pool(self._key).connection(self._timeout)
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._block.__aexit__(kind, error, tb)


def _is_unused(pool: Pool) -> bool:
    """Whether the pool has no lease, no waiter and no connection being cleaned."""
    now = pool.stats()
    return now.leased == now.waiting == now.cleaning == 0
