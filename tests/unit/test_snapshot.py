"""The request counters add up at every moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import PoolTimeout
from tests._tools import acquire_now
from tests.unit._tools import (
    Driver,
    check_alive,
    go_bad,
    never,
    running,
    settle,
    slow,
    start,
    take,
    take_all,
    use,
    virtual_time,
)


@virtual_time
async def test_a_request_that_waits_again_has_queued_once() -> None:
    """A request counts once even if its connection is lost right after the hand-over."""
    async with running(Driver(), 1, 1) as core:
        conn = await core.acquire(None)
        waiting = start(core)
        await settle()
        core.release(conn)
        conn.die()
        await waiting
        stats = snapshot(core)
        assert (stats.requests, stats.requests_queued) == (2, 1)


@virtual_time
async def test_a_request_counts_from_arrival_to_end() -> None:
    """The counters add up between a waiter's deadline and the moment its task gets the error."""
    async with running(Driver(), 1, 1) as core:
        await core.acquire(None)
        waiting = start(core, 1.0)
        await settle()
        end = core.ledger.queue.fail
        seen = []

        def fail(waiter: Any, error: BaseException) -> None:
            end(waiter, error)
            seen.append(snapshot(core))

        core.ledger.queue.fail = fail  # type: ignore[method-assign]
        with pytest.raises(PoolTimeout):
            await waiting
        for stats in [*seen, snapshot(core)]:
            assert (stats.requests, stats.requests_failed, stats.waiting) == (2, 1, 0)


@virtual_time
async def test_a_request_counts_once_when_the_pool_ends_under_its_hand_over() -> None:
    """A request cancelled during its hand-over counts as cancelled, not also as served."""
    async with running(Driver(), 1, 1) as core:
        conn = await core.acquire(None)
        waiting = start(core)
        await settle()
        core.release(conn)
        core.store.discard(core.ledger.leased[conn])  # as `close` does at its time limit
        waiting.cancel()
        await settle()
        stats = snapshot(core)
        assert (stats.requests, stats.requests_cancelled, stats.leased) == (2, 1, 0)


@virtual_time
async def test_the_spread_of_uses_and_waits_has_each_of_them_once() -> None:
    """Each duration is counted once, however many occur between two rounds of maintenance."""
    async with running(Driver(), 1, 1) as core:
        counters = core.runtime.counters
        for _ in range(3):
            for _ in range(1500):
                core.release(acquire_now(core) or await core.acquire(None))
            conn = await core.acquire(None)
            waiting = [asyncio.create_task(use(core, 0.5)) for _ in range(3)]
            await asyncio.sleep(2.0)
            core.flush_times()
            core.release(conn)
            await asyncio.gather(*waiting)
        core.flush_times()
        assert counters.use.count == core.ledger.leases == 3 * 1504
        assert counters.use.sum == pytest.approx(counters.use_time)
        assert counters.use.max == pytest.approx(2.0)
        assert counters.wait.count == counters.requests_queued == 9
        assert counters.wait.sum == pytest.approx(counters.wait_time)
        assert counters.wait.max == pytest.approx(3.0)


@virtual_time
async def test_the_states_add_up_to_the_size() -> None:
    """This holds at every moment."""
    driver = Driver(reset=slow(1.0), close=slow(1.0))
    async with running(driver, 4, 5) as core:
        conns = [await take(core) for _ in range(3)]
        conns[0].clean = False
        core.release(conns[0])
        conns[1].die()
        core.release(conns[1])
        driver.usual["open"] = never
        waiting = [start(core) for _ in range(3)]
        await settle()
        now_ = snapshot(core)
        parts = (now_.opening, now_.idle, now_.leased, now_.cleaning, now_.closing)
        assert parts == (1, 0, 2, 1, 1)
        assert now_.size == sum(parts)
        assert now_.waiting == 2
        assert now_.requests == 6
        for task in waiting:
            task.cancel()


@virtual_time
async def test_durations_of_waits_and_leases_are_summed_exactly() -> None:
    """The sums are in seconds, for requests served and not served."""
    async with running(Driver(), 1, 1) as core:
        await asyncio.sleep(10.0)
        user = asyncio.create_task(use(core, 2.0))
        await settle()
        with pytest.raises(PoolTimeout):
            await core.acquire(0.5)
        await use(core, 1.0)
        await user
        stats = snapshot(core)
        assert stats.wait_time == pytest.approx(0.5 + 1.5, abs=0.001)
        assert stats.use_time == pytest.approx(2.0 + 1.0, abs=0.001)
        assert (stats.requests, stats.requests_queued, stats.requests_failed) == (3, 2, 1)


@pytest.mark.parametrize("check", [None, check_alive])
@virtual_time
async def test_a_request_counts_once_however_many_connections_it_takes(check: Any) -> None:
    """An unusable connection has served no request."""
    driver = Driver()
    async with running(driver, 4, 4, check=check) as core:
        go_bad(driver.conns[1:])
        core.release(await take(core))
        stats = snapshot(core)
        assert (stats.requests, stats.requests_failed, stats.lost) == (1, 0, 3)


@virtual_time
async def test_leases_of_unclean_or_broken_connections_count_too() -> None:
    """Each broken connection is counted."""
    async with running(Driver(), 3, 3) as core:
        await asyncio.sleep(10.0)
        conns = await take_all(core)
        await asyncio.sleep(2.0)
        conns[0].clean = conns[1].alive = conns[2].alive = False
        for conn in conns:
            core.release(conn)
        stats = snapshot(core)
        assert stats.use_time == pytest.approx(3 * 2.0)
        assert stats.returns_bad == 2
