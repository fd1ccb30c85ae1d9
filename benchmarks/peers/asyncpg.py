"""asyncpg's Pool, as it comes and without the query by which it resets what is returned."""

from __future__ import annotations

from typing import Any

import asyncpg  # type: ignore[import-untyped]

from benchmarks._pools import Borrow, Setup, uri
from benchmarks._sql import FETCH, SELECT, THREE, Load


class Asyncpg:
    """`create_pool(min_size=max_size)`; `pool.acquire()`, with no time limit as is its default."""

    borrow: Borrow

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.options: dict[str, Any] = {}

    async def open(self) -> None:
        """It opens one, then the others at once."""
        size = self.setup.size
        self.pool = await asyncpg.create_pool(
            uri(self.setup.dsn), min_size=size, max_size=size, **self.options
        )
        self.borrow = self.pool.acquire

    async def close(self) -> None:
        """Close."""
        await self.pool.close()

    async def select(self) -> Any:
        """A statement by itself, or in `conn.transaction()`: asyncpg is always in autocommit."""
        async with self.pool.acquire() as conn:
            if self.setup.autocommit:
                return await conn.fetchrow(SELECT)
            async with conn.transaction():
                return await conn.fetchrow(SELECT)

    async def transaction(self) -> None:
        """In `conn.transaction()`."""
        async with self.pool.acquire() as conn, conn.transaction():
            for statement in THREE:
                await conn.fetchrow(statement)

    async def fetch(self) -> Any:
        """With `fetch()`, in the binary format, which is asyncpg's only one."""
        async with self.pool.acquire() as conn:
            return await conn.fetch(FETCH)

    async def one_shot(self, query: str, params: list[int]) -> Any:
        """By `pool.fetch()`, with a placeholder of its own."""
        return await self.pool.fetch(query.replace("%s", "$1"), *params)

    async def write_once(self, query: str, params: list[int]) -> Any:
        """By `pool.execute()`, with a placeholder of its own."""
        return await self.pool.execute(query.replace("%s", "$1"), *params)

    async def ask(self, conn: Any) -> Any:
        """By `fetchrow()`, from asyncpg's own cache of prepared statements."""
        return await conn.fetchrow(SELECT)

    async def copy_out(self, conn: Any, load: Load) -> int:
        """To a coroutine, which asyncpg gives what has arrived: many lines at a time."""
        size = 0

        async def take(block: bytes) -> None:
            nonlocal size
            size += len(block)

        await conn.copy_from_query(load.query(), output=take)
        return size

    async def copy_in(self, conn: Any, load: Load) -> None:
        """From an asynchronous iterator."""
        await conn.copy_to_table(load.table, source=load.source())


class AsyncpgNoReset(Asyncpg):
    """With a `reset` of the user's that does nothing: asyncpg still ends open transactions."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.options = {"reset": _nothing}


async def _nothing(_: Any) -> None:
    pass
