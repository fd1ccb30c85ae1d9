"""asyncpg's Pool, with and without its query that resets a returned connection."""

from __future__ import annotations

from typing import Any

import asyncpg  # type: ignore[import-untyped]

from benchmarks._pools import Borrow, Setup, uri
from benchmarks._sql import FETCH, KEY, SELECT, THREE, TWENTY, Load


class Asyncpg:
    """asyncpg's pool with min_size = max_size; requests have no time limit by default."""

    borrow: Borrow

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.options: dict[str, Any] = {}

    async def open(self) -> None:
        """See `Subject`; the pool opens one connection, then the others at the same time."""
        size = self.setup.size
        self.pool = await asyncpg.create_pool(
            uri(self.setup.dsn), min_size=size, max_size=size, **self.options
        )
        self.borrow = self.pool.acquire

    async def close(self) -> None:
        """See `Subject`."""
        await self.pool.close()

    async def select(self) -> Any:
        """See `Subject`; by itself or in `conn.transaction()`: asyncpg is always in autocommit."""
        return await self._read(SELECT, [])

    async def by_key(self) -> Any:
        """See `Subject`; as `select`, with asyncpg's placeholder."""
        query, params = KEY
        return await self._read(query.replace("%s", "$1"), params)

    async def _read(self, query: str, params: list[int]) -> Any:
        async with self.pool.acquire() as conn:
            if self.setup.autocommit:
                return await conn.fetchrow(query, *params)
            async with conn.transaction():
                return await conn.fetchrow(query, *params)

    async def twenty(self) -> None:
        """See `Subject`; by `fetchrow()`."""
        query, params = KEY
        query = query.replace("%s", "$1")
        async with self.pool.acquire() as conn:
            for _ in range(TWENTY):
                await conn.fetchrow(query, *params)

    async def transaction(self) -> None:
        """See `Subject`; in `conn.transaction()`."""
        async with self.pool.acquire() as conn, conn.transaction():
            for statement in THREE:
                await conn.fetchrow(statement)

    async def fetch(self) -> Any:
        """See `Subject`; by `fetch()`, in the binary format, the only one of asyncpg."""
        async with self.pool.acquire() as conn:
            return await conn.fetch(FETCH)

    async def one_shot(self, query: str, params: list[int]) -> Any:
        """See `OneShots`; by `pool.fetch()`, with asyncpg's placeholder."""
        return await self.pool.fetch(query.replace("%s", "$1"), *params)

    async def write_once(self, query: str, params: list[int]) -> Any:
        """See `OneShots`; by `pool.execute()`, with asyncpg's placeholder."""
        return await self.pool.execute(query.replace("%s", "$1"), *params)

    async def ask(self, conn: Any) -> Any:
        """See `Subject`; by `fetchrow()`, which prepares the statement."""
        return await conn.fetchrow(SELECT)

    async def copy_out(self, conn: Any, load: Load) -> int:
        """See `Copier`; asyncpg passes each received block to a coroutine, many lines at a time."""
        size = 0

        async def take(block: bytes) -> None:
            nonlocal size
            size += len(block)

        await conn.copy_from_query(load.query(), output=take)
        return size

    async def copy_in(self, conn: Any, load: Load) -> None:
        """See `Copier`; from an asynchronous iterator."""
        await conn.copy_to_table(load.table, source=load.source())


class AsyncpgNoReset(Asyncpg):
    """asyncpg's pool with a `reset` that does nothing; it still ends open transactions."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = {"reset": _nothing}


async def _nothing(_: Any) -> None:
    pass
