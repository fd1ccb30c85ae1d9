"""COPY over `asyncpool.Connection`: more than a socket takes, and the event loop goes on."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import Connection

from ._tools import BOTH_LOOPS, Proxy, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOOPS = BOTH_LOOPS

LINE = b"x" * 999 + b"\n"
BLOCK = LINE * 100
HUGE = 100_000_000
"""Bytes to be copied: the loop's longest pause is to be nothing beside the whole."""


class Pauses:
    """The longest time that a task which only wants a turn now and then had to wait for it."""

    longest = 0.0

    async def measure(self) -> None:
        """Take turns until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.monotonic() - before - 0.001)


@asynccontextmanager
async def pauses() -> AsyncIterator[Pauses]:
    """Measure them for the length of a block."""
    found = Pauses()
    task = asyncio.create_task(found.measure())
    await asyncio.sleep(0.01)
    try:
        yield found
    finally:
        await asyncio.sleep(0.002)  # the last one counts too
        task.cancel()
        await asyncio.wait({task})


async def test_copy_goes_both_ways(conn: Connection[Any]) -> None:
    """More than a socket takes at once, and all of it arrives."""
    await conn.execute("CREATE TEMP TABLE t (n int, x text)")
    cur = conn.cursor()
    async with cur.copy("COPY t FROM STDIN") as copy:
        for n in range(20_000):
            await copy.write_row((n, "x" * 100))
    count = 0
    async with cur.copy("COPY t TO STDOUT") as copy:
        async for _ in copy.rows():
            count += 1
    assert count == 20_000


async def test_the_loop_goes_on_beside_a_copy_of_100_mb_to_the_server(
    conn: Connection[Any],
) -> None:
    """No turn is longer than a moment, however much the server takes without a wait."""
    await conn.execute("CREATE TEMP TABLE t (x text)")
    async with pauses() as found, conn.cursor().copy("COPY t FROM STDIN") as copy:
        for _ in range(HUGE // len(BLOCK)):
            await copy.write(BLOCK)
    cur = await conn.execute("SELECT sum(length(x)) FROM t")
    assert await cur.fetchone() == (HUGE * 999 // 1000,)
    assert found.longest < 0.5


async def test_the_loop_goes_on_beside_a_copy_of_100_mb_from_the_server(
    conn: Connection[Any],
) -> None:
    """Though each row is there already when it is asked for."""
    query = f"COPY (SELECT repeat('x', 999) FROM generate_series(1, {HUGE // 1000})) TO STDOUT"
    size = 0
    async with pauses() as found, conn.cursor().copy(query) as copy:
        async for row in copy:
            size += len(row)
    assert size == HUGE
    assert found.longest < 0.5


async def test_a_copy_waits_for_a_server_that_does_not_read(dsn: str) -> None:
    """The loop goes on meanwhile, and when the way is open again all of it arrives."""
    async with Proxy(dsn) as proxy, await Connection.connect(proxy.dsn, autocommit=True) as conn:
        await conn.execute("CREATE TEMP TABLE t (x text)")

        async def write() -> None:
            async with conn.cursor().copy("COPY t FROM STDIN") as copy:
                proxy.open_way.clear()
                await copy.write(LINE * 30_000)  # more than the sockets' buffers can grow to

        writing = asyncio.create_task(write())
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert not writing.done()
        proxy.open_way.set()
        await in_time(writing)
        cur = await conn.execute("SELECT count(*), min(length(x)), max(length(x)) FROM t")
        assert await cur.fetchone() == (30_000, 999, 999)


async def test_a_slow_reader_of_a_copy_gets_all_of_it(conn: Connection[Any]) -> None:
    """Data is read no faster than it is consumed, and none is lost."""
    query = "COPY (SELECT n, repeat('x', 9000) FROM generate_series(1, 1000) n) TO STDOUT"
    found = []
    async with conn.cursor().copy(query) as copy:
        async for row in copy:
            found.append(int(bytes(row).split(b"\t")[0]))
            if len(found) % 10 == 0:
                await asyncio.sleep(0.001)
    assert found == list(range(1, 1001))


async def test_an_error_of_the_server_ends_a_copy(conn: Connection[Any]) -> None:
    """In the middle, while the client still writes; the connection stays usable."""
    await conn.execute("CREATE TEMP TABLE t (n int)")

    async def write() -> None:
        async with conn.cursor().copy("COPY t FROM STDIN") as copy:
            for _ in range(1000):
                await copy.write(BLOCK)

    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        await in_time(write())
    cur = await in_time(conn.execute("SELECT count(*) FROM t"))
    assert await cur.fetchone() == (0,)


async def test_an_error_of_the_client_ends_a_copy(conn: Connection[Any]) -> None:
    """Nothing of it is kept; the connection stays usable."""
    await conn.execute("CREATE TEMP TABLE t (x text)")

    async def write() -> None:
        async with conn.cursor().copy("COPY t FROM STDIN") as copy:
            await copy.write(BLOCK)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await in_time(write())
    cur = await in_time(conn.execute("SELECT count(*) FROM t"))
    assert await cur.fetchone() == (0,)
