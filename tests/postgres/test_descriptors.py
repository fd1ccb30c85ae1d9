"""The descriptors of watched connections: one more each, and none left however they end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, Connection
from tests._tools import at_once, few

from ._tools import (
    BOTH_LOOPS,
    Backends,
    descriptors,
    eventually,
    linux,
    needs_internals,
    run_script,
    sockets,
)

LOOPS = BOTH_LOOPS

pytestmark = pytest.mark.skipif(not linux, reason="descriptors are counted in /proc")

connect = Connection.connect


def watched() -> dict[str, list[str]]:
    """The epolls of this process by their descriptors, with those that each of them watches."""
    found = {}
    for name, what in descriptors().items():
        if what == "anon_inode:[eventpoll]":
            info = Path(f"/proc/self/fdinfo/{name}").read_text()
            found[name] = sorted(re.findall(r"^tfd: *(\d+)", info, re.MULTILINE))
    return found


async def settled() -> tuple[dict[str, str], dict[str, list[str]]]:
    """The descriptors and who watches them, once the loop has had its say: uvloop's is late."""
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0.001)
    return descriptors(), watched()


@needs_internals
@pytest.mark.parametrize("pooled", few([False, True]), ids=["alone", "in a pool"])
async def test_a_connection_has_one_more_than_psycopgs(dsn: str, pooled: bool) -> None:
    """In a pool too, which waits on the same one for the server's end."""

    @asynccontextmanager
    async def four(own: Any) -> AsyncIterator[None]:
        if pooled:
            async with AsyncConnectionPool(dsn, min_size=4, connection_class=own) as pool:
                await pool.wait()
                await eventually(lambda: pool.stats().idle == 4)
                yield
            return
        conns = [await own.connect(dsn) for _ in range(4)]
        yield
        for conn in conns:
            await conn.close()

    async def count(own: Any) -> int:
        before = len((await settled())[0])
        async with four(own):
            return len((await settled())[0]) - before

    plain = await count(psycopg.AsyncConnection)
    # The pool duplicates the socket of any connection, and has none to add to ours.
    assert await count(Connection) == 8
    assert plain == (8 if pooled else 4)


async def closed(dsn: str) -> None:
    """The good end."""
    await (await connect(dsn)).close()


async def refused(dsn: str) -> None:
    """An error in connect."""
    with pytest.raises(psycopg.OperationalError):
        await connect(make_conninfo(dsn, dbname="no_such_database"))


async def misconfigured(dsn: str) -> None:
    """An error in configure; the pool is closed before it tries again."""

    async def fail(conn: object) -> None:
        raise ValueError("it does not suit us")

    async with AsyncConnectionPool(dsn, min_size=1, configure=fail) as pool:
        await eventually(lambda: pool.stats().connects_failed)


async def forgotten(dsn: str) -> None:
    """Collected as garbage, with no warning, as it claims to be a pool's."""
    conn = await connect(dsn)
    conn._pool = None


async def killed(dsn: str) -> None:
    """By its server, in a query; closed afterwards."""
    conn = await connect(dsn)
    with pytest.raises(psycopg.OperationalError):
        await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    await conn.close()


async def killed_while_idle(dsn: str) -> None:
    """By its server, and nobody ever closes it."""
    conn = await connect(dsn)
    async with await connect(dsn, autocommit=True) as other:
        await other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
    await eventually(lambda: conn.closed)


async def cancelled_in_connect(dsn: str) -> None:
    """Somewhere on its way."""
    task = asyncio.create_task(connect(dsn))
    await asyncio.sleep(0.002)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await task).close()


async def cancelled_in_a_query(dsn: str) -> None:
    """And closed when that has ended on the server."""
    conn = await connect(dsn)
    task = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.002)
    task.cancel()
    await asyncio.wait({task})
    await conn.close()


async def finished(dsn: str) -> None:
    """On the level of libpq, behind the back of everybody else."""
    conn = await connect(dsn)
    conn.pgconn.finish()


async def forked(dsn: str) -> None:
    """Collected in a child, in which it is not to be touched; then closed in the parent."""
    conns = [await connect(dsn, autocommit=True)]
    collect_in_a_child(conns)
    for conn in conns:
        await conn.execute("SELECT 1")
        await conn.close()


def collect_in_a_child(conns: list[Connection[Any]]) -> None:
    """Let a child drop its copies, and wait for its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            conns.pop()._pool = None
            gc.collect()
        os._exit(len(conns))
    assert os.waitpid(child, 0)[1] == 0


End = Callable[[str], Awaitable[None]]

OFTEN: list[End] = [
    *(closed, refused, misconfigured, forgotten, killed, killed_while_idle),
    *(cancelled_in_connect, cancelled_in_a_query, finished),
]


async def die(dsn: str, backends: Backends, times: int) -> None:
    """Have connections end in every way there is, as often as said; forking costs the most."""
    await forked(dsn)
    for _ in range(times):
        await asyncio.gather(*(end(dsn) for end in OFTEN))
    gc.collect()
    await eventually(lambda: not backends.pids())


@needs_internals
@pytest.mark.exhaustive
async def test_none_is_left_of_a_thousand_connections_however_they_ended(
    dsn: str, backends: Backends
) -> None:
    """Nor does the loop watch anything that it did not watch before."""
    await die(dsn, backends, 1)
    before = await settled()
    for _ in range(4):
        await die(dsn, backends, 25)
    await eventually(lambda: (descriptors(), watched()) == before)


FORK = """
import asyncio, gc, os, sys, threading
from asyncpool import AsyncConnectionPool, Connection

async def backend(conn):
    return (await (await conn.execute("SELECT pg_backend_pid()")).fetchone())[0]

async def in_child(dsn):
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        assert await pool.fetchval("SELECT 1") == 1

async def main():
    heard, dsn = [], sys.argv[1]
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        alone = await Connection.connect(dsn, autocommit=True)
        alone.add_notify_handler(lambda notify: heard.append(notify.payload))
        await alone.execute("LISTEN here")
        await pool.wait()
        lent = await pool.acquire()
        before = await backend(alone), await backend(lent)
        for how in ("leaves at once", "collects", "has a loop of its own"):
            child = os.fork()
            if child == 0:
                try:
                    if how == "collects":
                        alone._pool = lent._pool = None
                        del alone, lent, pool
                        gc.collect()
                    elif how != "leaves at once":
                        worker = threading.Thread(target=asyncio.run, args=(in_child(dsn),))
                        worker.start()
                        worker.join()
                finally:
                    os._exit(0)
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                await asyncio.sleep(0.005)
            assert (await backend(alone), await backend(lent)) == before
            await pool.execute("SELECT pg_notify('here', %s)", [how])
            while heard[-1:] != [how]:
                await asyncio.sleep(0.005)
        await lent.rollback()
        await pool.release(lent)
        while pool.stats().idle < 2:
            await asyncio.sleep(0.005)
        (other,) = [pid for pid in before if pid != await backend(alone)]
        await alone.execute("SELECT pg_terminate_backend(%s)", [other])
        while pool.stats().lost == 0:
            await asyncio.sleep(0.005)
        await alone.close()
        print("watched")

factory = None
if sys.argv[2] == "uvloop":
    import uvloop
    factory = uvloop.new_event_loop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(asyncio.wait_for(main(), 30))
"""


@needs_internals
async def test_connections_are_watched_on_after_a_fork(
    dsn: str,
) -> None:
    """This holds whatever the child does with its copies, and after it has ended."""
    kind = "uvloop" if "uvloop" in type(asyncio.get_running_loop()).__module__ else "asyncio"
    assert (await run_script(FORK, dsn, kind)).split() == ["watched"]


def test_a_connection_that_is_closed_where_no_loop_runs_leaves_no_descriptor(
    asyncpool_dsn: str,
) -> None:
    """This happens to the connections of a pool that was dropped after its loop."""
    before = sockets()
    with asyncio.Runner() as runner:
        conn = runner.run(Connection.connect(asyncpool_dsn))
        assert sockets() > before
    at_once(conn.close())
    assert conn.closed
    assert sockets() == before
