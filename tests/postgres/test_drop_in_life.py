"""Opening, waiting, closing and counting, as psycopg_pool's documentation has it, of both pools."""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.enum import EnumInfo, register_enum

from ._tools import backend_of, eventually, in_time

if TYPE_CHECKING:
    from ._tools import Backends

UNREACHABLE = "host=127.0.0.1 port=1"


async def test_a_pool_that_is_not_open_says_so(lib: Any, dsn: str) -> None:
    """`PoolClosed`, an OperationalError, from whatever needs it to be open."""
    pool = lib.AsyncConnectionPool(dsn, min_size=1, open=False)
    assert pool.closed
    for use in (pool.getconn, pool.wait, pool.connection().__aenter__):
        with pytest.raises(lib.PoolClosed, match="not open yet") as caught:
            await use()
        assert isinstance(caught.value, psycopg.OperationalError)
    await pool.close()


async def test_open_again_does_nothing(lib: Any, dsn: str) -> None:
    """By itself, by the block, in any order."""
    pool = lib.AsyncConnectionPool(dsn, min_size=1, open=False)
    await pool.open()
    await pool.open()
    assert not pool.closed
    async with pool as same:
        assert same is pool
        await pool.open(wait=True)
        assert pool.get_stats()["connections_num"] == 1
    assert pool.closed


async def test_a_closed_pool_is_not_opened_again(lib: Any, dsn: str) -> None:
    """Nor used: all say `PoolClosed`, and why."""
    pool = lib.AsyncConnectionPool(dsn, min_size=1, open=False)
    async with pool:
        pass
    await pool.close()
    for use in (pool.open, pool.__aenter__):
        with pytest.raises(lib.PoolClosed, match="cannot be reused"):
            await use()
    for use in (pool.getconn, pool.wait, pool.connection().__aenter__):
        with pytest.raises(lib.PoolClosed, match=f"'{pool.name}' is already closed"):
            await use()


async def test_closing_leaves_no_connection(lib: Any, dsn: str, backends: Backends) -> None:
    """Of those that were in the pool."""
    async with lib.AsyncConnectionPool(dsn, min_size=3) as pool:
        await pool.wait()
        assert len(backends.pids()) == 3
    await eventually(lambda: not backends.pids())


async def test_closing_wakes_all_waiters(lib: Any, dsn: str) -> None:
    """With `PoolClosed`."""
    pool = lib.AsyncConnectionPool(dsn, min_size=1, open=False)
    await pool.open()
    conn = await pool.getconn()
    waiting = [asyncio.create_task(pool.getconn()) for _ in range(3)]
    await eventually(lambda: pool.get_stats()["requests_waiting"] == 3)
    await in_time(pool.close(timeout=0.5))
    for task in waiting:
        with pytest.raises(lib.PoolClosed):
            await task
    with contextlib.suppress(lib.PoolClosed):
        await pool.putconn(conn)
    assert conn.closed


async def test_wait_returns_once_the_minimum_is_there(lib: Any, dsn: str) -> None:
    """And at once if it is there already; also as a part of `open`."""
    async with lib.AsyncConnectionPool(dsn, min_size=3) as pool:
        await pool.wait(timeout=10)
        assert pool.get_stats()["pool_available"] == 3
        await pool.wait()
        await pool.open(wait=True)
        assert pool.get_stats()["connections_num"] == 3


@pytest.mark.parametrize("way", ["wait", "open"])
async def test_wait_out_of_time_closes_the_pool(lib: Any, way: str) -> None:
    """`PoolTimeout` is a sign that the program is not configured properly."""
    pool = lib.AsyncConnectionPool(UNREACHABLE, min_size=1, open=False)
    if way == "wait":
        await pool.open()
    waiting = pool.wait(timeout=0.2) if way == "wait" else pool.open(wait=True, timeout=0.2)
    with pytest.raises(lib.PoolTimeout):
        await waiting
    assert pool.closed


async def test_the_pool_serves_before_the_minimum_is_there(lib: Any, dsn: str) -> None:
    """Nobody has to call `wait`."""
    async with lib.AsyncConnectionPool(dsn, min_size=2) as pool, pool.connection() as conn:
        await conn.execute("SELECT 1")


async def test_a_pool_has_the_given_name_or_a_number(lib: Any) -> None:
    """And shows it."""
    assert lib.AsyncConnectionPool("", name="mine", open=False).name == "mine"
    numbered = lib.AsyncConnectionPool("", open=False)
    assert numbered.name.startswith("pool-")
    assert repr(numbered.name) in repr(numbered)


async def test_a_change_of_conninfo_is_taken_for_the_next_connection(lib: Any, dsn: str) -> None:
    """Of the keywords too; those that are open stay."""
    async with lib.AsyncConnectionPool(dsn, min_size=1, max_size=2) as pool:
        await pool.wait()
        first = await pool.getconn()
        pool.conninfo = psycopg.conninfo.make_conninfo(dsn, options="-c geqo_threshold=7")
        pool.kwargs = {"autocommit": True}
        second = await pool.getconn()
        shown = [
            (await (await each.execute("SHOW geqo_threshold")).fetchone())[0]
            for each in (first, second)
        ]
        assert shown == ["12", "7"]
        assert (first.autocommit, second.autocommit) == (False, True)
        await pool.putconn(first)
        await pool.putconn(second)


async def test_the_surplus_goes_once_it_was_idle_for_long_enough(lib: Any, dsn: str) -> None:
    """Down to `min_size`, and not below."""
    async with lib.AsyncConnectionPool(dsn, min_size=1, max_size=3, max_idle=0.2) as pool:
        conns = [await in_time(pool.getconn()) for _ in range(3)]
        for conn in conns:
            await pool.putconn(conn)
        await eventually(lambda: pool.get_stats()["pool_size"] == 1)


class Color(Enum):
    """A type of the user's, which the database has too."""

    red = "red"


async def test_adapters_registered_later_reach_everyone_after_drain(
    lib: Any, dsn: str, backends: Backends
) -> None:
    """A connection copies `psycopg.adapters` at its first use, so that all have to be new."""
    name = f"c{uuid4().hex[:8]}"

    async def seen(conn: psycopg.AsyncConnection[Any]) -> object:
        cur = await conn.execute(f"SELECT 'red'::{name}")
        ((value,),) = await cur.fetchall()
        return value

    backends.ask(f"CREATE TYPE {name} AS ENUM ('red')")
    try:
        with psycopg.connect(dsn) as conn:
            info = EnumInfo.fetch(conn, name)
            assert info is not None
        async with lib.AsyncConnectionPool(dsn, min_size=2) as pool:
            await pool.wait()
            lent, idle = await pool.getconn(), await pool.getconn()
            assert [await seen(each) for each in (lent, idle)] == ["red", "red"]
            await pool.putconn(idle)
            register_enum(info, None, Color)
            assert await seen(lent) == "red"
            await pool.drain()
            await pool.putconn(lent)
            first, second = await pool.getconn(), await pool.getconn()
            for conn in (first, second):
                assert await seen(conn) is Color.red
                await pool.putconn(conn)
            if hasattr(pool, "fetchval"):
                assert await pool.fetchval(f"SELECT 'red'::{name}") is Color.red
    finally:
        backends.ask(f"DROP TYPE {name}")


# What each key of the statistics counts.


async def test_the_sizes_are_those_of_now(lib: Any, dsn: str) -> None:
    """`pool_*` and `requests_waiting` are measures, which `pop_stats` does not reset."""
    async with lib.AsyncConnectionPool(dsn, min_size=2, max_size=3) as pool:
        await pool.wait()
        conn = await pool.getconn()
        for stats in (pool.get_stats(), pool.pop_stats(), pool.get_stats()):
            assert (stats["pool_min"], stats["pool_max"]) == (2, 3)
            assert (stats["pool_size"], stats["pool_available"]) == (2, 1)
            assert stats["requests_waiting"] == 0
        await pool.putconn(conn)


@pytest.mark.parametrize("way", ["ends", "raises", "is cancelled"])
async def test_a_connection_is_available_once_its_block_has_ended(
    lib: Any, dsn: str, way: str
) -> None:
    """However the block ends, and with a transaction open."""
    inside = asyncio.Event()

    async def block() -> None:
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            inside.set()
            if way == "is cancelled":
                await asyncio.Event().wait()
            if way == "raises":
                raise LookupError

    async with lib.AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        task = asyncio.create_task(block())
        await inside.wait()
        if way == "is cancelled":
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stats = pool.get_stats()
        assert (stats["pool_size"], stats["pool_available"]) == (2, 2)
        assert (stats["requests_num"], stats.get("requests_waiting", 0)) == (1, 0)


async def test_wait_returns_once_what_was_returned_is_reset(lib: Any, dsn: str) -> None:
    """So a connection that is being reset is not available yet."""
    resets, may_end = [], asyncio.Event()

    async def reset(conn: psycopg.AsyncConnection[Any]) -> None:
        await may_end.wait()
        resets.append(conn)

    async with lib.AsyncConnectionPool(dsn, min_size=1, reset=reset) as pool:
        await pool.wait()
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        assert pool.get_stats()["pool_available"] == 0
        asyncio.get_running_loop().call_soon(may_end.set)
        await in_time(pool.wait())
        assert resets == [conn]
        assert pool.get_stats()["pool_available"] == 1


async def test_the_counters_start_again_after_pop_stats(lib: Any, dsn: str) -> None:
    """A key may be missing while it would be 0."""
    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        for _ in range(3):
            async with pool.connection() as conn:
                await backend_of(conn)
        popped = pool.pop_stats()
        assert popped["requests_num"] == 3
        assert popped["connections_num"] == 1
        for key in ("requests_num", "connections_num", "requests_queued", "usage_ms"):
            assert pool.get_stats().get(key, 0) == 0
        async with pool.connection():
            pass
        assert pool.get_stats()["requests_num"] == 1


async def test_times_are_whole_milliseconds(lib: Any, dsn: str) -> None:
    """Of waiting in the line, of use, of connecting."""
    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection() as conn:
            waiter = asyncio.create_task(pool.getconn())
            await eventually(lambda: pool.get_stats()["requests_waiting"])
            await conn.execute("SELECT pg_sleep(0.05)")
        await pool.putconn(await in_time(waiter))
        stats = pool.get_stats()
        for key in ("requests_wait_ms", "usage_ms"):
            assert type(stats[key]) is int
            assert stats[key] >= 50
        assert stats.get("connections_ms", 0) >= 0


async def test_failed_connects_are_counted(lib: Any) -> None:
    """They count as attempts and as errors."""
    async with lib.AsyncConnectionPool(UNREACHABLE, min_size=1) as pool:
        await eventually(lambda: pool.get_stats().get("connections_errors", 0))
        stats = pool.get_stats()
        assert stats["connections_num"] >= stats["connections_errors"] >= 1


async def test_usage_counts_from_the_loan_to_the_return(lib: Any, dsn: str) -> None:
    """And not the time in the pool."""
    async with lib.AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        async with pool.connection() as conn:
            await conn.execute("SELECT pg_sleep(0.02)")
        before = pool.get_stats()["usage_ms"]
        with psycopg.connect(dsn) as other:
            other.execute("SELECT pg_sleep(0.02)")
        assert pool.get_stats()["usage_ms"] == before >= 20
