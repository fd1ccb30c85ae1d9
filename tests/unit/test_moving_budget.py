"""A budget whose limit changes, and questions that are asked on the pools' connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import psycopg
import pytest

from asyncpool._core.entry import Entry
from asyncpool._core.outage import IDLE_CAP, Outage
from asyncpool.faults import Fault
from tests._tools import acquire_now, few
from tests.fake import Broken, FakeConn
from tests.unit._tools import (
    Driver,
    Moving,
    make_core,
    never,
    now,
    running,
    settle,
    start,
    timers,
    use,
    virtual_time,
)


@contextlib.asynccontextmanager
async def sharing(limit: int, *min_sizes: int, **rest: Any) -> AsyncIterator[Any]:
    """A budget and its pools, open; afterwards nothing of them may be left."""
    budget, drivers = Moving(limit), [Driver() for _ in min_sizes]
    pools = [
        make_core(driver, least, **{"max_size": 8, "budget": budget, **rest})
        for driver, least in zip(drivers, min_sizes, strict=True)
    ]
    for pool in pools:
        pool.open()
    await settle()
    try:
        yield budget, *pools
    finally:
        await asyncio.gather(*(pool.close(0) for pool in pools))
    assert budget.size == budget.pools == sum(driver.sockets for driver in drivers) == 0
    assert timers() == []


class TestLimit:
    """`_set_limit`."""

    @virtual_time
    async def test_idle_connections_above_a_lower_limit_are_closed_at_once(self) -> None:
        """The least recently used first, of whichever pool."""
        async with sharing(6, 3, 3) as (budget, a, b):
            await use(b)
            budget.move(1)
            await settle()
            assert (a.ledger.size, b.ledger.size) == (0, 1)

    @virtual_time
    async def test_those_in_use_are_closed_when_they_are_returned(self) -> None:
        """Also while requests of the same pool wait: they are served by the others."""
        async with sharing(4, 0) as (budget, pool):
            conns = [await pool.acquire(None) for _ in range(4)]
            waiting = start(pool)
            await settle()
            budget.move(2)
            await settle()
            assert budget.size == 4
            for conn in conns[:2]:
                pool.release(conn)
                await settle()
            assert (budget.size, waiting.done()) == (2, False)
            pool.release(conns[2])
            assert await waiting is conns[2]
            pool.release(conns[2])
            pool.release(conns[3])
            await settle()
            assert (budget.size, len(pool.ledger.idle)) == (2, 2)
            assert not pool.ledger.oversize

    @virtual_time
    async def test_a_higher_limit_is_used_by_those_who_wait_and_for_min_size(self) -> None:
        """In the order in which the requests came."""
        async with sharing(1, 0, 0, 2) as (budget, a, b, c):
            held = c.ledger.size
            assert held == 1
            first = start(b)
            await settle()
            second = start(a)
            await settle()
            assert await asyncio.wait_for(first, 1)  # the idle one of `c` was closed for it
            budget.move(2)
            await settle()
            assert second.done()
            budget.move(4)
            await settle()
            assert [pool.ledger.size for pool in (a, b, c)] == [1, 1, 2]
            b.release(await first)
            a.release(await second)

    @virtual_time
    async def test_no_connection_is_opened_in_place_of_what_is_closed(self) -> None:
        """Neither for `min_size` nor for those who wait."""
        async with sharing(4, 4) as (budget, pool):
            driver = pool._driver
            budget.move(2)
            await asyncio.sleep(60)
            assert (len(driver.times("open")), budget.size) == (4, 2)

    @pytest.mark.parametrize("seed", few(range(20), 3))
    @virtual_time
    async def test_whatever_the_limit_does_all_are_served_and_it_is_kept_to(
        self, seed: int
    ) -> None:
        """It moves at random while the pools are used."""
        random = Random(seed)
        async with sharing(3, 0, 2, 1) as (budget, *pools):
            uses = []
            for _ in range(200):
                uses.append(asyncio.create_task(use(random.choice(pools), random.uniform(0, 0.5))))
                if random.random() < 0.3:
                    budget.move(random.randrange(1, 9))
                before, limit = budget.size, budget.max_connections
                await asyncio.sleep(random.uniform(0, 0.05))
                assert budget.size <= max(before, limit)
            budget.move(2)
            await asyncio.wait_for(asyncio.gather(*uses), 300)
            await settle()
            assert budget.size <= 2
            budget.move(3)
            await settle()
            assert budget.size == 3


class TestAsk:
    """`ConnectionStore.ask`."""

    @virtual_time
    async def test_it_asks_on_the_idle_connection_that_was_used_least_recently(self) -> None:
        """It is out of service meanwhile, and then has its old place: it was no use."""
        async with running(Driver(), 2, 4) as core:
            await use(core)
            first, last = core.ledger.idle
            asked: list[FakeConn] = []

            async def question(conn: FakeConn) -> None:
                asked.append(conn)
                assert core.ledger.idle == [last]
                await asyncio.sleep(0.1)

            used_at, requests = first.used_at, core.ledger.leases
            core.store.ask(question)
            await asyncio.sleep(0.2)
            assert asked == [first.conn]
            assert core.ledger.idle == [first, last]
            assert (first.used_at, core.ledger.leases) == (used_at, requests)

    @virtual_time
    async def test_without_an_idle_one_it_asks_on_the_next_that_is_returned(self) -> None:
        """Before the request that waits for it; only once."""
        async with running(Driver(), 1, 1) as core:
            conn = await core.acquire(None)
            waiting, asked = start(core), list[float]()
            await settle()

            async def question(_: FakeConn) -> None:
                asked.append(now())
                await asyncio.sleep(0.1)

            core.store.ask(question)
            await settle()
            assert not asked
            core.release(conn)
            await asyncio.sleep(0.05)
            assert (len(asked), waiting.done()) == (1, False)
            await asyncio.sleep(0.1)
            assert await waiting is conn
            core.release(conn)
            assert acquire_now(core) is conn
            core.release(conn)
            assert not core.ledger.oversize
            assert len(asked) == 1

    @virtual_time
    async def test_a_new_connection_is_asked_before_its_first_lease(self) -> None:
        """It need not be returned first."""
        async with running(Driver(), 0, 1) as core:
            asked: list[FakeConn] = []

            async def question(conn: FakeConn) -> None:
                asked.append(conn)
                assert not core.ledger.leased

            core.store.ask(question)
            conn = await core.acquire(None)
            assert asked == [conn]
            core.release(conn)

    @virtual_time
    async def test_a_question_that_fails_costs_its_connection(self) -> None:
        """As a ping does; it is replaced."""
        async with running(Driver(), 1, 1) as core:
            (entry,) = core.ledger.idle

            async def question(_: FakeConn) -> None:
                raise Broken

            core.store.ask(question)
            await settle()
            await settle()
            assert [each is entry for each in core.ledger.idle] == [False]

    @pytest.mark.parametrize("fails", [False, True])
    @virtual_time
    async def test_an_answer_ends_an_outage(self, fails: bool) -> None:
        """It shows that the server works; a question that fails shows nothing."""
        driver = Driver()
        async with running(driver, 1, 2) as core:
            core.outages.connect_failed(Broken(), Entry(now()))
            (entry,) = core.ledger.idle
            entry.opened_at = now()

            async def question(_: FakeConn) -> None:
                if fails:
                    raise Broken

            driver.usual["open"] = never
            core.store.ask(question)
            await settle()
            await settle()
            assert bool(core.outages.outage) is fails

    @virtual_time
    async def test_a_question_is_no_ping(self) -> None:
        """It is not counted as one."""
        async with running(Driver(), 1, 1) as core:

            async def question(_: FakeConn) -> None:
                await asyncio.sleep(0.1)

            core.store.ask(question)
            await asyncio.sleep(0.2)
            assert core.runtime.counters.ping.count == 0
            assert core.ledger.idle

    @virtual_time
    async def test_a_pool_that_closes_does_not_ask_any_more(self) -> None:
        """What is returned is closed."""
        asked: list[FakeConn] = []

        async def question(conn: FakeConn) -> None:
            asked.append(conn)

        async with running(Driver(), 1, 1) as core:
            conn = await core.acquire(None)
            core.store.ask(question)
            closing = asyncio.create_task(core.close(1.0))
            await settle()
            core.release(conn)
            await closing
        assert not asked


def test_the_pause_for_a_full_server_may_be_shorter() -> None:
    """Where places are made free soon."""
    outage = Outage(Random(0))
    for at in range(20):
        outage.failed(float(at), OSError(), at - 0.5, Fault.CAPACITY, 0.25)
        assert outage.retry_at - at <= 0.25
    assert outage.idle_retry_at - at >= IDLE_CAP / 2


@virtual_time
async def test_a_pool_takes_that_pause_from_its_budget() -> None:
    """So a request gets the first place that the server has."""

    async def full() -> None:
        raise psycopg.errors.TooManyConnections

    budget = Moving(2)
    budget._longest_pause = 0.1
    driver = Driver(open=full)
    async with running(driver, 0, 2, budget=budget) as core:
        waiting: asyncio.Task[Any] = start(core, 30.0)
        await asyncio.sleep(10)
        assert len(driver.times("open")) >= 100
        waiting.cancel()
