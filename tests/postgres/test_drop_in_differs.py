"""Where this pool knowingly differs from psycopg_pool: what the one does, and what the other.

The reasons are in `docs/migrating.md`, "What differs".
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import psycopg_pool
import pytest

import asyncpool

from ._tools import at_rest, eventually, in_time

if TYPE_CHECKING:
    from ._tools import Backends

THEIRS, OURS = psycopg_pool.AsyncConnectionPool, asyncpool.AsyncConnectionPool
BOTH = pytest.mark.parametrize("kind", [THEIRS, OURS], ids=["psycopg_pool", "asyncpool"])


@BOTH
async def test_opening_in_the_constructor(kind: Any, dsn: str) -> None:
    """psycopg_pool warns; asyncpool opens at the first use, without a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = kind(dsn, min_size=1, open=True)
    assert [each.category for each in caught] == ([] if kind is OURS else [RuntimeWarning])
    assert pool.closed is (kind is OURS)
    async with pool.connection():
        assert not pool.closed
    await pool.close()


@BOTH
async def test_which_connection_is_leased(kind: Any, dsn: str) -> None:
    """psycopg_pool leases the connection idle longest, asyncpool the one used last."""
    async with kind(dsn, min_size=2) as pool:
        first, second = await pool.getconn(), await pool.getconn()
        await pool.putconn(first)
        await pool.putconn(second)
        async with pool.connection() as conn:
            assert conn is (second if kind is OURS else first)


@BOTH
async def test_a_timeout_of_zero(kind: Any, dsn: str) -> None:
    """psycopg_pool always fails, asyncpool leases an idle connection."""
    async with kind(dsn, min_size=1) as pool:
        await pool.wait()
        if kind is OURS:
            await pool.putconn(await pool.getconn(timeout=0))
        else:
            with pytest.raises(psycopg_pool.PoolTimeout):
                await pool.getconn(timeout=0)


@BOTH
async def test_wait_by_two_tasks(kind: Any, dsn: str) -> None:
    """psycopg_pool may wake only one of them, asyncpool wakes both."""
    async with kind(dsn, min_size=1) as pool:
        two = asyncio.gather(pool.wait(), pool.wait(), return_exceptions=True)
        outcomes = [type(each) for each in await in_time(two)]
        assert outcomes.count(AssertionError) == (0 if kind is OURS else 1)


@BOTH
async def test_wait_again_after_a_cancellation(kind: Any, dsn: str) -> None:
    """psycopg_pool loses its event to the cancellation, asyncpool waits again."""
    async with kind(dsn, min_size=1) as pool:
        task = asyncio.create_task(pool.wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        with contextlib.nullcontext() if kind is OURS else pytest.raises(AssertionError):
            await pool.wait()


@BOTH
async def test_wait_while_all_are_leased(kind: Any, dsn: str) -> None:
    """psycopg_pool waits for returns, or closes the pool; asyncpool counts leased connections."""
    async with kind(dsn, min_size=1) as pool, pool.connection():
        if kind is OURS:
            await in_time(pool.wait())
            assert not pool.closed
        else:
            with pytest.raises(psycopg_pool.PoolTimeout):
                await pool.wait(timeout=0.2)
            assert pool.closed


@BOTH
async def test_close_while_a_connection_is_leased(kind: Any, dsn: str) -> None:
    """psycopg_pool leaves it to its borrower, asyncpool waits for its return, then closes it."""
    pool = kind(dsn, min_size=1, open=False)
    await pool.open()
    conn = await pool.getconn()
    await in_time(pool.close(timeout=0.1))
    assert conn.closed is (kind is OURS)
    if kind is OURS:
        with pytest.raises(asyncpool.PoolClosed, match="uncommitted work is lost"):
            await pool.putconn(conn)
    else:
        await conn.execute("SELECT 1")
        await pool.putconn(conn)
        assert conn.closed


@BOTH
async def test_a_request_out_of_time_is_counted_as_waiting(kind: Any, dsn: str) -> None:
    """psycopg_pool counts it as waiting until the next return, asyncpool does not."""
    async with kind(dsn, min_size=1) as pool:
        async with pool.connection():
            with pytest.raises((psycopg_pool.PoolTimeout, asyncpool.PoolTimeout)):
                await pool.getconn(timeout=0.05)
            assert pool.get_stats()["requests_waiting"] == (0 if kind is OURS else 1)
        assert pool.get_stats()["requests_waiting"] == 0


@BOTH
async def test_a_cancelled_request_is_an_error(kind: Any, dsn: str) -> None:
    """To them it is one of `requests_errors`; we count it by itself, as it is the caller's."""
    async with kind(dsn, min_size=1) as pool, pool.connection():
        task = asyncio.create_task(pool.getconn())
        await eventually(lambda: pool.get_stats()["requests_waiting"])
        task.cancel()
        await asyncio.wait({task})
        assert pool.get_stats().get("requests_errors", 0) == (0 if kind is OURS else 1)
        if kind is OURS:
            assert pool.stats().requests_cancelled == 1


@BOTH
async def test_drain_of_a_surplus(kind: Any, dsn: str) -> None:
    """psycopg_pool replaces a surplus connection, asyncpool closes it."""
    async with kind(dsn, min_size=1, max_size=3) as pool:
        conns = [await in_time(pool.getconn()) for _ in range(3)]
        for conn in conns:
            await pool.putconn(conn)
        await pool.drain()
        left = 1 if kind is OURS else 3
        await eventually(lambda: pool.get_stats()["pool_available"] == left)
        if kind is OURS:
            assert (await at_rest(pool)).size == 1


@BOTH
async def test_an_idle_connection_that_dies(kind: Any, dsn: str, backends: Backends) -> None:
    """psycopg_pool leases it, asyncpool has replaced it by then."""
    async with kind(dsn, min_size=1) as pool:
        await pool.wait()
        (pid,) = backends.pids()
        backends.terminate(pid)
        if kind is OURS:
            await eventually(lambda: pool.stats().lost == 1)
        async with pool.connection() as conn:
            assert (conn.info.backend_pid == pid) is (kind is THEIRS)
            if kind is THEIRS:
                await conn.close()


@BOTH
async def test_a_block_inside_a_block_that_can_never_begin(kind: Any, dsn: str) -> None:
    """psycopg_pool waits for the time limit, asyncpool raises PoolDeadlock."""
    async with kind(dsn, min_size=1) as pool, pool.connection():
        if kind is OURS:
            with pytest.raises(asyncpool.PoolDeadlock):
                await in_time(pool.getconn())
        else:
            with pytest.raises(psycopg_pool.PoolTimeout):
                await pool.getconn(timeout=0.6)


@BOTH
def test_arguments_that_make_no_sense(kind: Any) -> None:
    """psycopg_pool accepts them, asyncpool refuses them by name."""
    for wrong in ({"timeout": -1}, {"max_waiting": -1}, {"max_lifetime": "5"}, {"conninfo": "?"}):
        if kind is OURS:
            with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
                kind(**wrong)
        else:
            kind(**wrong, open=False)


@BOTH
def test_the_class_of_the_connections_set_later(kind: Any) -> None:
    """psycopg_pool uses it for the next connections, asyncpool refuses."""
    pool = kind("", open=False)
    with contextlib.nullcontext() if kind is THEIRS else pytest.raises(AttributeError):
        pool.connection_class = asyncpool.Connection


def test_the_workings_of_psycopg_pool_are_its_own() -> None:
    """asyncpool lacks attributes that psycopg_pool's documentation does not mention."""
    for name in ("run_task", "schedule_task", "worker"):
        assert hasattr(THEIRS, name)
        assert not hasattr(OURS, name)


@pytest.mark.parametrize("lib_null", [psycopg_pool, asyncpool], ids=["psycopg_pool", "asyncpool"])
async def test_wait_of_a_pool_that_keeps_none_at_its_bound(
    lib_null: Any, dsn: str, backends: Backends
) -> None:
    """psycopg_pool opens one above `max_size`; asyncpool counts a leased connection as proof."""
    ours = lib_null is asyncpool
    async with lib_null.AsyncNullConnectionPool(dsn, max_size=1) as pool, pool.connection():
        await in_time(pool.wait())
        assert pool.get_stats()["connections_num"] == (1 if ours else 2)
