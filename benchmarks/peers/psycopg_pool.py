"""psycopg_pool.AsyncConnectionPool: written as asyncpool's adapter is, to the letter."""

from __future__ import annotations

from typing import Any

from psycopg_pool import AsyncConnectionPool

from benchmarks._pools import Borrow, Setup


class PsycopgPool:
    """min_size = max_size; `open(wait=True)`; `pool.connection()`."""

    borrow: Borrow

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

    async def select(self) -> Any:
        """In the connection's own mode; a transaction is committed by the pool."""
        async with self.pool.connection() as conn:
            cur = await conn.execute("SELECT 1")
            return await cur.fetchone()
