"""psqlpy's ConnectionPool: a driver in Rust, whose threads do the I/O; it is in autocommit."""

from __future__ import annotations

from typing import Any

import psqlpy

from benchmarks._pools import Borrow, Setup, uri
from benchmarks._sql import FETCH, KEY, SELECT, THREE, TWENTY


class Psqlpy:
    """psqlpy's pool with a maximum size of at least two; it has no minimum and no time limit."""

    borrow: Borrow

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    async def open(self) -> None:
        """See `Subject`; the pool opens connections on demand."""
        size = max(2, self.setup.size)  # it refuses less
        self.pool = psqlpy.ConnectionPool(dsn=uri(self.setup.dsn), max_db_pool_size=size)
        self.borrow = self.pool.acquire

    async def close(self) -> None:
        """See `Subject`."""
        self.pool.close()

    async def select(self) -> Any:
        """See `Subject`; by itself or in `conn.transaction()`."""
        return await self._read(SELECT, [])

    async def by_key(self) -> Any:
        """See `Subject`; as `select`, with psqlpy's placeholder."""
        query, params = KEY
        return await self._read(query.replace("%s", "$1"), params)

    async def _read(self, query: str, params: list[int]) -> Any:
        async with self.pool.acquire() as conn:
            if self.setup.autocommit:
                return (await conn.fetch_row(query, params)).result(as_tuple=True)
            async with conn.transaction() as transaction:
                return (await transaction.fetch_row(query, params)).result(as_tuple=True)

    async def twenty(self) -> None:
        """See `Subject`; by `fetch_row()`."""
        query, params = KEY
        query = query.replace("%s", "$1")
        async with self.pool.acquire() as conn:
            for _ in range(TWENTY):
                (await conn.fetch_row(query, params)).result(as_tuple=True)

    async def transaction(self) -> None:
        """See `Subject`; in `conn.transaction()`."""
        async with self.pool.acquire() as conn, conn.transaction() as transaction:
            for statement in THREE:
                (await transaction.fetch_row(statement)).result(as_tuple=True)

    async def fetch(self) -> Any:
        """See `Subject`; as tuples, in the binary format."""
        async with self.pool.acquire() as conn:
            return (await conn.fetch(FETCH)).result(as_tuple=True)

    async def one_shot(self, query: str, params: list[int]) -> Any:
        """See `OneShots`; on a leased connection, as the pool itself runs nothing."""
        async with self.pool.acquire() as conn:
            return (await conn.fetch(query.replace("%s", "$1"), params)).result(as_tuple=True)

    async def write_once(self, query: str, params: list[int]) -> Any:
        """See `OneShots`; on a leased connection."""
        async with self.pool.acquire() as conn:
            return await conn.execute(query.replace("%s", "$1"), params)

    async def ask(self, conn: Any) -> Any:
        """See `Subject`; by `fetch_row()`."""
        return (await conn.fetch_row(SELECT)).result(as_tuple=True)
