"""asyncpool and psycopg_pool, on borrowed connections by the same code, and one-shots."""

from __future__ import annotations

from typing import Any, ClassVar

import psycopg_pool

import asyncpool
from benchmarks.web._stores import Row, Setup
from benchmarks.web._tests import FORTUNES, SELECT, UPDATE


class Borrowed:
    """A pool in autocommit, and one with the default, in which a block is a transaction."""

    kind: ClassVar[Any] = asyncpool.AsyncConnectionPool

    def __init__(self, setup: Setup) -> None:
        self.pool, self.default = (
            self.kind(
                setup.dsn,
                min_size=setup.size,
                max_size=setup.size,
                kwargs={"autocommit": autocommit},
                open=False,
            )
            for autocommit in (True, False)
        )

    async def open(self) -> None:
        """See `Store`."""
        await self.pool.open(wait=True)
        await self.default.open(wait=True)

    async def close(self) -> None:
        """See `Store`."""
        await self.pool.close()
        await self.default.close()

    async def row(self, key: int) -> Any:
        """See `Store`."""
        async with self.pool.connection() as conn:
            return await (await conn.execute(SELECT, (key,))).fetchone()

    async def row_in_transaction(self, key: int) -> Any:
        """See `Transactions`; the pool commits."""
        async with self.default.connection() as conn:
            return await (await conn.execute(SELECT, (key,))).fetchone()

    async def rows(self, keys: list[int]) -> list[Any]:
        """See `Store`."""
        async with self.pool.connection() as conn:
            return [await (await conn.execute(SELECT, (key,))).fetchone() for key in keys]

    async def fortunes(self) -> list[Any]:
        """See `Store`."""
        async with self.pool.connection() as conn:
            found: list[Any] = await (await conn.execute(FORTUNES)).fetchall()
            return found

    async def update(self, changes: list[Row]) -> None:
        """See `Store`; by `executemany()`, which psycopg pipelines."""
        async with self.pool.connection() as conn:
            for _, key in changes:
                await (await conn.execute(SELECT, (key,))).fetchone()
            await conn.cursor().executemany(UPDATE, changes)


class PsycopgPool(Borrowed):
    """psycopg_pool's pool."""

    kind = psycopg_pool.AsyncConnectionPool


class OneShots:
    """asyncpool's statements without a connection; several are one after another."""

    def __init__(self, setup: Setup) -> None:
        self.pool = asyncpool.AsyncConnectionPool(
            setup.dsn,
            min_size=setup.size,
            max_size=setup.size,
            kwargs={"autocommit": True},
            open=False,
        )

    async def open(self) -> None:
        """See `Store`."""
        await self.pool.open(wait=True)

    async def close(self) -> None:
        """See `Store`."""
        await self.pool.close()

    async def row(self, key: int) -> Any:
        """See `Store`."""
        return await self.pool.fetchone(SELECT, (key,))

    async def rows(self, keys: list[int]) -> list[Any]:
        """See `Store`."""
        return [await self.pool.fetchone(SELECT, (key,)) for key in keys]

    async def fortunes(self) -> list[Any]:
        """See `Store`."""
        return await self.pool.fetchall(FORTUNES)

    async def update(self, changes: list[Row]) -> None:
        """See `Store`; by `pool.executemany()`."""
        for _, key in changes:
            await self.pool.fetchone(SELECT, (key,))
        await self.pool.executemany(UPDATE, changes)
