"""asyncpg, with and without its query that resets a returned connection."""

from __future__ import annotations

from typing import Any

import asyncpg  # type: ignore[import-untyped]

from benchmarks._pools import uri
from benchmarks.web import _tests
from benchmarks.web._stores import Row, Setup
from benchmarks.web._tests import FORTUNES

SELECT = _tests.SELECT.replace("%s", "$1")
UPDATE = _tests.UPDATE.replace("%s", "$1", 1).replace("%s", "$2")


class Asyncpg:
    """asyncpg's pool; it prepares what is fetched."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.options: dict[str, Any] = {}

    async def open(self) -> None:
        """See `Store`."""
        size = self.setup.size
        self.pool = await asyncpg.create_pool(
            uri(self.setup.dsn), min_size=size, max_size=size, **self.options
        )

    async def close(self) -> None:
        """See `Store`."""
        await self.pool.close()

    async def row(self, key: int) -> Any:
        """See `Store`."""
        async with self.pool.acquire() as conn:
            return await conn.fetchrow(SELECT, key)

    async def row_in_transaction(self, key: int) -> Any:
        """See `Transactions`."""
        async with self.pool.acquire() as conn, conn.transaction():
            return await conn.fetchrow(SELECT, key)

    async def rows(self, keys: list[int]) -> list[Any]:
        """See `Store`."""
        async with self.pool.acquire() as conn:
            return [await conn.fetchrow(SELECT, key) for key in keys]

    async def fortunes(self) -> list[Any]:
        """See `Store`."""
        async with self.pool.acquire() as conn:
            return list(await conn.fetch(FORTUNES))

    async def update(self, changes: list[Row]) -> None:
        """See `Store`; by `executemany()`."""
        async with self.pool.acquire() as conn:
            for _, key in changes:
                await conn.fetchrow(SELECT, key)
            await conn.executemany(UPDATE, changes)


class AsyncpgNoReset(Asyncpg):
    """asyncpg's pool with a `reset` that does nothing."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = {"reset": _nothing}


async def _nothing(_: Any) -> None:
    pass
