"""SQLAlchemy's asyncio engine over psycopg, with its own QueuePool."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks._pools import uri
from benchmarks.web import _tests
from benchmarks.web._stores import Row, Setup

SELECT = text(_tests.SELECT.replace("%s", ":key"))
FORTUNES = text(_tests.FORTUNES)
UPDATE = text(_tests.UPDATE.replace("%s", ":number", 1).replace("%s", ":key"))


class SQLAlchemy:
    """An engine, and the same one in autocommit, on one pool."""

    def __init__(self, setup: Setup) -> None:
        self.default = create_async_engine(
            uri(setup.dsn, "postgresql+psycopg"), pool_size=setup.size, max_overflow=0
        )
        self.engine = self.default.execution_options(isolation_level="AUTOCOMMIT")

    async def open(self) -> None:
        """See `Store`; the pool opens connections on demand."""

    async def close(self) -> None:
        """See `Store`."""
        await self.default.dispose()

    async def row(self, key: int) -> Any:
        """See `Store`."""
        async with self.engine.connect() as conn:
            return (await conn.execute(SELECT, {"key": key})).fetchone()

    async def row_in_transaction(self, key: int) -> Any:
        """See `Transactions`."""
        async with self.default.begin() as conn:
            return (await conn.execute(SELECT, {"key": key})).fetchone()

    async def rows(self, keys: list[int]) -> list[Any]:
        """See `Store`."""
        async with self.engine.connect() as conn:
            return [(await conn.execute(SELECT, {"key": key})).fetchone() for key in keys]

    async def fortunes(self) -> list[Any]:
        """See `Store`."""
        async with self.engine.connect() as conn:
            return list((await conn.execute(FORTUNES)).fetchall())

    async def update(self, changes: list[Row]) -> None:
        """See `Store`; by a list of parameters, which becomes psycopg's `executemany()`."""
        async with self.engine.connect() as conn:
            for _, key in changes:
                (await conn.execute(SELECT, {"key": key})).fetchone()
            await conn.execute(UPDATE, [{"number": number, "key": key} for number, key in changes])
