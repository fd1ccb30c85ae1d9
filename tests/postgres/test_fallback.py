"""Without a transport or without psycopg's private parts, all goes on with psycopg's own waits."""

from __future__ import annotations

import asyncio
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from asyncpool import AsyncConnectionPool, Connection
from asyncpool._psycopg.transport import Transport

from ._tools import Backends, Proxy, all_usable, backend_of, eventually, in_time, needs_internals


class Unwatching(asyncio.SelectorEventLoop):
    """A loop on which psycopg's own waits work, and the socket watcher does not."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """See asyncio."""
        if isinstance(getattr(callback, "__self__", None), Transport):
            raise NotImplementedError
        super().add_reader(fd, callback, *args)


LOOPS = {"unwatching": Unwatching}


@needs_internals
async def test_every_kind_of_wait_works(dsn: str) -> None:
    """The waits are psycopg's."""
    async with await Connection.connect(dsn, autocommit=True) as conn:
        assert conn._transport is None
        async with conn.pipeline():
            cursors = [await conn.execute("SELECT %s::int", [n]) for n in range(50)]
        assert [await each.fetchone() for each in cursors] == [(n,) for n in range(50)]
        await conn.execute("CREATE TEMP TABLE t (x text)")
        cur = conn.cursor()
        async with cur.copy("COPY t FROM STDIN") as copy:
            await copy.write("line\n" * 1_000_000)
        await cur.execute("SELECT count(*) FROM t")
        assert await cur.fetchone() == (1_000_000,)
        assert len([row async for row in cur.stream("SELECT * FROM t LIMIT 1000")]) == 1000
        await conn.execute("LISTEN here")
        await conn.execute("NOTIFY here, 'one'")
        assert [n.payload async for n in conn.notifies(timeout=0.05)] == ["one"]


async def test_a_pool_works(dsn: str, backends: Backends) -> None:
    """The pool leases, grows, and cancels queries."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=4) as pool:
        assert await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(100))) == [1] * 100
        work = asyncio.create_task(pool.execute("SELECT pg_sleep(60)"))
        await eventually(lambda: backends.running("pg_sleep"))
        work.cancel()
        await asyncio.wait({work})
        await eventually(lambda: not backends.running("pg_sleep"))
        await all_usable(pool)


async def test_dead_idle_connections_are_found_by_their_borrowers(
    dsn: str, backends: Backends
) -> None:
    """psycopg's wait has no notice of their end: one that is lent dead fails, and goes."""
    async with AsyncConnectionPool(
        dsn, min_size=2, check=AsyncConnectionPool.check_connection
    ) as pool:
        await pool.wait()
        backends.terminate()
        assert await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(20))) == [1] * 20
        await all_usable(pool)


async def test_a_silent_way_holds_up_no_other_task(dsn: str) -> None:
    """A wait that lasts is a wait of the loop's."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        proxy.open_way.clear()
        work = asyncio.create_task(pool.fetchval("SELECT 1"))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not work.done()
        proxy.open_way.set()
        assert await in_time(work) == 1


@needs_internals
async def test_a_system_that_cannot_watch_is_not_asked(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a socket's descriptor is no file's, and cannot be duplicated as one."""
    monkeypatch.setattr("asyncpool._psycopg.connection.sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr("asyncpool._psycopg.connection.Transport", None)
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        async with pool.connection() as conn:
            assert await backend_of(conn)
        await all_usable(pool)


LIFE = """
import asyncio
import logging
import sys
import types

import psycopg

if hidden := sys.argv[2]:
    sys.modules[hidden] = types.ModuleType(hidden)  # psycopg has what it needs of it

from asyncpool import AsyncConnectionPool, Connection


async def life():
    pool = AsyncConnectionPool(sys.argv[1], min_size=1, max_size=4, reset="discard")
    async with pool:
        assert await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(100))) == [1] * 100
        assert pool.stats().requests_shared == 0
        async with pool.connection() as conn:
            assert type(conn) is Connection
            assert vars(Connection).keys().isdisjoint({"wait", "execute", "transaction", "cursor"})
            assert type(await conn.execute("SELECT 1")) is psycopg.AsyncCursor
            assert await (await conn.execute("SELECT 2", prepare=True)).fetchone() == (2,)
        async with pool.session() as conn:
            await conn.execute("CREATE TEMP TABLE notes (x int)")
            async with pool.transaction():
                await conn.execute("INSERT INTO notes VALUES (1)")
            try:
                async with pool.transaction():
                    await conn.execute("SELECT 1/0")
            except psycopg.errors.DivisionByZero:
                pass
            assert await pool.fetchval("SELECT count(*) FROM notes") == 1
        conn = await pool.acquire()
        await conn.transaction().__aenter__()
        await pool.release(conn)
        assert await pool.fetchval("SELECT 1") == 1


logging.basicConfig(level=logging.INFO)
asyncio.run(life())
"""


@pytest.mark.parametrize(
    ("version", "hidden", "reason"),
    [
        ("3.4.0", "", "psycopg 3.4.0 was not tried"),
        ("", "psycopg._preparing", "psycopg._preparing has no Prepare"),
    ],
)
async def test_a_psycopg_with_other_insides_is_used_by_its_public_names(
    dsn: str, version: str, hidden: str, reason: str
) -> None:
    """The pool logs it, and its connections are psycopg's own."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", LIFE, dsn, hidden),
        env=os.environ | {"ASYNCPOOL_TEST_PSYCOPG": version},
        stderr=asyncio.subprocess.PIPE,
    )
    _, log = await child.communicate()
    assert child.returncode == 0, log.decode()
    assert log.decode().count(f"{reason}: the pool uses psycopg's own connections") == 1
