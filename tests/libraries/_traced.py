"""A program that runs statements on a pool and prints, as JSON, which of them a tracer has seen.

A tracer patches psycopg for the whole process, so each one gets a process of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from ._tracers import TRACERS

REPEATED = 20
"""One-shots of one text: the first of them show that it is quick, the others may share."""


def marked(name: str, number: int = 1) -> list[str]:
    """Return different plain reads, each with the name of what it is for."""
    return [f"SELECT /*{name}*/ {each}" for each in range(number)]


async def in_blocks(pool: Any, see: Callable[[str], Any]) -> None:
    """Run statements in the blocks that both pools have."""
    with see("conn_execute"):
        async with pool.connection() as conn:
            for query in marked("conn_execute", 2):
                await conn.execute(query)
    with see("conn_cursor"):
        async with pool.connection() as conn, conn.cursor() as cur:
            for query in marked("conn_cursor", 2):
                await cur.execute(query)
    with see("conn_transaction"):
        async with pool.connection() as conn, conn.transaction():
            await conn.cursor().execute(*marked("conn_transaction"))
    with see("conn_executemany"):
        async with pool.connection() as conn, conn.cursor() as cur:
            await cur.executemany("SELECT /*conn_executemany*/ %s::int", [(1,), (2,)])
    with see("stream"):
        async with pool.connection() as conn, conn.cursor() as cur:
            async for _ in cur.stream(*marked("stream")):
                pass
    with see("copy"):
        async with (
            pool.connection() as conn,
            conn.cursor() as cur,
            cur.copy("COPY (SELECT /*copy*/ 1) TO STDOUT") as copy,
        ):
            async for _ in copy:
                pass
    with see("server_cursor"):
        async with pool.connection() as conn, conn.cursor("named") as cur:
            await cur.execute(*marked("server_cursor"))
    with see("getconn"):
        conn = await pool.getconn()
        await conn.cursor().execute(*marked("getconn"))
        await pool.putconn(conn)


async def in_our_blocks(pool: Any, see: Callable[[str], Any]) -> None:
    """Run statements in the blocks that only this pool has."""
    with see("transaction"):
        async with pool.transaction() as conn:
            for query in marked("transaction", 2):
                await conn.cursor().execute(query)
    with see("cursor"):
        async with pool.cursor() as cur:
            for query in marked("cursor", 2):
                await cur.execute(query)
    with see("session"):
        async with pool.session():
            await pool.execute(*marked("session"))


async def one_shots(pool: Any, see: Callable[[str], Any]) -> None:
    """Run one-shots, one text often enough for it to share connections."""
    for name in ("execute", "fetchall", "fetchone", "fetchval"):
        with see(name):
            for _ in range(REPEATED):
                await getattr(pool, name)(*marked(name))
            query = marked(name)[0]
            await asyncio.gather(*(getattr(pool, name)(query) for _ in range(REPEATED)))
    with see("write"):
        for _ in range(2):
            await pool.execute("CREATE TEMP TABLE IF NOT EXISTS /*write*/ t (x int)")
    with see("binary"):
        assert await pool.fetchval("SELECT /*binary*/ %s::int", [1], binary=True) == 1
    with see("executemany"):
        await pool.executemany("SELECT /*executemany*/ %s::int", [(1,), (2,)])
    with see("batch"):
        await pool.batch(marked("batch", 3))


EXPECTED = {
    "conn_execute": 2,
    "conn_cursor": 2,
    "conn_transaction": 1,
    "conn_executemany": 1,
    "stream": 1,
    "copy": 1,
    "server_cursor": 1,
    "getconn": 1,
    "transaction": 2,
    "cursor": 2,
    "session": 1,
    "execute": 2 * REPEATED,
    "fetchall": 2 * REPEATED,
    "fetchone": 2 * REPEATED,
    "fetchval": 2 * REPEATED,
    "write": 2,
    "binary": 1,
    "executemany": 1,
    "batch": 3,
}
"""The calls that run a statement; one of executemany runs it several times."""


async def run(tracer: Any, pool_class: Any, dsn: str) -> dict[str, list[str]]:
    """Run all statements; return what the tracer saw of each way to run them."""
    given: dict[str, list[str]] = {}

    def see(name: str) -> Any:
        return tracer.record(given.setdefault(name, []))

    options = getattr(tracer, "options", {})
    async with pool_class(dsn, min_size=1, max_size=4, open=False, **options) as pool:
        await pool.wait()
        await in_blocks(pool, see)
        if pool_class.__module__.startswith("asyncpool"):
            await in_our_blocks(pool, see)
            await one_shots(pool, see)
    return given


def main(name: str, order: str, library: str, dsn: str) -> None:
    """Start the tracer before or after the pool's library is imported, and run everything."""
    assert not {"asyncpool", "psycopg"} & sys.modules.keys(), "the order is not what it is to be"
    tracer = TRACERS[name]()
    if order == "before":
        importlib.import_module(library)
    tracer.start()
    pool_class = importlib.import_module(library).AsyncConnectionPool
    print(json.dumps(asyncio.run(run(tracer, pool_class, dsn))))


if __name__ == "__main__":
    main(*sys.argv[1:])
