"""`pool.turn(key)`: one task a key goes on, before it borrows a connection."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import anyio
import pytest

from asyncpool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests, within

from ._tools import BOTH_LOOPS, at_rest, eventually

LOOPS = BOTH_LOOPS


async def test_a_hot_row_costs_one_connection(dsn: str, application: str) -> None:
    """Forty tasks update one row of a pool of four; three connections stay for the others."""
    table = f"hot_{application.removeprefix('test-')}"
    async with AsyncConnectionPool(dsn, min_size=4) as pool:
        await pool.execute(f"CREATE TABLE {table} (n int)")
        await pool.execute(f"INSERT INTO {table} VALUES (0)")
        most: dict[bool, int] = {}

        async def add(*, by_turn: bool) -> None:
            turn: Any = pool.turn("hot") if by_turn else contextlib.nullcontext()
            async with turn, pool.connection() as conn:
                await conn.execute(f"UPDATE {table} SET n = n + 1")
                most[by_turn] = max(most.get(by_turn, 0), pool.stats().leased)
                await conn.execute("SELECT pg_sleep(0.002)")

        try:
            for by_turn in (True, False):
                await asyncio.gather(*(add(by_turn=by_turn) for _ in range(40)))
            assert most == {True: 1, False: 4}
            assert await pool.fetchval(f"SELECT n FROM {table}") == 80
        finally:
            await pool.execute(f"DROP TABLE {table}")
        assert not pool._turns.lines


async def test_the_order_is_that_of_arrival(dsn: str) -> None:
    """Tasks have the turn of a key one after another; another key's is free."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        entered: list[int] = []
        go_on = asyncio.Event()

        async def enter(number: int) -> None:
            async with pool.turn("a"):
                entered.append(number)
                await go_on.wait()

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(enter(number))
            await eventually(lambda: entered == [0])
            async with pool.turn("b"):
                assert entered == [0]
            go_on.set()
        assert entered == [0, 1, 2, 3, 4]
        assert not pool._turns.lines


async def settled() -> None:
    """Let the tasks that were created run until they wait."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["asyncio", "anyio", "twice"])
async def test_a_cancelled_waiter_loses_nothing(dsn: str, kind: str) -> None:
    """Whether the turn was given to it already or not, the next one has it."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for was_given in (False, True):
            release, entered = asyncio.Event(), asyncio.Event()

            async def hold(entered: asyncio.Event, release: asyncio.Event) -> None:
                async with pool.turn("a"):
                    entered.set()
                    await release.wait()

            scope = anyio.CancelScope()

            async def wait(scope: anyio.CancelScope) -> None:
                with scope:
                    async with pool.turn("a"):
                        raise AssertionError("it had the turn")

            holder = asyncio.create_task(hold(entered, release))
            await entered.wait()
            waiter = asyncio.create_task(wait(scope))
            last = asyncio.create_task(hold(asyncio.Event(), release))
            line = pool._turns.lines["a"]
            await settled()
            assert line.queue.length == 2
            if was_given:
                release.set()
                await holder
            if kind == "anyio":
                scope.cancel()
            else:
                waiter.cancel()
                if kind == "twice":
                    await asyncio.sleep(0)
                    waiter.cancel()
            release.set()
            await asyncio.gather(holder, waiter, last, return_exceptions=True)
            assert last.exception() is None
            assert not pool._turns.lines


async def test_a_wait_for_a_turn_has_a_limit(dsn: str) -> None:
    """The pool's, the call's or that of `within`: then it is a PoolTimeout that names the key."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=0.05) as pool, pool.turn("a"):

        async def fails(timeout: float | None = None) -> None:
            with pytest.raises(PoolTimeout, match=r"no turn of the key 'a' within"):
                async with pool.turn("a", timeout):
                    pass

        await asyncio.create_task(fails())
        await asyncio.create_task(fails(0.01))
        await asyncio.create_task(fails(0))
        with within(0.01):
            await asyncio.create_task(fails(30))
        stats = pool.stats()
        assert (stats.requests_failed, stats.requests_timed_out) == (4, 4)


async def test_who_cannot_have_the_turn_in_time_is_refused(dsn: str) -> None:
    """The queue of a key knows how fast it is; it refuses as the pool's own does."""
    async with AsyncConnectionPool(dsn, min_size=1, timeout=20) as pool:

        async def use() -> None:
            async with pool.turn("a"):
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            work = [group.create_task(use()) for _ in range(100)]
            await eventually(lambda: sum(task.done() for task in work) > 40)
            with pytest.raises(TooManyRequests) as refused:
                async with pool.turn("a", 0.05):
                    pass
        assert refused.value.rule == "deadline"
        assert pool.stats().refused_deadline == 1


@pytest.mark.exhaustive
async def test_a_turn_learns_from_callers_that_give_up(dsn: str) -> None:
    """Most of them are cancelled in their turn, just after it has come."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        done = 0

        async def use() -> None:
            nonlocal done
            async with asyncio.timeout(0.2), pool.turn("a"):
                await asyncio.sleep(0.02)
                done += 1

        async with pool.turn("a"):
            line = pool._turns.lines["a"]
            tasks = []
        for _ in range(300):
            tasks.append(asyncio.create_task(use()))
            await asyncio.sleep(0.005)
            line = pool._turns.lines.get("a", line)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(each, TooManyRequests) for each in found)
        refused = next(each for each in found if isinstance(each, TooManyRequests))
        assert refused.waiting > 0
        assert "the turn of 'a'" in str(refused)


async def test_closing_the_pool_ends_the_waits(dsn: str) -> None:
    """Those that wait get PoolClosed; the one that has the turn goes on."""
    pool = AsyncConnectionPool(dsn, min_size=1)
    await pool.open()

    async def wait() -> None:
        async with pool.turn("a"):
            pass

    async with pool.turn("a"):
        waiter = asyncio.create_task(wait())
        await eventually(lambda: pool._turns.lines["a"].queue.length == 1)
        await pool.close()
        with pytest.raises(PoolClosed):
            await waiter
    assert not pool._turns.lines
    with pytest.raises(PoolClosed):
        await wait()


async def test_misuse_is_an_error_not_a_deadlock(dsn: str) -> None:
    """A task that waits for itself, or holds a connection meanwhile, would hang others."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        turn = pool.turn("a")
        async with turn:
            with pytest.raises(RuntimeError, match="has the turn of the key 'a' already"):
                async with pool.turn("a"):
                    pass
            with pytest.raises(RuntimeError, match="call turn"):
                async with turn:
                    pass
        async with pool.connection():
            with pytest.raises(RuntimeError, match="before you borrow"):
                async with pool.turn("a"):
                    pass
        async with pool.session():
            with pytest.raises(RuntimeError, match="before you borrow"):
                async with pool.turn("a"):
                    pass
        with pytest.raises(TypeError, match="key must be hashable"):
            pool.turn([])  # type: ignore[arg-type]
        async with turn:  # it may be entered again
            pass
        assert (await at_rest(pool)).idle == 1
        assert not pool._turns.lines
