"""`pool.advise()`: what it measures, what the server leaves, and what cannot be known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from asyncpool import AsyncConnectionPool, PoolClosed

from ._tools import Proxy, at_rest, in_time, overloaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._tools import Backends


@pytest.fixture
def role(backends: Backends) -> Iterator[str]:
    """A role that is no superuser, and may have seven connections."""
    backends.ask("CREATE ROLE advised LOGIN PASSWORD 'secret' CONNECTION LIMIT 7")
    yield "advised"
    backends.ask("DROP ROLE advised")


async def test_before_any_request_it_says_so(dsn: str) -> None:
    """With no division by zero, and the server's room all the same."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        advice = await pool.advise()
        assert (advice.requests, advice.load, advice.recommended) == (0, 0.0, None)
        assert (advice.arrivals, advice.mean_use, advice.expected) == (0.0, 0.0, ())
        assert advice.available is not None
        assert "no advice yet" in str(advice)


async def test_the_numbers_are_those_of_the_pool(dsn: str) -> None:
    """Little's law holds of what was counted, whatever is lent at the moment among it."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        for _ in range(30):
            async with pool.connection() as conn:
                await conn.execute("SELECT pg_sleep(0.002)")
        async with pool.connection():
            advice = await pool.advise(workers=3)
        assert advice.requests == 31
        assert advice.samples == 30
        assert 0.002 <= advice.use_p50 <= advice.use_p99
        assert advice.load == pytest.approx(advice.arrivals * advice.mean_use + advice.shared_load)
        assert advice.arrivals == pytest.approx(31 / advice.window)
        assert [each.size for each in advice.expected] == [1, 2, 3]
        assert advice.recommended is not None
        assert advice.recommended >= advice.load / 0.8
        assert (advice.workers, advice.max_size) == (3, 2)


async def test_a_histogram_has_every_use_and_every_wait(dsn: str) -> None:
    """Each return counts; one-shots that share are counted by their connection's time."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:

        async def use(number: int) -> None:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
                if number % 5 == 0:
                    await conn.rollback()
            if number % 7 == 0:
                await pool.release(await pool.acquire())

        await in_time(asyncio.gather(*(use(number) for number in range(70))))
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with pool.connection() as conn:
                await conn.execute("SELECT 1/0")
        stats = await at_rest(pool)
        assert stats.use.count == 70 + 10 + 1
        assert stats.use.sum == pytest.approx(stats.use_time)
        assert stats.wait.count == stats.requests_queued
        assert stats.wait.sum == stats.wait_time > 0
        await in_time(asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(200))))
        stats = await at_rest(pool)
        assert stats.requests_shared > 0
        assert stats.use.count == 81 + 200 - stats.requests_shared
        assert stats.use_time > stats.use.sum


async def test_uses_beyond_those_kept_are_counted(dsn: str) -> None:
    """Between two looks; those that are kept stand for the others."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        for _ in range(5000):
            async with pool.connection():
                pass
        advice = await pool.advise()
        assert advice.requests == 5000
        assert advice.samples == 1024
        use = pool.stats().use
        assert use.buckets[-1][1] == use.count == 5001  # one of them is that of `advise()`


async def test_one_shots_that_share_are_part_of_the_load(dsn: str) -> None:
    """By the time for which connections were lent to them."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await in_time(asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(500))))
        advice = await pool.advise()
        assert advice.requests == 500 - pool.stats().requests_shared
        assert advice.load > advice.shared_load > 0
        assert advice.recommended is not None
        assert "by one-shots that share" in str(advice)


async def test_a_roles_own_limits_count(dsn: str, role: str, backends: Backends) -> None:
    """A role's and a database's limits count, and reserved places; a superuser has neither."""
    most, kept = (
        int(backends.ask(f"SHOW {name}")[0][0])
        for name in ("max_connections", "superuser_reserved_connections")
    )
    others = backends.ask("SELECT current_setting('reserved_connections', true)")[0][0]
    limited = make_conninfo(dsn, user=role, password="secret")  # noqa: S106 - of a test's own role
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        assert (await pool.advise()).available == most
    async with AsyncConnectionPool(limited, min_size=2) as pool:
        advice = await pool.advise(workers=3)
        assert (advice.available, advice.exceeds) == (7, False)
        advice = await pool.advise(workers=4)
        assert advice.exceeds
        assert "WARNING: 4 x 2 connections are more than the 7" in str(advice)
        backends.ask(f"ALTER ROLE {role} CONNECTION LIMIT -1")
        assert (await pool.advise()).available == most - kept - int(others or 0)


async def test_refused_requests_are_part_of_the_advice(dsn: str) -> None:
    """They count as requests, and the text says what helps."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with overloaded(pool, refusals=3):
            pass
        advice = await pool.advise()
        assert (advice.refused, advice.overload, advice.overloaded) == (3, "wait", True)
        assert advice.requests == pool.stats().requests - 1  # the last one is its own
        assert f"3 of {advice.requests} requests were refused" in str(advice)
        assert 'set overload="refuse"' in str(advice)
        pool.overload = "refuse"
        assert 'set overload="refuse"' not in str(await pool.advise())


async def test_rows_of_another_kind_do_not_matter(dsn: str) -> None:
    """Nor whether one-shots share, nor whose connections they are."""
    pools: list[dict[str, Any]] = [
        {"kwargs": {"row_factory": dict_row}},
        {"pipeline": False},
        {"connection_class": psycopg.AsyncConnection},
        {"reset": "session"},
    ]
    for options in pools:
        async with AsyncConnectionPool(dsn, min_size=1, **options) as pool:
            assert (await pool.advise()).available is not None


@pytest.mark.exhaustive
async def test_what_cannot_be_asked_is_not_known(dsn: str) -> None:
    """With all lent out, or a server that does not answer, it takes a second and says why."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        conn = await pool.acquire()
        advice = await in_time(pool.advise())
        assert advice.available is None
        assert "no connection within 1 s" in advice.unknown
        assert not advice.exceeds
        assert advice.requests == 1
        await pool.release(conn)
        async with pool.connection():
            advice = await in_time(pool.advise())
            assert "deadlock" in advice.unknown
        proxy.open_way.clear()
        advice = await in_time(pool.advise())
        proxy.open_way.set()
        assert advice.available is None
        assert "not known" in str(advice)


async def test_a_cancelled_advice_leaves_nothing(dsn: str) -> None:
    """While it asks, it is a request like any other."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1) as pool:
        await pool.wait()
        proxy.open_way.clear()
        asking = asyncio.create_task(pool.advise())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled()
        proxy.open_way.set()
        await at_rest(pool)


@pytest.mark.parametrize(
    "given",
    [
        {"workers": 0},
        {"workers": -1},
        {"workers": 1.5},
        {"utilisation": 0},
        {"utilisation": 1.0},
        {"utilisation": "high"},
        {"p99_wait": -1},
        {"p99_wait": float("nan")},
    ],
)
async def test_what_makes_no_sense_is_refused(dsn: str, given: dict[str, Any]) -> None:
    """At once, by its name."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        with pytest.raises((TypeError, ValueError), match=next(iter(given))):
            await pool.advise(**given)


async def test_a_closed_pool_gives_no_advice(dsn: str) -> None:
    """`PoolClosed` is raised, as by any other use of a closed pool."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        pass
    with pytest.raises(PoolClosed):
        await pool.advise()
