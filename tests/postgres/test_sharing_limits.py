"""The limits of one-shots: memory, prepared statements, the wait queue, loop turns."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool, PoolClosed, PoolTimeout, PoolUnavailable, TooManyRequests
from tests._tools import few

from ._severed import Severed
from ._sharing import HEAVY, all_leased, all_waiting, started, warm
from ._tools import BOTH_LOOPS, Backends, at_rest, eventually, in_time, linux, needs_internals

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = needs_internals

LOOPS = BOTH_LOOPS

MEGABYTE = 1 << 20


class Large(str):
    """A value that supports weak references, to see when it is freed."""

    __slots__ = ("__weakref__",)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    gc.collect()
    if not linux:
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", ["results", "parameters", "write"])
async def test_neither_results_nor_parameters_stay_in_memory(
    dsn: str, table: str, what: str
) -> None:
    """Eight calls of 50 MB each leave nothing, with different texts or the same one."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:

        async def call(number: int) -> None:
            if what == "results":
                query = f"SELECT repeat('x', {50 * MEGABYTE}) AS c{number % 5}"
                assert len(await pool.fetchval(query) or "") == 50 * MEGABYTE
                return
            value = Large("x" * (50 * MEGABYTE))
            values.append(weakref.ref(value))
            query = f"SELECT length(%s) AS c{number % 5}"
            if what == "write":
                query = f"INSERT INTO {table} SELECT length(%s) + {number % 5}"
            await pool.execute(query, [value])

        values: list[weakref.ref[Large]] = []
        await pool.fetchval("SELECT 1")
        before = resident()
        for number in range(8):
            await in_time(call(number))
        after = resident()
        assert [ref() for ref in values] == [None] * len(values)
        assert after - before < 120 * MEGABYTE, (after - before) / MEGABYTE


@pytest.mark.parametrize("query", ["SELECT 1 / (%s::int - 1) AS c{n}", "SELECT nothing AS c{n}"])
async def test_statements_prepared_by_failing_one_shots_do_not_pile_up(
    dsn: str, query: str
) -> None:
    """Fifty different statements leave almost none prepared on their backend."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for number in range(50):
            params = [1] if "%s" in query else None
            with pytest.raises(psycopg.Error):
                await pool.fetchval(query.format(n=number), params, prepare=True)
        left = await pool.fetchval("SELECT count(*) FROM pg_prepared_statements")
        assert left is not None
        assert left < 10
        assert (await at_rest(pool)).connects == 1


async def test_notifications_reach_their_handlers_while_reads_keep_coming(
    dsn: str, backends: Backends
) -> None:
    """The reads stop only after the notification was handled."""
    arrived = asyncio.Event()

    async def listen(conn: psycopg.AsyncConnection[Any]) -> None:
        conn.add_notify_handler(lambda _: arrived.set())
        await conn.execute("LISTEN busy_channel")
        await conn.commit()

    async with AsyncConnectionPool(dsn, min_size=1, configure=listen) as pool:

        async def read() -> None:
            while True:
                await pool.fetchval("SELECT 1")

        async with started(*(read() for _ in range(20))) as readers:
            await eventually(lambda: pool.stats().requests_shared)
            for _ in range(5):
                arrived.clear()
                await asyncio.to_thread(backends.ask, "NOTIFY busy_channel")
                await in_time(arrived.wait())
            assert not any(reader.done() for reader in readers)


async def cancel_many(
    number: int, start: Callable[[], asyncio.Task[Any]], ready: Callable[[], bool]
) -> tuple[float, float]:
    """Cancel `number` waiting tasks in random order, a thousand in one turn of the loop.

    Returns:
        The seconds of processor time for each task, and those of the longest turn.
    """
    tasks = [start() for _ in range(number)]
    await eventually(ready)
    order = list(tasks)
    Random(1).shuffle(order)
    gc.collect()
    longest, began = 0.0, time.process_time()
    for first in range(0, number, 1000):
        turn = time.perf_counter()
        for task in order[first : first + 1000]:
            task.cancel()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - turn)
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    return (time.process_time() - began) / number, longest


@pytest.mark.parametrize("query", few(["SELECT 1", "SELECT pg_sleep(0)"]))
async def test_queued_one_shots_are_cancelled_in_time_that_does_not_grow_with_the_queue(
    dsn: str, query: str, record_property: Callable[[str, object], None]
) -> None:
    """In random order, each costs about as much in a queue of 20,000 as in one of 1,000."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=300) as pool:
        await warm(pool, query)
        spent = {}
        async with all_leased(pool):
            for number in (1000, 20_000):
                each, longest = await cancel_many(
                    number,
                    lambda: asyncio.ensure_future(pool.fetchval(query)),
                    lambda number=number: pool.stats().waiting == number,  # type: ignore[misc]
                )
                spent[number] = each
                record_property(f"longest turn of {number}", longest)
                print(f"{number}: {each * 1e6:.1f} us each, longest turn {longest * 1e3:.1f} ms")
                assert pool.stats().waiting == 0
        assert await in_time(pool.fetchval("SELECT 1")) == 1
        stats = await at_rest(pool)
        assert stats.requests_cancelled == 21_000
    assert spent[20_000] < 5 * spent[1000], spent


async def test_a_large_batch_lets_other_tasks_run(dsn: str) -> None:
    """Another task takes many steps while 10,000 statements run."""
    steps = 0

    async def step() -> None:
        nonlocal steps
        while True:
            steps += 1
            await asyncio.sleep(0)

    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        async with started(step()):
            before = steps
            results = await in_time(pool.batch(["SELECT 1"] * 10_000))
            after = steps
        assert results == [[(1,)]] * 10_000
        assert after - before > 50


class Own(psycopg.AsyncCursor[Any]):
    """A cursor class that one borrower sets."""


async def test_the_cursor_class_of_one_borrower_does_not_end_sharing(dsn: str) -> None:
    """Other one-shots go on sharing, on this connection and on new ones."""
    async with AsyncConnectionPool(dsn, min_size=2, max_size=4) as pool:
        await pool.wait()
        async with pool.connection() as conn:
            conn.cursor_factory = Own
            await conn.execute("SELECT 1")
        for _ in range(3):
            answers = await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(100)))
            assert answers == [1] * 100
        before = pool.stats().requests_shared
        await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(100)))
        assert pool.stats().requests_shared > before
        await at_rest(pool)


async def test_each_failing_one_shot_has_an_exception_of_its_own(dsn: str) -> None:
    """Reads and writes wait when the pool is closed."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with all_leased(pool):
            queries = ["SELECT 1", "SELECT pg_sleep(0)"] * 5
            tasks = [asyncio.ensure_future(pool.fetchval(query)) for query in queries]
            await all_waiting(pool, 10)
            await pool.close(timeout=0)
        outcomes = await in_time(asyncio.gather(*tasks, return_exceptions=True))
        assert {type(outcome) for outcome in outcomes} == {PoolClosed}
        assert len({id(outcome) for outcome in outcomes}) == 10


async def test_each_one_shot_that_a_refused_connect_fails_has_an_exception_of_its_own(
    dsn: str,
) -> None:
    """The database does not exist."""
    gone = psycopg.conninfo.make_conninfo(dsn, dbname="not_there")
    async with AsyncConnectionPool(gone, min_size=1) as pool:
        queries = ["SELECT 1", "SELECT pg_sleep(0)"] * 5
        shots = [pool.fetchval(query) for query in queries]
        outcomes = await in_time(asyncio.gather(*shots, return_exceptions=True))
        assert {type(outcome) for outcome in outcomes} == {PoolUnavailable}
        assert len({id(outcome) for outcome in outcomes}) == 10


@pytest.mark.parametrize("blocks", [0, 2, 5])
async def test_the_bound_of_the_queue_counts_blocks_and_one_shots_together(
    dsn: str, blocks: int
) -> None:
    """Five requests of either kind wait, the sixth is refused."""

    async def borrow() -> int:
        async with pool.connection() as conn:
            cur = await conn.execute("SELECT 1")
            (value,) = await cur.fetchone() or (0,)
            return int(value)

    async with AsyncConnectionPool(dsn, min_size=2, max_waiting=5) as pool:

        def shot(number: int) -> Any:
            query = "SELECT 1" if number % 2 else "SELECT 1 FROM pg_sleep(0)"
            return pool.fetchval(query)

        async with all_leased(pool):
            waiting = [borrow() if n < blocks else shot(n) for n in range(5)]
            tasks = [asyncio.ensure_future(work) for work in waiting]
            await all_waiting(pool, 5)
            for work in (borrow(), shot(0), shot(1), pool.batch(["SELECT 1"])):
                with pytest.raises(TooManyRequests) as refused:
                    await in_time(work)
                assert (refused.value.waiting, refused.value.max_waiting) == (5, 5)
            assert pool.stats().waiting == 5
            tasks.pop().cancel()
            await all_waiting(pool, 4)
            tasks.append(asyncio.ensure_future(shot(1)))
            await all_waiting(pool, 5)
        assert await in_time(asyncio.gather(*tasks)) == [1] * 5
        stats = await at_rest(pool)
        assert stats.requests_failed == 4


async def test_a_read_that_has_to_be_moved_keeps_its_time_limit(dsn: str) -> None:
    """The read would run for a minute with others behind it."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=2) as pool:
        await warm(pool, HEAVY, 1)

        async def read() -> None:
            while True:
                assert await pool.fetchval("SELECT 1") == 1

        async with started(read(), read(), read()) as readers:
            with pytest.raises(PoolTimeout):
                await in_time(pool.fetchval(HEAVY, [1_000_000], timeout=0.5))
            assert not any(reader.done() for reader in readers)
        await at_rest(pool)


@pytest.mark.parametrize("size", [1, 2])
async def test_a_read_that_has_to_be_moved_keeps_its_place(dsn: str, size: int) -> None:
    """The read gets its result although reads and blocks keep coming after it."""
    async with AsyncConnectionPool(dsn, min_size=size, timeout=60) as pool:
        await warm(pool, HEAVY, 1)

        async def read() -> None:
            while True:
                assert await pool.fetchval("SELECT 1") == 1

        async def borrow() -> None:
            while True:
                async with pool.connection() as conn:
                    await conn.execute("SELECT 1")

        async with started(read(), read(), borrow(), borrow()) as others:
            assert await in_time(pool.fetchval(HEAVY, [3000]), 60) == 3_000_000
            assert not any(other.done() for other in others)
        await at_rest(pool)


async def test_a_read_whose_connection_breaks_keeps_its_time_limit(dsn: str) -> None:
    """The read fails, or another connection answers it; it does not wait for ever."""
    broken = False

    def choose(message: bytes) -> str | None:
        return "cut before" if broken and b"SELECT 7" in message else None

    async with (
        Severed(dsn, choose) as proxy,
        AsyncConnectionPool(proxy.dsn, min_size=2, kwargs={"prepare_threshold": None}) as pool,
    ):
        await warm(pool, "SELECT 7")
        broken = True
        shots = [pool.fetchval("SELECT 7", timeout=2.0) for _ in range(10)]
        outcomes = await in_time(asyncio.gather(*shots, return_exceptions=True))
        assert all(isinstance(outcome, psycopg.OperationalError) for outcome in outcomes), outcomes
        broken = False
        await eventually(lambda: pool.stats().idle)
        assert await in_time(pool.fetchval("SELECT 7")) == 7
