"""One limit for several pools: which may open a connection, and what is closed for it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from asyncpool import Budget, PoolTimeout, PoolUnavailable, PoolWrongLoop
from asyncpool._core.background import force_close
from asyncpool._core.maintenance import make_round
from asyncpool._core.pool import Core
from asyncpool._diagnostics.explain import explain
from tests._tools import acquire_now
from tests.fake import FakeConn
from tests.unit._tools import (
    Driver,
    VirtualLoop,
    fails,
    make_core,
    never,
    now,
    ok,
    settle,
    slow,
    start,
    timers,
    use,
    virtual_time,
)


@contextlib.asynccontextmanager
async def sharing(
    limit: int, *min_sizes: int, max_size: int = 4, **rest: Any
) -> AsyncIterator[list[Core[FakeConn]]]:
    """Pools under one limit; afterwards the budget must be unused and the pools must be gone."""
    budget = Budget(limit)
    drivers = [Driver() for _ in min_sizes]
    pools = [
        make_core(driver, least, max_size, budget=budget, **rest)
        for driver, least in zip(drivers, min_sizes, strict=True)
    ]
    for pool in pools:
        pool.open()
    await settle()
    try:
        yield pools
    finally:
        await asyncio.gather(*(pool.close(0) for pool in pools))
    assert budget.size == budget.pools == sum(driver.sockets for driver in drivers) == 0
    assert not budget._shortage
    assert timers() == []


def opens(core: Core[FakeConn]) -> dict[str, Any]:
    """Return how the driver opens connections, to be changed by a test."""
    driver = core._driver
    assert isinstance(driver, Driver)
    return driver.usual


def connects(core: Core[FakeConn]) -> set[asyncio.Task[Any]]:
    """Return the background tasks of a pool, which are all connects."""
    return {task for task in asyncio.all_tasks() if task in core.runtime.tasks}


async def refused() -> None:
    """A connect with a wrong password."""
    raise psycopg.errors.InvalidPassword


@pytest.mark.parametrize(
    ("number", "error"), [(0, ValueError), (-1, ValueError), ("5", TypeError), (True, TypeError)]
)
def test_an_invalid_limit_is_refused(number: Any, error: type[Exception]) -> None:
    """The call raises the error."""
    with pytest.raises(error, match="max_connections"):
        Budget(number)


@virtual_time
async def test_pools_have_no_more_than_the_limit_together() -> None:
    """This holds for any number of requests to each pool."""
    async with sharing(3, 0, 0, 0, 0) as pools:
        uses = [asyncio.create_task(use(pool, 1.0)) for pool in pools for _ in range(4)]
        budget = pools[0].ledger.budget
        assert budget is not None
        while not all(task.done() for task in uses):
            assert budget.size <= 3
            assert budget.size == sum(pool.ledger.size for pool in pools)
            await asyncio.sleep(0.1)
        assert "budget: 3 of 3 connections" in str(explain(pools[0]))


@virtual_time
async def test_the_minimum_is_what_the_budget_allows() -> None:
    """A fleet gives a member less than its `min_size` where there is not enough for all."""

    class Small(Budget):
        def _least_for(self, ledger: object) -> int:
            return 1

    core = make_core(Driver(), 3, 3, budget=Small(1))
    assert not core.ledger.has_min_size
    core.open()
    assert not core.ledger.has_min_size
    await settle()
    assert core.ledger.has_min_size
    await core.close(0)


@virtual_time
async def test_those_who_wait_are_served_in_the_order_of_their_coming_across_pools() -> None:
    """A released connection is closed for a request that has waited longer in another pool."""
    served: list[int] = []

    async def request(number: int, pool: Core[FakeConn]) -> None:
        await use(pool, 1.0)
        served.append(number)

    async with sharing(2, 0, 0, 0) as (a, b, c):
        tasks = []
        for number, pool in enumerate([a, a, b, c, a, b, b, c, a, a, c]):
            tasks.append(asyncio.create_task(request(number, pool)))
            await settle()
        await asyncio.gather(*tasks)
    assert served == sorted(served)


@virtual_time
async def test_what_rests_elsewhere_is_closed_for_one_who_waits_the_least_recent_first() -> None:
    """No request waits while a connection is idle in another pool."""
    async with sharing(3, 0, 0, 0) as (a, b, c):
        for pool in (b, a, c, a):
            await use(pool)
            await asyncio.sleep(1)
        assert [len(pool.ledger.idle) for pool in (a, b, c)] == [1, 1, 1]
        held = [await asyncio.wait_for(start(c), 1), await asyncio.wait_for(start(c), 1)]
        assert [pool.ledger.size for pool in (a, b, c)] == [1, 0, 2]
        assert a.ledger.budget is not None
        assert a.ledger.budget.pools == 2
        for conn in held:
            c.release(conn)


@virtual_time
async def test_a_pool_may_keep_a_released_connection_while_no_earlier_request_waits_elsewhere() -> (
    None
):
    """No connection is closed and opened without need."""
    async with sharing(1, 0, 0) as (a, b):
        conn = await a.acquire(None)
        mine, theirs = start(a), None
        await settle()
        theirs = start(b)
        await settle()
        a.release(conn)
        assert await mine is conn
        a.release(conn)
        other = await asyncio.wait_for(theirs, 1)
        assert a.ledger.size == 0
        b.release(other)


@virtual_time
async def test_a_waiter_that_leaves_gives_up_its_claim() -> None:
    """The next waiter of any pool gets the room."""
    async with sharing(1, 0, 0, 0) as (a, b, c):
        conn = await a.acquire(None)
        first = start(b)
        await settle()
        second = start(c)
        await settle()
        first.cancel()
        await settle()
        a.release(conn)
        other = await asyncio.wait_for(second, 1)
        assert b.ledger.size == 0
        c.release(other)


@virtual_time
async def test_a_connection_is_kept_when_no_request_needs_its_room_any_more() -> None:
    """All waiters of the other pools have left."""
    async with sharing(1, 0, 0) as (a, b):
        conn = await a.acquire(None)
        gone = start(b)
        await settle()
        gone.cancel()
        await settle()
        a.release(conn)
        await settle()
        assert acquire_now(a) is conn
        a.release(conn)
        assert a.lease_of(conn) is None
        assert not a.ledger.oversize


@virtual_time
async def test_the_place_of_a_failed_connect_goes_to_the_next_pool() -> None:
    """A missing database does not block another one."""
    async with sharing(1, 0, 0) as (a, b):
        opens(a)["open"] = fails
        doomed = start(a, 5.0)
        await settle()
        for _ in range(20):
            conn = await asyncio.wait_for(start(b), 1)
            b.release(conn)
            await asyncio.sleep(0.1)
        with pytest.raises(PoolTimeout):
            await doomed


@virtual_time
async def test_an_outage_claims_room_only_when_its_back_off_is_over() -> None:
    """Until then, released connections are kept; after that they are closed for earlier waiters."""
    async with sharing(1, 0, 0) as (a, b):
        budget, outage = a.ledger.budget, a.outages.outage
        assert budget is not None
        opens(a)["open"] = fails
        waiting = start(a, 60.0)
        await asyncio.sleep(20.0)
        assert outage.failures > 5
        opens(a)["open"] = ok
        while now() >= outage.retry_at:
            await settle()
        await use(b)
        assert len(b.ledger.idle) == 1
        assert not budget._has_shortage(a.ledger)
        held = await b.acquire(None)
        await asyncio.sleep(1.0)
        assert budget._has_shortage(a.ledger)
        assert not waiting.done()
        b.release(held)
        a.release(await asyncio.wait_for(waiting, 1.0))
        assert b.ledger.size == 0


@virtual_time
async def test_an_outage_claims_no_more_room_than_its_waiters_need() -> None:
    """A request that has timed out needs nothing."""
    async with sharing(1, 0, 0) as (a, b):
        budget = a.ledger.budget
        assert budget is not None
        opens(a)["open"] = fails
        with pytest.raises(PoolTimeout):
            await a.acquire(2.0)
        held = await b.acquire(None)
        await asyncio.sleep(5.0)
        a.store.refill()
        assert not budget._has_shortage(a.ledger)
        b.release(held)
        assert len(b.ledger.idle) == 1


@virtual_time
async def test_a_request_that_waits_for_room_does_not_fail_for_an_old_refusal() -> None:
    """Only a new connect can show whether access is still refused, and it has no room."""
    async with sharing(1, 0, 0) as (a, b):
        opens(a)["open"] = refused
        with pytest.raises(PoolUnavailable):
            await a.acquire(None)
        await asyncio.sleep(5.0)
        held = await b.acquire(None)
        waiting = start(a)
        await settle()
        assert not waiting.done()
        b.release(held)
        with pytest.raises(PoolUnavailable):
            await asyncio.wait_for(waiting, 5.0)


@virtual_time
async def test_a_connect_that_hangs_takes_one_place_until_it_ends() -> None:
    """A single pool behaves like that too."""
    async with sharing(2, 0, 0) as (a, b):
        opens(a)["open"] = never
        hung = start(a)
        await settle()
        opens(a)["open"] = ok
        for _ in range(3):
            b.release(await asyncio.wait_for(start(b), 1))
        conn = await asyncio.wait_for(hung, 5)  # another connect is started beside a late one
        assert b.ledger.size == 0
        a.release(conn)


@virtual_time
async def test_min_size_is_not_kept_up_at_the_expense_of_a_request() -> None:
    """The pool is filled as soon as there is room again."""
    async with sharing(2, 0, 2) as (a, b):
        assert b.ledger.size == 2
        conn = await asyncio.wait_for(start(a), 1)
        await settle()
        assert (a.ledger.size, b.ledger.size) == (1, 1)
        a.release(conn)
        assert len(a.ledger.idle) == 1
        a.drain()
        await settle()
        await make_round(b)
        await settle()
        assert b.ledger.size == 2


@virtual_time
async def test_a_replacement_of_an_expired_connection_needs_room_too() -> None:
    """Without room the old one is closed first."""
    async with sharing(1, 1, max_lifetime=10.0) as (core,):
        await asyncio.sleep(11)
        await make_round(core)
        await settle()
        assert core.ledger.size == len(core.ledger.idle) == 1
        assert core.runtime.counters.connects == 2


@virtual_time
async def test_closing_a_pool_frees_its_places_for_the_others() -> None:
    """This includes the places of connects under way."""
    budget = Budget(2)
    driver = Driver(open=never)
    a, b = make_core(driver, 2, 2, budget=budget), make_core(Driver(), budget=budget)
    a.open()
    b.open()
    waiting = start(b)
    await settle()
    assert not waiting.done()
    await a.close(0)
    conn = await asyncio.wait_for(waiting, 1)
    assert budget.size == 1
    b.release(conn)
    await b.close(0)
    assert budget.size == 0


@virtual_time
async def test_the_budget_does_not_keep_a_closed_pool() -> None:
    """The budget may outlive many pools."""
    budget = Budget(2)
    core = make_core(Driver(), 1, 1, budget=budget)
    core.open()
    await settle()
    await core.close(0)
    gone = weakref.ref(core)
    del core
    gc.collect()
    assert gone() is None
    assert budget.size == 0


@virtual_time
async def test_a_dropped_pool_uses_no_places() -> None:
    """The budget keeps neither the pool nor the places of its connections."""
    budget = Budget(2)
    core = make_core(Driver(), 2, 2, budget=budget)
    core.open()
    await settle()
    assert budget.size == 2
    core.abandon_all()
    gone = weakref.ref(core)
    del core
    gc.collect()
    assert gone() is None
    assert (budget.size, budget.pools) == (0, 0)


@virtual_time
async def test_a_dropped_pool_leaves_its_places_to_waiters() -> None:
    """No call is needed: the garbage collector may drop the pool."""
    async with sharing(2, 0) as (b,):
        budget = b.ledger.budget
        a = make_core(Driver(), 2, 2, budget=budget)
        a.open()
        await settle()
        held = [await a.acquire(None), await a.acquire(None)]
        waiting = start(b)
        await settle()
        assert not waiting.done()
        a.abandon_all()
        assert set(held)
        conn = await asyncio.wait_for(waiting, 1)
        assert budget is not None
        assert not budget._has_shortage(b.ledger)
        b.release(conn)


@virtual_time
async def test_in_a_forked_child_nothing_is_done_on_the_parents_loop() -> None:
    """This holds although requests wait on it."""
    async with sharing(1, 0, 0, 0) as (a, b, c):
        conn = await a.acquire(None)
        waiting = [start(b), start(c)]
        await settle()
        budget, loop = a.ledger.budget, asyncio.get_running_loop()
        assert budget is not None
        assert budget._shortage
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", None)
            b.abandon_all(forked=True)
        for task in waiting:
            task.cancel()
        a.release(conn)


def test_nothing_waits_for_what_was_left_on_a_loop_that_has_ended() -> None:
    """This applies to its connections and its requests."""
    budget = Budget(2)
    loop = VirtualLoop()
    left: list[Core[FakeConn]] = []
    waiting: list[asyncio.Task[Any]] = []

    async def leave() -> None:
        left.extend(make_core(Driver(), budget=budget) for _ in range(2))
        for core in left:
            core.open()
        for _ in range(2):
            await left[0].acquire(None)
        waiting.append(start(left[1]))
        await settle()

    async def come() -> None:
        core = make_core(Driver(), budget=budget)
        core.open()
        assert (budget.size, budget.pools, budget._shortage) == (0, 0, {})
        assert not budget._queue
        held = [await asyncio.wait_for(start(core), 1) for _ in range(2)]
        assert budget.size == 2
        for conn in held:
            core.release(conn)
        assert len(core.ledger.idle) == 2
        await core.close(0)

    loop.run_until_complete(leave())
    loop.close()
    for task in waiting:
        force_close(task)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(come())
    for core in left:
        core.abandon_all()
    assert budget.size == 0


@virtual_time
async def test_a_request_served_a_lost_connection_keeps_its_position_across_pools() -> None:
    """The request stays before all later requests of any pool."""
    served: list[str] = []

    async def request(name: str, pool: Core[FakeConn]) -> None:
        await use(pool, 1.0)
        served.append(name)

    async with sharing(1, 0, 0) as (a, b):
        conn = await a.acquire(None)
        tasks = []
        for name, pool in (("first", a), ("second", b), ("third", b), ("fourth", a)):
            tasks.append(asyncio.create_task(request(name, pool)))
            await asyncio.sleep(1.0)
        a.release(conn)
        conn.die()
        await asyncio.gather(*tasks)
    assert served == ["first", "second", "third", "fourth"]


@virtual_time
async def test_a_request_that_rejoins_keeps_its_position() -> None:
    """The position is behind earlier and before later requests."""
    async with sharing(2, 0, 0) as (a, b):
        budget, conn = a.ledger.budget, await a.acquire(None)
        assert budget is not None
        opens(a)["open"] = opens(b)["open"] = never
        tasks = []
        for pool in (b, a, b, b):
            tasks.append(start(pool))
            await asyncio.sleep(0.01)
        a.release(conn)
        conn.die()
        await settle()
        found = [(came, books) for came, books, waiter in budget._queue if waiter.waiting]
        assert [books for _, books in found] == [b.ledger, a.ledger, b.ledger, b.ledger]
        assert [came for came, _ in found] == sorted(came for came, _ in found)
        for task in tasks:
            task.cancel()


@virtual_time
async def test_each_place_goes_to_the_longest_waiting_request() -> None:
    """If two places become free at once, a pool's second waiter does not follow its first."""
    async with sharing(2, 0, 0) as (a, b):
        budget = a.ledger.budget
        c = make_core(Driver(), 0, 2, budget=budget)
        c.open()
        held = [await c.acquire(None) for _ in range(2)]
        tasks = []
        for pool in (a, b, a, b):
            tasks.append(start(pool))
            await asyncio.sleep(0.01)
        c.abandon_all()
        await settle()
        assert len(held) == 2
        assert [task.done() for task in tasks] == [True, True, False, False]
        assert [pool.runtime.counters.connects for pool in (a, b)] == [1, 1]
        assert budget is not None
        assert budget.pools == 2
        for number, pool in enumerate((a, b, a, b)):
            pool.release(await asyncio.wait_for(tasks[number], 1))


@virtual_time
async def test_the_end_of_one_pool_does_not_lose_waiters_of_another() -> None:
    """Connections released elsewhere are for them."""
    async with sharing(2, 0, 0, 0) as (a, b, c):
        mine, theirs = await a.acquire(None), await c.acquire(None)
        first, second = start(b), start(b)
        await settle()
        await a.close(0)
        assert mine.closed
        conn = await asyncio.wait_for(first, 1)
        c.release(theirs)
        other = await asyncio.wait_for(second, 1)
        assert c.ledger.size == 0
        b.release(conn)
        b.release(other)


@virtual_time
async def test_waiters_that_have_left_use_no_memory() -> None:
    """This holds although an earlier waiter still waits."""
    async with sharing(1, 0, 0, max_waiting=0) as (a, b):
        conn = await a.acquire(None)
        first = start(b)
        await settle()
        for _ in range(20):
            crowd = [start(a) for _ in range(50)]
            await settle()
            for task in crowd:
                task.cancel()
            await settle()
        budget = b.ledger.budget
        assert budget is not None
        assert len(budget._queue) <= 130
        a.release(conn)
        b.release(await asyncio.wait_for(first, 1))


@virtual_time
async def test_the_queue_is_not_scanned_for_each_new_request() -> None:
    """The queue is scanned when its length has doubled."""
    async with sharing(1, 0, 0) as (a, b):
        conn, budget = await a.acquire(None), a.ledger.budget
        assert budget is not None
        lines, crowd = [budget._queue], []
        for _ in range(400):
            crowd.append(start(b))
            await settle()
            if budget._queue is not lines[-1]:
                lines.append(budget._queue)
        assert len(lines) == 3
        for task in crowd:
            task.cancel()
        await settle()
        a.release(conn)


@virtual_time
@pytest.mark.parametrize(("waiting", "kept"), [(1, 1), (2, 0)])
async def test_connections_being_closed_count_as_room(waiting: int, kept: int) -> None:
    """No more are closed than waiters need."""
    async with sharing(2, 0, 0, 0) as (a, b, c):
        mine, theirs = await a.acquire(None), await c.acquire(None)
        opens(c)["close"] = slow(5.0)
        tasks = [start(b) for _ in range(waiting)]
        await settle()
        c.release(theirs)
        await settle()
        assert (c.ledger.closing, c.ledger.idle) == (1, [])
        a.release(mine)
        await settle()
        assert len(a.ledger.idle) == kept
        for task in tasks:
            b.release(await asyncio.wait_for(task, 10))


@virtual_time
async def test_a_pool_without_waiters_does_not_block_the_others() -> None:
    """Its shortage ends when its requests leave."""
    async with sharing(1, 0, 0, 0) as (a, b, c):
        conn = await a.acquire(None)
        budget = a.ledger.budget
        assert budget is not None
        gone = start(b)
        await settle()
        assert budget._has_shortage(b.ledger)
        assert not budget._has_shortage(c.ledger)
        gone.cancel()
        await settle()
        b.store.refill()
        assert not budget._shortage
        a.release(conn)
        assert len(a.ledger.idle) == 1
        c.release(await asyncio.wait_for(start(c), 1))
        assert a.ledger.size == 0


@virtual_time
async def test_the_error_says_that_the_budget_is_used_up() -> None:
    """The pool itself may have no connections at all."""
    async with sharing(1, 0, 0) as (a, b):
        conn = await a.acquire(None)
        with pytest.raises(PoolTimeout, match=r"budget is used up .pools=1, connections=1"):
            await b.acquire(1.0)
        a.release(conn)


def test_pools_of_two_loops_may_not_share_a_budget() -> None:
    """The error comes at once; they may use it one after the other."""
    budget = Budget(2)

    async def spend() -> None:
        core = make_core(Driver(), 1, budget=budget)
        core.open()
        await settle()
        await core.close(0)

    def elsewhere(errors: list[PoolWrongLoop]) -> None:
        other = VirtualLoop()
        try:
            other.run_until_complete(spend())
        except PoolWrongLoop as error:
            errors.append(error)
        finally:
            other.close()

    async def hold() -> None:
        make_core(Driver(), 1, budget=budget).open()
        errors: list[PoolWrongLoop] = []
        thread = threading.Thread(target=elsewhere, args=[errors])
        thread.start()
        thread.join()
        assert ["budget" in str(error) for error in errors] == [True]

    for work in (spend, spend, hold, spend):
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(work())


@virtual_time
async def test_many_pools_are_all_served() -> None:
    """A thousand tenants share ten connections: each is served once, in order, within the limit."""
    async with sharing(10, *[0] * 200, max_size=2) as pools:
        served: list[float] = []
        budget = pools[0].ledger.budget
        assert budget is not None

        async def tenant(pool: Core[FakeConn]) -> None:
            opens(pool)["open"] = slow(0.01)
            for _ in range(5):
                served.append(await use(pool, 0.01))
                assert budget.size <= 10

        await asyncio.gather(*(tenant(pool) for pool in pools))
        assert len(served) == 1_000
        assert now() < 3.0


@virtual_time
async def test_a_pool_that_closes_leaves_its_room_to_the_others_at_once() -> None:
    """It had room for a connect, which was cancelled and would have been tried again."""
    async with sharing(2, 0, 0) as (a, b):
        held = await a.acquire(None)
        opens(a)["open"] = never
        waits = [start(a), start(a)]
        await settle()
        other = start(b)
        await settle()
        (connect,) = connects(a)
        connect.cancel()  # as something might do that is not the pool
        await settle()
        assert a.ledger.size == 1
        assert not other.done()
        closing = asyncio.ensure_future(a.close(5.0))
        await settle()
        assert now() < 0.01
        assert other.done()
        b.release(other.result())
        a.release(held)
        await closing
        await asyncio.gather(*waits, return_exceptions=True)


@virtual_time
async def test_the_room_of_a_cancelled_connect_is_offered_although_an_outage_ends() -> None:
    """The pause before that does not end with the outage."""
    async with sharing(2, 0, 0, max_size=2) as (a, b):
        opens(a)["open"] = fails
        held = start(a)
        await settle()
        opens(a)["open"] = slow(5.0)
        await asyncio.sleep(0.5)
        (first,) = connects(a)
        (probe,) = a.ledger.entries
        opens(a)["open"] = never
        await asyncio.sleep(3.0)
        (second,) = connects(a) - {first}
        other = start(b)
        await asyncio.sleep(probe.opened_at + 4.95 - now())
        assert not other.done()
        second.cancel()  # as something might do that is not the pool
        await asyncio.sleep(0.5)
        assert held.done()
        assert other.done()
        a.release(held.result())
        b.release(other.result())
