"""SQLAlchemy's asyncio engine over psycopg."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks import _sql
from benchmarks._pools import Borrow, Setup, uri

SELECT = text(_sql.SELECT)
THREE = [text(statement) for statement in _sql.THREE]
KEY, KEYS = text(_sql.KEY[0].replace("%s", "CAST(:key AS int)")), {"key": _sql.KEY[1][0]}
FETCH = text(_sql.FETCH)


class SQLAlchemy:
    """SQLAlchemy's engine with `pool_size` and no overflow."""

    borrow: Borrow

    def __init__(self, setup: Setup) -> None:
        mode = {"isolation_level": "AUTOCOMMIT"} if setup.autocommit else {}
        self.engine = create_async_engine(
            uri(setup.dsn, "postgresql+psycopg"),
            pool_size=setup.size,
            max_overflow=0,
            pool_timeout=setup.timeout,
            **mode,
        )
        self.borrow = self.engine.connect
        self.begin = self.engine.connect if setup.autocommit else self.engine.begin

    async def open(self) -> None:
        """See `Subject`; the pool opens connections on demand."""

    async def close(self) -> None:
        """See `Subject`."""
        await self.engine.dispose()

    async def select(self) -> Any:
        """See `Subject`; by the same `text()` each time, which SQLAlchemy compiles once."""
        async with self.begin() as conn:
            return (await conn.execute(SELECT)).fetchone()

    async def by_key(self) -> Any:
        """See `Subject`; as `select`."""
        async with self.begin() as conn:
            return (await conn.execute(KEY, KEYS)).fetchone()

    async def twenty(self) -> None:
        """See `Subject`; by the same `text()` each time."""
        async with self.begin() as conn:
            for _ in range(_sql.TWENTY):
                (await conn.execute(KEY, KEYS)).fetchone()

    async def transaction(self) -> None:
        """See `Subject`; in `engine.begin()`."""
        async with self.begin() as conn:
            for statement in THREE:
                (await conn.execute(statement)).fetchone()

    async def fetch(self) -> Any:
        """See `Subject`; by `fetchall()`."""
        async with self.begin() as conn:
            return (await conn.execute(FETCH)).fetchall()

    async def ask(self, conn: Any) -> Any:
        """See `Subject`; by the same `text()` each time."""
        return (await conn.execute(SELECT)).fetchone()
