"""A pool that has outlived its event loop: the next use opens it afresh, and nothing stays."""

from __future__ import annotations

import asyncio
import gc
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, PoolClosed, PoolWrongLoop

from ._tools import (
    BOTH_LOOPS,
    Backends,
    all_usable,
    at_rest,
    backend_of,
    eventually,
    in_time,
    linux,
    run_script,
    sockets,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Run = Callable[[Callable[[], Awaitable[None]]], None]

WARNING = "was not closed before its event loop ended"


def runner_twice(new: Callable[[], asyncio.AbstractEventLoop], main: Any) -> None:
    """Run twice as `asyncio.run` does: cancel what is left, then close the loop."""
    with asyncio.Runner(loop_factory=new) as runner:
        runner.run(main())


def anyio_twice(new: Callable[[], asyncio.AbstractEventLoop], main: Any) -> None:
    """Run twice as an anyio application does."""
    anyio.run(main, backend_options={"loop_factory": new})


def bare_loop(new: Callable[[], asyncio.AbstractEventLoop], main: Any) -> None:
    """With no shutdown at all: what is left is never told."""
    loop = new()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Make a loop of each kind."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return BOTH_LOOPS[request.param]


@pytest.fixture(params=[runner_twice, anyio_twice, bare_loop], ids=["runner", "anyio", "bare"])
def run(request: pytest.FixtureRequest, new_loop: Any) -> Run:
    """Run an async function on a loop of its own, in each way that an application may."""
    return partial(request.param, new_loop)


@pytest.fixture
def named(asyncpool_dsn: str, application: str, backends: Backends) -> Iterator[str]:
    """The server, for a test after which no backend of it may be left."""
    yield make_conninfo(asyncpool_dsn, application_name=application)
    asyncio.run(eventually(lambda: not backends.pids()))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the pool's warnings."""
    records = [each for each in caplog.records if each.name == "asyncpool"]
    return [each.getMessage() for each in records if each.levelno >= logging.WARNING]


def test_the_next_loop_opens_it_afresh(
    run: Run, named: str, backends: Backends, caplog: pytest.LogCaptureFixture
) -> None:
    """By a use of any kind, with one warning each time; the old sessions are ended at once."""
    pool = AsyncConnectionPool(named, min_size=2, max_size=3, name="module's")
    before: set[int] = set()

    async def use() -> None:
        assert await pool.fetchval("SELECT 7") == 7
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
        await all_usable(pool)
        await eventually(lambda: len(backends.pids()) == 3)
        assert not before & backends.pids()
        before.update(backends.pids())

    async def first_by_connection() -> None:
        async with pool.connection() as conn:
            before.discard(await backend_of(conn))
        await use()

    async def first_by_open() -> None:
        await pool.open(wait=True)
        await use()

    async def first_by_health() -> None:
        await pool.health()
        await use()
        await pool.close()

    gc.collect()
    open_before = sockets() if linux else set()
    for main in (use, first_by_connection, first_by_open, first_by_health):
        run(main)
    assert [
        WARNING in line and "'module's'" in line.replace('"', "'") for line in told(caplog)
    ] == [True] * 3
    gc.collect()
    assert not linux or sockets() == open_before


def test_leased_connections_are_refused_and_requests_under_way_end(
    run: Run, named: str, backends: Backends, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks, a queue of waiters, one-shots in mid-query, a cancelled one, a connection kept."""
    pool = AsyncConnectionPool(named, min_size=3, max_size=6)
    kept: list[Any] = []
    logging.getLogger("asyncio").setLevel(
        logging.CRITICAL
    )  # of the tasks that are left, it says so

    async def hold(query: str) -> None:
        async with pool.connection() as conn:
            await conn.execute(query)
            await asyncio.sleep(60)

    async def first() -> None:
        await pool.wait()
        lent = await pool.acquire()
        await lent.execute("SELECT 1")
        cut = asyncio.create_task(pool.execute("SELECT pg_sleep(61)"))
        await eventually(lambda: backends.running("pg_sleep(61)"))
        tasks = [
            asyncio.create_task(work)
            for work in (
                hold("SELECT 1"),
                hold("SELECT pg_sleep(62)"),
                pool.fetchval("SELECT pg_sleep(63)"),
                pool.executemany("SELECT pg_sleep(%s)", [[64]]),
            )
        ]
        await eventually(lambda: backends.running("pg_sleep") == 4)
        tasks += [asyncio.create_task(hold("SELECT 1")) for _ in range(3)]
        tasks += [asyncio.create_task(pool.fetchval("SELECT pg_sleep(65)")) for _ in range(3)]
        await eventually(lambda: pool.stats().waiting >= 3)
        cut.cancel()
        await asyncio.sleep(0)
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # that is asyncio's to say
        kept.extend([lent, *tasks, cut])

    async def second() -> None:
        with pytest.raises(PoolWrongLoop, match="has ended"):
            await in_time(pool.release(kept[0]), 5)
        assert await in_time(pool.fetchval("SELECT 7"), 5) == 7
        with pytest.raises(PoolWrongLoop, match="was leased on an event loop that has ended"):
            await in_time(pool.release(kept[0]), 5)
        assert kept[0].closed
        await eventually(lambda: not backends.running("pg_sleep"))
        await all_usable(pool)
        await eventually(lambda: len(backends.pids()) == 6)
        await pool.close()

    run(first)
    run(second)
    kept.clear()
    gc.collect()
    assert sum(WARNING in line for line in told(caplog)) == 1


def test_a_block_that_ends_on_the_next_loop_says_so(run: Run, named: str) -> None:
    """Whether the pool was opened afresh by then or not."""
    pool = AsyncConnectionPool(named, min_size=2)
    before, after = pool.connection(), pool.acquire()

    async def enter() -> None:
        await before.__aenter__()
        await after.__aenter__()

    async def leave() -> None:
        with pytest.raises(PoolWrongLoop, match="has ended"):
            await in_time(before.__aexit__(None, None, None), 5)
        await pool.open(wait=True)
        with pytest.raises(PoolWrongLoop, match="was leased on an event loop that has ended"):
            await in_time(after.__aexit__(None, None, None), 5)
        await pool.close()

    run(enter)
    run(leave)


def test_closing_on_the_next_loop_ends_the_old_sessions(
    run: Run, named: str, backends: Backends
) -> None:
    """A query that runs still too; then the pool is closed like any other."""
    pool = AsyncConnectionPool(named, min_size=2)
    kept: list[Any] = []

    async def first() -> None:
        await pool.wait()
        conn = await pool.acquire()
        conn.pgconn.send_query(b"SELECT pg_sleep(60)")
        conn.pgconn.flush()
        await eventually(lambda: backends.running("pg_sleep"))
        kept.append(conn)

    async def second() -> None:
        await in_time(pool.close(), 10)
        await eventually(lambda: not backends.pids())
        with pytest.raises(PoolClosed):
            await pool.acquire()

    run(first)
    run(second)
    run(pool.close)


def test_a_pool_that_was_closed_stays_closed_on_the_next_loop(run: Run, named: str) -> None:
    """Nothing opens it again, and closing it again does nothing."""
    pool = AsyncConnectionPool(named, min_size=1)

    async def first() -> None:
        await pool.open(wait=True)
        await pool.close()

    async def second() -> None:
        for use in (pool.open, pool.acquire, pool.wait, lambda: pool.fetchval("SELECT 1")):
            with pytest.raises(PoolClosed):
                await in_time(use(), 5)
        await pool.close()

    run(first)
    run(second)


def test_a_pool_that_opens_on_demand_only_waits_for_that(run: Run, named: str) -> None:
    """With `open=False` each use says what to do, until it is done."""
    pool = AsyncConnectionPool(named, min_size=1, open=False)

    async def first() -> None:
        await pool.open(wait=True)

    async def second() -> None:
        uses: list[Any] = [pool.acquire, pool.check, pool.drain, pool.wait]
        uses += [lambda: pool.fetchval("SELECT 1"), lambda: pool.resize(1, 3)]
        for use in uses:
            with pytest.raises(PoolWrongLoop, match=r"has ended: await pool.open\(\)"):
                await in_time(use(), 5)
        assert (await pool.health()).status == "down"
        await pool.open()
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close()

    run(first)
    run(second)


def test_sizes_stay_and_counters_begin_anew(run: Run, named: str) -> None:
    """A resize holds on the next loop too, which may resize again."""
    pool = AsyncConnectionPool(named, min_size=1)

    async def first() -> None:
        await pool.resize(2, 5)
        assert await pool.fetchval("SELECT 1") == 1
        pool.pop_stats()

    async def second() -> None:
        assert await pool.fetchval("SELECT 1") == 1
        assert (pool.min_size, pool.max_size) == (2, 5)
        assert pool.get_stats()["requests_num"] == 1

    async def third() -> None:
        await pool.resize(1, 4)
        assert pool.closed
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.max_size == 4
        await pool.close()

    for main in (first, second, third):
        run(main)


def test_a_loop_that_has_not_ended_keeps_its_pool(named: str) -> None:
    """The loop may run again; on another one the error says that it does not run now."""
    pool = AsyncConnectionPool(named, min_size=1)

    async def elsewhere() -> None:
        with pytest.raises(PoolWrongLoop, match="another event loop, which is not running"):
            await in_time(pool.fetchval("SELECT 1"), 5)

    with asyncio.Runner() as runner:
        runner.run(pool.open(wait=True))
        asyncio.run(elsewhere())
        runner.run(all_usable(pool))
        runner.run(pool.close())


def test_a_pool_whose_loop_has_ended_may_be_dropped(run: Run, named: str) -> None:
    """With the one ResourceWarning of any that was not closed."""
    pool = AsyncConnectionPool(named, min_size=1, name="left over")

    run(pool.open)
    with pytest.warns(ResourceWarning, match="'left over'.*dropped without close"):  # noqa: PT031
        del pool
        gc.collect()


MODULES: dict[str, AsyncConnectionPool] = {}


@pytest.mark.parametrize("turn", range(3))
async def test_a_pool_of_a_module_serves_tests_with_a_loop_each(
    asyncpool_dsn: str, turn: int
) -> None:
    """pytest-asyncio gives each test its own loop."""
    if turn == 0:
        MODULES["pool"] = AsyncConnectionPool(asyncpool_dsn, min_size=1)
    pool = MODULES["pool"]
    assert await pool.fetchval("SELECT 1") == 1
    assert (await at_rest(pool)).size == 1
    if turn == 2:
        await pool.close()


LEFT_OPEN = """
import asyncio, sys, warnings
warnings.simplefilter("ignore", ResourceWarning)
from asyncpool import AsyncConnectionPool

pool = AsyncConnectionPool(sys.argv[1], min_size=2, max_size=2)
kept = []

async def main():
    await pool.wait()
    kept.append(await pool.acquire())
    one_shot = asyncio.create_task(pool.fetchval("SELECT pg_sleep(0.2)"))
    waiter = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0.05)
    for task in (one_shot, waiter):
        task._log_destroy_pending = False  # that is asyncio's to say
        kept.append(task)
    print("done")

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""


@pytest.mark.parametrize("end", ["loop.close()", "", "loop.close(); kept.clear()", "sys.exit(0)"])
@pytest.mark.exhaustive
async def test_an_exit_with_the_loop_in_any_state_is_quiet(
    dsn: str, backends: Backends, end: str
) -> None:
    """Closed or not, with a lease, a query and a waiter: no traceback, no hang, exit code 0."""
    assert (await run_script(LEFT_OPEN + end, dsn)).split() == ["done"]
    await eventually(lambda: not backends.pids())
