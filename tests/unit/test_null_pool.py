"""A pool that keeps nothing: the core with `keeps_idle` off, on a virtual clock."""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from asyncpool import AsyncNullConnectionPool
from asyncpool._core.entry import State
from asyncpool._core.pool import Core
from asyncpool._core.settings import UNBOUNDED, Settings, sizes
from asyncpool._diagnostics.explain import explain
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import PoolClosed, PoolTimeout, PoolUnavailable, TooManyRequests
from tests.fake import FakeConn
from tests.unit._tools import (
    Driver,
    fails,
    never,
    now,
    ok,
    running,
    settle,
    slow,
    start,
    use,
    virtual_time,
)


def keeping_none(
    driver: Driver, max_size: int = UNBOUNDED, **rest: Any
) -> AbstractAsyncContextManager[Core[FakeConn]]:
    return running(driver, 0, max_size, keeps_idle=False, **rest)


@pytest.mark.parametrize(
    ("given", "meant"), [((0, None), UNBOUNDED), ((0, 0), UNBOUNDED), ((0, 3), 3)]
)
def test_no_maximum_or_zero_is_no_bound(given: tuple[int, int | None], meant: int) -> None:
    """psycopg_pool does so too; the number is reported as 0."""
    assert sizes(*given, keeps_idle=False) == (0, meant)
    numbers = Settings("test", 0, meant)
    assert numbers.max_size_or_zero == (given[1] or 0)
    assert numbers.max_size_text == (str(given[1]) if given[1] else "unlimited")


@pytest.mark.parametrize("min_size", [1, 4])
def test_a_minimum_above_zero_is_refused(min_size: int) -> None:
    """With its value, at the call."""
    with pytest.raises(ValueError, match=f"^min_size must be 0 .*: got {min_size}"):
        AsyncNullConnectionPool(min_size=min_size, max_size=5)


@virtual_time
async def test_what_nobody_waits_for_is_closed_with_no_reset() -> None:
    """Each request has a connection of its own, and nothing is opened unasked."""
    driver = Driver()
    async with keeping_none(driver) as core:
        await settle()
        assert driver.calls == []
        for _ in range(3):
            await use(core)
            await settle()
            assert core.ledger.size == 0
        assert [name for name, _ in driver.calls] == ["open", "close"] * 3
        assert snapshot(core).requests == 3


@virtual_time
async def test_a_released_connection_goes_to_the_head_of_the_queue() -> None:
    """In the order of their coming, over one connection, which is closed after the last."""
    driver = Driver()
    served: list[int] = []

    async def user(number: int) -> None:
        conn = await core.acquire(None)
        served.append(number)
        await asyncio.sleep(1.0)
        core.release(conn)

    async with keeping_none(driver, 1) as core:
        await asyncio.gather(*(user(number) for number in range(5)))
        await settle()
        assert served == [0, 1, 2, 3, 4]
        assert [name for name, _ in driver.calls] == ["open", "close"]
        assert core.ledger.size == 0


@virtual_time
async def test_it_is_reset_before_the_next_has_it() -> None:
    """Where it is not clean, by a task of the pool; nobody waits for that but the next."""
    driver = Driver(reset=slow(2.0))
    async with keeping_none(driver, 1) as core:
        conn = await core.acquire(None)
        waiter = start(core)
        await settle()
        conn.clean = False
        core.release(conn)
        assert await waiter is conn
        assert now() == pytest.approx(2.0, abs=1e-3)
        assert conn.clean
        conn.clean = False
        core.release(conn)
        await settle()
        assert len(driver.times("reset")) == 1
        assert conn.closed


@virtual_time
async def test_it_is_closed_if_the_next_has_left_meanwhile() -> None:
    """In the time that its reset took."""
    driver = Driver(reset=slow(2.0))
    async with keeping_none(driver, 1) as core:
        conn = await core.acquire(None)
        waiter = start(core)
        await settle()
        conn.clean = False
        core.release(conn)
        await settle()
        waiter.cancel()
        await asyncio.sleep(3.0)
        assert conn.closed
        assert core.ledger.size == 0


@virtual_time
async def test_there_are_never_more_than_the_bound() -> None:
    """From the reservation to the end of the farewell; a closing one has its place still."""
    driver = Driver(open=slow(0.1), close=slow(0.5))
    async with keeping_none(driver, 3) as core:
        await asyncio.gather(*(use(core, 1.0, 60.0) for _ in range(10)))
        assert driver.most_sockets == 3


@virtual_time
async def test_without_a_bound_all_are_served_a_few_connects_at_a_time() -> None:
    """The pool opens as many at once as any other pool."""
    driver = Driver(open=slow(0.1))
    async with keeping_none(driver) as core:
        await asyncio.gather(*(use(core, 60.0) for _ in range(100)))
        assert driver.most["open"] == core.settings.open_at_once
        assert driver.most_sockets == 100
        assert "unlimited" in str(explain(core))
        assert snapshot(core).max_size == 0


@virtual_time
async def test_a_connect_that_nobody_waits_for_any_more_is_closed() -> None:
    """The request was cancelled in time, or in the very turn of the hand-over."""
    driver = Driver(open=slow(1.0))
    async with keeping_none(driver) as core:
        early, late = (start(core) for _ in range(2))
        await settle()
        early.cancel()
        join, driver.usual["open"] = core.ledger.queue.serve, ok

        def strike(entry: Any) -> bool:
            handed_over = join(entry)
            late.cancel()
            return handed_over

        core.ledger.queue.serve = strike  # type: ignore[method-assign, assignment]
        await asyncio.wait({early, late})
        await settle()
        assert early.cancelled()
        assert late.cancelled()
        assert core.ledger.size == 0
        assert all(conn.closed for conn in driver.conns)
        assert snapshot(core).requests_cancelled == 2


@virtual_time
async def test_a_connect_is_bounded_by_the_requests_own_limit() -> None:
    """And goes on for the next."""
    driver = Driver(open=slow(5.0))
    async with keeping_none(driver, 1, timeout=1.0) as core:
        with pytest.raises(PoolTimeout) as caught:
            await core.acquire(None)
        assert now() == pytest.approx(1.0, abs=1e-3)
        assert caught.value.max_size == 1
        assert await use(core, timeout=10.0) == pytest.approx(5.0, abs=1e-3)
        assert len(driver.conns) == 1


@virtual_time
async def test_a_timeout_of_zero_fails_as_nothing_is_idle() -> None:
    """And opens nothing."""
    driver = Driver()
    async with keeping_none(driver) as core:
        with pytest.raises(PoolTimeout, match="max_size=unlimited"):
            await core.acquire(0)
        await settle()
        assert driver.calls == []


@virtual_time
async def test_the_queue_is_as_long_as_it_may_be() -> None:
    """`max_waiting` counts those who wait for a connect too."""
    driver = Driver(open=never)
    async with keeping_none(driver, 1, max_waiting=2) as core:
        waiting = [start(core) for _ in range(2)]
        await settle()
        with pytest.raises(TooManyRequests):
            await core.acquire(None)
        await core.close(0)
        for each in waiting:
            with pytest.raises(PoolClosed):
                await each


@virtual_time
async def test_a_lost_one_is_not_handed_over() -> None:
    """The next gets a new one, and keeps its place."""
    driver = Driver()
    async with keeping_none(driver, 1) as core:
        conn = await core.acquire(None)
        waiter = start(core)
        await settle()
        conn.die()
        core.release(conn)
        other = await waiter
        assert other is not conn
        assert snapshot(core).returns_bad == 1
        core.release(other)


@virtual_time
async def test_a_loss_that_only_the_socket_shows_is_counted_too() -> None:
    """A connection that is not watched seems clean; `is_alive` looks at its socket."""

    class Unwatched(Driver):
        def is_clean(self, conn: FakeConn) -> bool:
            return conn.clean

    async with keeping_none(Unwatched()) as core:
        conn = await core.acquire(None)
        conn.alive = False
        core.release(conn)
        await settle()
        assert core.ledger.size == 0
        assert snapshot(core).returns_bad == 1


@virtual_time
async def test_a_drained_one_and_one_past_its_life_are_not_handed_over() -> None:
    """Those who wait get a new one."""
    driver = Driver()
    async with keeping_none(driver, 1, max_lifetime=10.0) as core:
        for cut_short in (core.drain, lambda: None):
            conn = await core.acquire(None)
            waiter = start(core)
            await settle()
            cut_short()
            await asyncio.sleep(11.0)
            core.release(conn)
            other = await waiter
            assert other is not conn
            core.release(other)
            await settle()


@virtual_time
async def test_a_smaller_bound_closes_what_comes_back() -> None:
    """Until there are no more than it says, whoever waits."""
    driver = Driver()
    async with keeping_none(driver, 3) as core:
        conns = [await core.acquire(None) for _ in range(3)]
        waiter = start(core)
        await settle()
        core.resize(0, 1)
        for conn in conns[:2]:
            core.release(conn)
            await settle()
            assert conn.closed
        core.release(conns[2])
        assert await waiter is conns[2]
        core.release(conns[2])


# `fill`, which is what `pool.wait()` and the health check do.


@virtual_time
async def test_several_who_wait_share_one_connect_and_none_is_kept() -> None:
    """`wait()` is no request."""
    driver = Driver(open=slow(0.5))
    async with keeping_none(driver) as core:
        assert await asyncio.gather(*(core.readiness.wait() for _ in range(3))) == [True] * 3
        await settle()
        assert [name for name, _ in driver.calls] == ["open", "close"]
        assert snapshot(core).requests == 0
        assert await core.readiness.wait()
        assert len(driver.times("open")) == 2


@virtual_time
async def test_nothing_is_opened_once_nobody_waits_for_it_any_more() -> None:
    """The pool tries as long as one of several waits, and no longer."""
    driver = Driver(open=fails)
    async with keeping_none(driver, fail_fast_after=math.inf) as core:
        filling = [asyncio.create_task(core.readiness.wait()) for _ in range(3)]
        await asyncio.sleep(10.0)
        for left, least, most in (([], 120, 240), (filling[:2], 120, 240), (filling[2:], 0, 1)):
            for task in left:
                task.cancel()
            await settle()
            before = len(driver.times("open"))
            await asyncio.sleep(60.0)
            assert least <= len(driver.times("open")) - before <= most
        assert not core.ledger.trial_wanted


@virtual_time
@pytest.mark.parametrize("keeps", [True, False])
async def test_a_new_connection_that_nobody_checks_ends_an_outage(keeps: bool) -> None:
    """Though the pool has a check, which is for those that are lent."""

    async def check(conn: FakeConn) -> None:
        raise AssertionError

    driver = Driver(open=fails)
    least = 1 if keeps else 0
    async with running(driver, least, 1, keeps_idle=keeps, check=check) as core:
        filling = asyncio.create_task(core.readiness.wait())
        await asyncio.sleep(1.0)
        assert core.outages.outage
        driver.usual["open"] = ok
        await asyncio.sleep(1.0)
        assert not core.outages.outage
        assert await filling


@virtual_time
async def test_who_waits_for_a_connection_takes_the_one_that_was_to_be_seen() -> None:
    """One connect shows that it can be had, and serves a request."""
    driver = Driver(open=slow(0.5))
    async with keeping_none(driver, 1) as core:
        seen = asyncio.create_task(core.readiness.wait())
        await settle()
        assert await use(core) == pytest.approx(0.5, abs=1e-3)
        assert await seen
        assert len(driver.times("open")) == 1


@virtual_time
async def test_wait_ends_where_all_are_leased() -> None:
    """There is no room for one more."""
    driver = Driver()
    async with keeping_none(driver, 1) as core:
        conn = await core.acquire(None)
        assert await core.readiness.wait()
        assert len(driver.times("open")) == 1
        core.release(conn)
        assert await core.readiness.wait()
        assert len(driver.times("open")) == 2


@virtual_time
async def test_after_a_failed_connect_it_is_tried_again() -> None:
    """With pauses, as for a request."""
    driver = Driver()
    driver.script["open"].extend([fails, fails])
    async with keeping_none(driver) as core:
        assert await core.readiness.wait()
        assert snapshot(core).connects_failed == 2
        assert not core.outages.outage


@virtual_time
async def test_it_ends_where_there_is_no_use_in_waiting() -> None:
    """After `fail_fast_after`, as a request does."""
    driver = Driver(open=fails)
    async with keeping_none(driver, fail_fast_after=3.0) as core:
        assert not await core.readiness.wait()
        assert 3.0 < now() < 5.0
        with pytest.raises(PoolUnavailable):
            await core.acquire(None)


@virtual_time
@pytest.mark.parametrize("how", ["once", "twice", "scope"])
async def test_a_cancelled_wait_leaves_no_wish_behind(how: str) -> None:
    """The connection being opened is closed, and others go on waiting."""
    driver = Driver(open=slow(0.5))
    async with keeping_none(driver) as core:
        scope = anyio.CancelScope()

        async def wait() -> None:
            with scope:
                await core.readiness.wait()

        task, other = asyncio.create_task(wait()), asyncio.create_task(core.readiness.wait())
        await settle()
        if how == "scope":
            scope.cancel()
        else:
            task.cancel()
            if how == "twice":
                task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() is (how != "scope")
        assert await other
        other = asyncio.create_task(core.readiness.wait())
        await settle()
        other.cancel()
        await asyncio.sleep(2.0)
        assert not core.ledger.trial_wanted
        assert core.ledger.size == 0
        assert len(driver.times("open")) == 2


@virtual_time
async def test_closing_ends_every_wait() -> None:
    """And leaves nothing of what was being opened."""
    driver = Driver(open=never)
    async with keeping_none(driver) as core:
        waiting = asyncio.create_task(core.readiness.wait())
        await settle()
        await core.close(0)
        await waiting
        assert core.closed


@virtual_time
async def test_a_check_is_asked_of_each_and_a_failure_is_as_good_as_a_failed_connect() -> None:
    """Of new ones and of those handed over; the one that `wait` opens is not checked."""
    driver = Driver()
    asked: list[FakeConn] = []

    async def check(conn: FakeConn) -> None:
        asked.append(conn)
        if len(asked) == 1:
            await fails()

    async with keeping_none(driver, 1, check=check) as core:
        assert await core.readiness.wait()
        assert asked == []
        conn = await core.acquire(None)
        assert len(asked) == 2
        assert snapshot(core).connects_failed == 1
        waiter = start(core)
        await settle()
        core.release(conn)
        assert await waiter is conn
        assert len(asked) == 3
        core.release(conn)


@virtual_time
async def test_the_ledger_has_no_idle_entry_at_any_time() -> None:
    """An entry that is refused goes straight on to its end."""
    driver = Driver(close=slow(1.0))
    async with keeping_none(driver) as core:
        conn = await core.acquire(None)
        entry = core.ledger.leased[conn]
        core.release(conn)
        assert entry.state is State.CLOSING
        assert core.ledger.idle == []
