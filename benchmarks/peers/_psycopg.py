"""What runs on psycopg's connections, whichever pool has lent them: the same, to the letter."""

from __future__ import annotations

from typing import Any

from benchmarks._pools import Borrow
from benchmarks._sql import FETCH, SELECT, THREE, Load


class Psycopg:
    """The statements of an adapter whose pool has `connection()`."""

    borrow: Borrow

    async def select(self) -> Any:
        """In the connection's own mode; a transaction is committed by the pool."""
        async with self.borrow() as conn:
            cur = await conn.execute(SELECT)
            return await cur.fetchone()

    async def transaction(self) -> None:
        """Begun by the first statement, committed by the pool."""
        async with self.borrow() as conn:
            for statement in THREE:
                cur = await conn.execute(statement)
                await cur.fetchone()

    async def fetch(self) -> Any:
        """With `fetchall()`, in the text format as is the default."""
        async with self.borrow() as conn:
            cur = await conn.execute(FETCH)
            return await cur.fetchall()

    async def one_shot(self, query: str, params: list[int]) -> Any:
        """On a borrowed connection."""
        async with self.borrow() as conn:
            cur = await conn.execute(query, params or None)
            return await cur.fetchall()

    async def write_once(self, query: str, params: list[int]) -> Any:
        """On a borrowed connection."""
        async with self.borrow() as conn:
            return await conn.execute(query, params)

    async def ask(self, conn: Any) -> Any:
        """By a new cursor each time, as `conn.execute()` makes it."""
        cur = await conn.execute(SELECT)
        return await cur.fetchone()

    async def copy_out(self, conn: Any, load: Load) -> int:
        """Block by block, each of which is a line."""
        size = 0
        async with conn.cursor() as cur, cur.copy(f"COPY ({load.query()}) TO STDOUT") as copy:
            async for block in copy:
                size += len(block)
        return size

    async def copy_in(self, conn: Any, load: Load) -> None:
        """By `copy.write()`."""
        async with conn.cursor() as cur, cur.copy(f"COPY {load.table} FROM STDIN") as copy:
            async for block in load.source():
                await copy.write(block)
