"""psycopg_pool's AsyncConnectionPool, by the same code as asyncpool's."""

from __future__ import annotations

from typing import Any

from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool

from benchmarks._pools import Setup
from benchmarks.peers._psycopg import Psycopg


class PsycopgPool(Psycopg):
    """psycopg_pool's pool with min_size = max_size."""

    def __init__(self, setup: Setup) -> None:
        self._dsn = setup.dsn
        self._options: dict[str, Any] = {
            "timeout": setup.timeout,
            "kwargs": {"autocommit": setup.autocommit},
            "open": False,
        }
        self.pool = AsyncConnectionPool(
            setup.dsn, min_size=setup.size, max_size=setup.size, **self._options
        )
        self.borrow = self.pool.connection

    def null_pool(self) -> AsyncNullConnectionPool[Any]:
        """See `NullPools`."""
        return AsyncNullConnectionPool(self._dsn, **self._options)

    async def open(self) -> None:
        """See `Subject`; wait until all connections are open."""
        await self.pool.open(wait=True)

    async def close(self) -> None:
        """See `Subject`."""
        await self.pool.close()
