"""psycopg_pool.AsyncConnectionPool: written as asyncpool's adapter is, to the letter."""

from __future__ import annotations

from psycopg_pool import AsyncConnectionPool

from benchmarks._pools import Setup
from benchmarks.peers._psycopg import Psycopg


class PsycopgPool(Psycopg):
    """min_size = max_size; `open(wait=True)`; `pool.connection()`."""

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
        """Wait until all are open."""
        await self.pool.open(wait=True)

    async def close(self) -> None:
        """Close."""
        await self.pool.close()
