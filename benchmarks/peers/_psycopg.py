"""The statements on psycopg's connections: the same code for every pool that provides them."""

from __future__ import annotations

from typing import Any

from benchmarks._pools import Borrow
from benchmarks._sql import FETCH, KEY, SELECT, THREE, TWENTY, Load


class Psycopg:
    """The statements of an adapter whose pool has `connection()`."""

    borrow: Borrow

    async def select(self) -> Any:
        """See `Subject`; if a transaction was begun, the pool commits it."""
        async with self.borrow() as conn:
            cur = await conn.execute(SELECT)
            return await cur.fetchone()

    async def by_key(self) -> Any:
        """See `Subject`; as `select`."""
        async with self.borrow() as conn:
            cur = await conn.execute(*KEY)
            return await cur.fetchone()

    async def twenty(self) -> None:
        """See `Subject`; `conn.execute()` makes a new cursor each time."""
        async with self.borrow() as conn:
            for _ in range(TWENTY):
                cur = await conn.execute(*KEY)
                await cur.fetchone()

    async def transaction(self) -> None:
        """See `Subject`; the first statement begins the transaction, and the pool commits it."""
        async with self.borrow() as conn:
            for statement in THREE:
                cur = await conn.execute(statement)
                await cur.fetchone()

    async def fetch(self) -> Any:
        """See `Subject`; by `fetchall()`, in the text format, which is the default."""
        async with self.borrow() as conn:
            cur = await conn.execute(FETCH)
            return await cur.fetchall()

    async def one_shot(self, query: str, params: list[int]) -> Any:
        """See `OneShots`; on a leased connection."""
        async with self.borrow() as conn:
            cur = await conn.execute(query, params or None)
            return await cur.fetchall()

    async def write_once(self, query: str, params: list[int]) -> Any:
        """See `OneShots`; on a leased connection."""
        async with self.borrow() as conn:
            return await conn.execute(query, params)

    async def ask(self, conn: Any) -> Any:
        """See `Subject`; `conn.execute()` makes a new cursor each time."""
        cur = await conn.execute(SELECT)
        return await cur.fetchone()

    async def copy_out(self, conn: Any, load: Load) -> int:
        """See `Copier`; each block is a line."""
        size = 0
        async with conn.cursor() as cur, cur.copy(f"COPY ({load.query()}) TO STDOUT") as copy:
            async for block in copy:
                size += len(block)
        return size

    async def copy_in(self, conn: Any, load: Load) -> None:
        """See `Copier`; by `copy.write()`."""
        async with conn.cursor() as cur, cur.copy(f"COPY {load.table} FROM STDIN") as copy:
            async for block in load.source():
                await copy.write(block)
