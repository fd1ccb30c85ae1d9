"""psqlpy, whose driver is in Rust."""

from __future__ import annotations

from typing import Any

import psqlpy

from benchmarks._pools import uri
from benchmarks.web import _tests
from benchmarks.web._stores import Row, Setup
from benchmarks.web._tests import FORTUNES

SELECT = _tests.SELECT.replace("%s", "$1")
UPDATE = _tests.UPDATE.replace("%s", "$1", 1).replace("%s", "$2")


class Psqlpy:
    """psqlpy's pool, which opens connections on demand."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    async def open(self) -> None:
        """See `Store`."""
        size = max(2, self.setup.size)  # it refuses less
        self.pool = psqlpy.ConnectionPool(dsn=uri(self.setup.dsn), max_db_pool_size=size)

    async def close(self) -> None:
        """See `Store`."""
        self.pool.close()

    async def row(self, key: int) -> Any:
        """See `Store`."""
        async with self.pool.acquire() as conn:
            return (await conn.fetch_row(SELECT, [key])).result(as_tuple=True)

    async def row_in_transaction(self, key: int) -> Any:
        """See `Transactions`."""
        async with self.pool.acquire() as conn, conn.transaction() as transaction:
            return (await transaction.fetch_row(SELECT, [key])).result(as_tuple=True)

    async def rows(self, keys: list[int]) -> list[Any]:
        """See `Store`."""
        async with self.pool.acquire() as conn:
            return [(await conn.fetch_row(SELECT, [key])).result(as_tuple=True) for key in keys]

    async def fortunes(self) -> list[Any]:
        """See `Store`."""
        async with self.pool.acquire() as conn:
            return (await conn.fetch(FORTUNES)).result(as_tuple=True)

    async def update(self, changes: list[Row]) -> None:
        """See `Store`; by `execute_many()`, which runs one statement after another."""
        async with self.pool.acquire() as conn:
            for _, key in changes:
                (await conn.fetch_row(SELECT, [key])).result(as_tuple=True)
            await conn.execute_many(UPDATE, [list(change) for change in changes])
