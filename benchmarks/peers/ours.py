"""asyncpool, with its own connections and with psycopg's."""

from __future__ import annotations

from typing import Any

import psycopg

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool
from benchmarks._pools import Setup
from benchmarks.peers._psycopg import Psycopg


class Ours(Psycopg):
    """asyncpool's pool with min_size = max_size; one-shots share connections."""

    def __init__(self, setup: Setup, **options: Any) -> None:
        self._dsn = setup.dsn
        self._options = {
            "timeout": setup.timeout,
            "kwargs": {"autocommit": setup.autocommit},
            "open": False,
            **options,
        }
        self.pool = AsyncConnectionPool(
            setup.dsn, min_size=setup.size, max_size=setup.size, **self._options
        )
        self.borrow = self.pool.connection

    async def one_shot(self, query: str, params: list[int]) -> Any:
        """See `OneShots`; by `pool.fetchall()`."""
        return await self.pool.fetchall(query, params or None)

    async def write_once(self, query: str, params: list[int]) -> Any:
        """See `OneShots`; by `pool.execute()`."""
        return await self.pool.execute(query, params)

    def null_pool(self) -> AsyncNullConnectionPool[Any]:
        """See `NullPools`."""
        return AsyncNullConnectionPool(self._dsn, **self._options)

    async def open(self) -> None:
        """See `Subject`; wait until all connections are open."""
        await self.pool.open(wait=True)

    async def close(self) -> None:
        """See `Subject`."""
        await self.pool.close()


class OursPsycopgWait(Ours):
    """asyncpool's pool of `psycopg.AsyncConnection`, whose waits are psycopg's."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, connection_class=psycopg.AsyncConnection)
