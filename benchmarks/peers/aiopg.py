"""aiopg's Pool: psycopg2 in its asynchronous mode, which is always autocommit."""

from __future__ import annotations

from typing import Any

import aiopg

from benchmarks._pools import Borrow, Setup
from benchmarks._sql import FETCH, KEY, SELECT, THREE, TWENTY


class Aiopg:
    """aiopg's pool with minsize = maxsize; it registers its types, which is the default."""

    borrow: Borrow

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    async def open(self) -> None:
        """See `Subject`; the pool opens its connections one after another."""
        size, timeout = self.setup.size, self.setup.timeout
        self.pool = await aiopg.create_pool(
            self.setup.dsn, minsize=size, maxsize=size, timeout=timeout
        )
        self.borrow = self.pool.acquire

    async def close(self) -> None:
        """See `Subject`."""
        self.pool.close()
        await self.pool.wait_closed()

    async def select(self) -> Any:
        """See `Subject`; by itself or in `cur.begin()`."""
        return await self._read(SELECT, [])

    async def by_key(self) -> Any:
        """See `Subject`; as `select`."""
        return await self._read(*KEY)

    async def _read(self, query: str, params: list[int]) -> Any:
        async with self.pool.acquire() as conn, conn.cursor() as cur:
            if self.setup.autocommit:
                await cur.execute(query, params)
                return await cur.fetchone()
            async with cur.begin():
                await cur.execute(query, params)
                return await cur.fetchone()

    async def twenty(self) -> None:
        """See `Subject`; on one cursor."""
        async with self.pool.acquire() as conn, conn.cursor() as cur:
            for _ in range(TWENTY):
                await cur.execute(*KEY)
                await cur.fetchone()

    async def transaction(self) -> None:
        """See `Subject`; on one cursor, in `cur.begin()`."""
        async with self.pool.acquire() as conn, conn.cursor() as cur, cur.begin():
            for statement in THREE:
                await cur.execute(statement)
                await cur.fetchone()

    async def fetch(self) -> Any:
        """See `Subject`; by `fetchall()`."""
        async with self.pool.acquire() as conn, conn.cursor() as cur:
            await cur.execute(FETCH)
            return await cur.fetchall()

    async def ask(self, conn: Any) -> Any:
        """See `Subject`; on a new cursor each time."""
        async with conn.cursor() as cur:
            await cur.execute(SELECT)
            return await cur.fetchone()
