"""psycopg_pool's AsyncConnectionPool, by the same code as asyncpool's."""

from __future__ import annotations

from psycopg_pool import AsyncConnectionPool

from benchmarks._pools import Setup
from benchmarks.peers._psycopg import Psycopg


class PsycopgPool(Psycopg):
    """psycopg_pool's pool with min_size = max_size."""

    def __init__(self, setup: Setup) -> None:
        self.pool = AsyncConnectionPool(
            setup.dsn,
            min_size=setup.size,
            max_size=setup.size,
            timeout=setup.timeout,
            kwargs={"autocommit": setup.autocommit},
            open=False,
        )
        self.borrow = self.pool.connection

    async def open(self) -> None:
        """See `Subject`; wait until all connections are open."""
        await self.pool.open(wait=True)

    async def close(self) -> None:
        """See `Subject`."""
        await self.pool.close()
