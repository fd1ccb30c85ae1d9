"""Core with a scripted driver: acquire, release, wait, check, close."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import math
import sys
import weakref
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from asyncpool._core.background import force_close
from asyncpool._core.pool import Core
from asyncpool._diagnostics.explain import explain, leases
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import (
    PoolClosed,
    PoolTimeout,
    PoolWrongLoop,
    ReleaseError,
    TooManyRequests,
)
from tests.sim.fake import Broken, FakeConn
from tests.unit._tools import (
    Driver,
    VirtualLoop,
    fails,
    lose,
    make_core,
    never,
    now,
    ok,
    running,
    settle,
    slow,
    stubborn,
    timers,
    use,
    virtual_time,
)


def at_once(coroutine: Any) -> Any:
    """Run a coroutine that must not suspend, and return its result."""
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


async def take(core: Core[FakeConn], timeout: float | None = None) -> FakeConn:
    return core.acquire_now() or await core.acquire(timeout)


async def take_all(core: Core[FakeConn]) -> list[FakeConn]:
    return [await take(core) for _ in range(core.settings.max_size)]


def start(core: Core[FakeConn], timeout: float | None = None) -> asyncio.Task[FakeConn]:
    return asyncio.create_task(core.acquire(timeout))


async def check_alive(conn: FakeConn) -> None:
    """A check that takes no time."""
    if not conn.alive:
        raise Broken


def go_bad(conns: list[FakeConn]) -> None:
    """Break connections without notifying the pool."""
    for conn in conns:
        conn.alive = False


class TestNoSuspension:
    @virtual_time
    async def test_acquiring_an_idle_connection_does_not_suspend(self) -> None:
        """So it contains no await at which it could be cancelled."""
        async with running(Driver(), 1) as core:
            conn = at_once(core.acquire(None))
            assert conn is core.ledger.leased[conn].conn
            core.release(conn)

    @virtual_time
    async def test_a_clean_cycle_makes_no_task_and_no_timer(self) -> None:
        """Acquire and release are two plain calls."""
        async with running(Driver(), 1) as core:
            tasks, before = len(asyncio.all_tasks()), timers()
            conn = core.acquire_now()
            assert conn is not None
            core.release(conn)
            assert (len(asyncio.all_tasks()), timers()) == (tasks, before)
            assert core.acquire_now() is conn

    @virtual_time
    async def test_releasing_an_unclean_connection_does_not_suspend_either(self) -> None:
        """A background task cleans the connection."""
        driver = Driver(reset=slow(1.0))
        async with running(driver, 1) as core:
            conn = await take(core)
            conn.clean = False
            core.release(conn)
            assert now() < 0.01
            assert core.acquire_now() is None
            await asyncio.sleep(1.5)
            assert core.acquire_now() is conn

    @virtual_time
    async def test_the_most_recently_used_connection_is_leased_first(self) -> None:
        """Surplus connections stay unused and can be closed."""
        async with running(Driver(), 3) as core:
            first, second, third = await take(core), await take(core), await take(core)
            for conn in (third, first, second):
                core.release(conn)
            assert [core.acquire_now() for _ in range(3)] == [second, first, third]


class TestQueue:
    @virtual_time
    async def test_requests_are_served_in_order_of_arrival(self) -> None:
        """The wait queue is strictly first in, first out."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            tasks = [start(core) for _ in range(5)]
            await settle()
            for number in range(5):
                core.release(conn)
                await settle()
                assert [task.done() for task in tasks] == [True] * (number + 1) + [False] * (
                    4 - number
                )

    @virtual_time
    async def test_a_newcomer_does_not_overtake_a_waiter(self) -> None:
        """A released connection belongs to the waiter before its task has run."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            waiting = start(core)
            await settle()
            core.release(conn)
            assert core.acquire_now() is None
            newcomer = start(core)
            assert await waiting is conn
            assert not newcomer.done()
            core.release(conn)
            assert await newcomer is conn

    @pytest.mark.parametrize("cancelled_first", [True, False])
    @virtual_time
    async def test_a_hand_over_to_a_task_cancelled_in_the_same_tick_goes_to_the_next(
        self, cancelled_first: bool
    ) -> None:
        """The connection does not leak, and no waiter sleeps while one is idle."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            head, following = start(core), start(core)
            await settle()
            if cancelled_first:
                head.cancel()
            core.release(conn)
            head.cancel()
            assert await following is conn
            assert head.cancelled()
            core.release(conn)
            stats = snapshot(core)
            assert (stats.requests_cancelled, stats.requests, stats.idle) == (1, 3, 1)

    @pytest.mark.parametrize("cancelled_first", [True, False])
    @virtual_time
    async def test_a_hand_over_under_a_cancelled_anyio_scope_goes_to_the_next(
        self, cancelled_first: bool
    ) -> None:
        """anyio cancels a task at other instants than asyncio."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            scope = anyio.CancelScope()

            async def leave() -> None:
                with scope:
                    core.release(await core.acquire(None))

            head = asyncio.create_task(leave())
            await settle()
            following = start(core)
            await settle()
            if cancelled_first:
                scope.cancel()
            core.release(conn)
            scope.cancel()
            assert await following is conn
            await head
            core.release(conn)

    @virtual_time
    async def test_a_connection_handed_over_and_lost_in_the_same_tick_is_replaced(self) -> None:
        """The waiter keeps its position."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            head, following = start(core), start(core)
            await settle()
            core.release(conn)
            lose(conn)
            other = await head
            assert other is not conn
            assert not following.done()
            core.release(other)
            assert await following is other

    @virtual_time
    async def test_a_watched_connection_is_not_tested_at_a_hand_over(self) -> None:
        """The driver reports its loss, and the first statement on it fails."""
        driver = Driver()
        driver.watches = True
        async with running(driver, 1, 1) as core:
            await asyncio.sleep(10.0)
            conn = await take(core)
            waiting = start(core)
            await settle()
            core.release(conn)
            conn.alive = False
            assert await waiting is conn
            core.release(conn)

    @virtual_time
    async def test_a_full_queue_refuses_the_next_request(self) -> None:
        """`max_waiting` counts current waiters; the error has the numbers."""
        async with running(Driver(), 1, 1, max_waiting=2) as core:
            conn = await take(core)
            tasks = [start(core) for _ in range(2)]
            await settle()
            with pytest.raises(TooManyRequests, match=r"2 requests .*max_waiting=2") as refused:
                await core.acquire(None)
            assert (refused.value.waiting, refused.value.max_waiting) == (2, 2)
            tasks[0].cancel()
            await settle()
            third = start(core)
            await settle()
            assert not third.done()
            core.release(conn)
            core.release(await tasks[1])
            core.release(await third)

    @virtual_time
    async def test_a_full_queue_does_not_refuse_a_request_that_need_not_wait(self) -> None:
        """A request that finds an idle connection does not wait."""
        async with running(Driver(), 1, 1, max_waiting=1) as core:
            for _ in range(3):
                await use(core)

    @virtual_time
    async def test_a_request_that_must_wait_again_is_not_refused(self) -> None:
        """The request keeps its position, even if the queue is full."""
        driver = Driver()
        async with running(driver, 1, 1, max_waiting=1) as core:
            conn = await take(core)
            head = start(core)
            await settle()
            following = start(core)
            core.release(conn)
            lose(conn)
            core.release(await head)
            core.release(await following)


class TestTimeout:
    @virtual_time
    async def test_a_request_ends_at_its_time_limit(self) -> None:
        """The limit is the request's own or the pool's."""
        async with running(Driver(), 1, 1, timeout=5.0) as core:
            await take(core)
            began = now()
            with pytest.raises(PoolTimeout):
                await core.acquire(None)
            assert now() - began == pytest.approx(5.0)
            with pytest.raises(PoolTimeout):
                await core.acquire(2.0)
            assert now() - began == pytest.approx(7.0)

    @virtual_time
    async def test_the_error_says_what_happened_with_the_numbers_and_what_to_do(self) -> None:
        """The error has them in this order; the numbers are attributes too."""
        async with running(Driver(), 2, 2) as core:
            await asyncio.create_task(take_all(core), name="hoarder")
            await asyncio.sleep(40.0)
            others = [start(core, 9.0) for _ in range(2)]
            with pytest.raises(PoolTimeout) as late:
                await core.acquire(8.0)
            assert str(late.value) == (
                "no connection within 8 s (max_size=2, size=2, leased=2, waiting=3);"
                " the longest lease is 48.0 s old, held by hoarder (ended): see pool.explain()"
            )
            error = late.value
            assert (error.timeout, error.max_size, error.size) == (8.0, 2, 2)
            assert (error.leased, error.waiting) == (2, 3)
            assert error.longest_lease == pytest.approx(48.0, abs=0.001)
            await asyncio.gather(*others, return_exceptions=True)

    @virtual_time
    async def test_the_last_connect_error_is_the_cause(self) -> None:
        """The cause tells the caller why there was no connection."""
        async with running(Driver(open=fails), 1, 1) as core:
            with pytest.raises(PoolTimeout, match="connecting has failed") as late:
                await core.acquire(1.0)
            assert isinstance(late.value.__cause__, Broken)

    @virtual_time
    async def test_with_timeout_zero_an_idle_connection_is_taken_or_it_fails_at_once(self) -> None:
        """`timeout=0` never waits for a connection."""
        async with running(Driver(), 1, 1) as core:
            conn = at_once(core.acquire(0))
            with pytest.raises(PoolTimeout):
                core.acquire(0).send(None)
            core.release(conn)
            stats = snapshot(core)
            assert (stats.requests_queued, stats.requests_failed, stats.requests) == (0, 1, 2)

    @virtual_time
    async def test_with_an_infinite_timeout_no_timer_is_set(self) -> None:
        """`math.inf` waits for ever."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            waiting = start(core, math.inf)
            await settle()
            assert core.ledger.queue._timer.at == math.inf
            core.release(conn)
            await waiting

    @pytest.mark.parametrize("timeout", [-1, math.nan])
    @virtual_time
    async def test_an_invalid_timeout_is_refused(self, timeout: float) -> None:
        """The call raises the error, and no connection is lost."""
        async with running(Driver(), 1, 1) as core:
            with pytest.raises(ValueError, match=r"^timeout must be zero or more"):
                await core.acquire(timeout)
            assert core.acquire_now() is not None

    @virtual_time
    async def test_the_deadline_is_one_instant_across_all_attempts(self) -> None:
        """Connections that turn out unusable do not extend the wait."""

        async def check(conn: FakeConn) -> None:
            await asyncio.sleep(0.3)
            raise Broken

        async with running(Driver(open=slow(0.1)), 0, 2, check=check) as core:
            began = now()
            with pytest.raises(PoolTimeout):
                await core.acquire(1.0)
            assert now() - began == pytest.approx(1.0)

    @virtual_time
    async def test_a_deadline_and_a_release_in_one_tick_lose_nothing(self) -> None:
        """Either the request or the pool has the connection."""
        for offset in (-1e-9, 0.0, 1e-9):
            async with running(Driver(), 1, 1) as core:
                conn = await take(core)
                deadline = now() + 1.0
                waiting = start(core, 1.0)
                asyncio.get_running_loop().call_at(deadline + offset, core.release, conn)
                (result,) = await asyncio.gather(waiting, return_exceptions=True)
                await settle()
                assert (result is conn) == (not core.ledger.idle)
                assert isinstance(result, FakeConn | PoolTimeout)


class TestCheck:
    @virtual_time
    async def test_every_connection_is_checked_before_it_is_leased(self) -> None:
        """An idle connection is checked too."""
        checked: list[FakeConn] = []

        async def check(conn: FakeConn) -> None:
            checked.append(conn)

        async with running(Driver(), 1, check=check) as core:
            conns = [await take(core)]
            core.release(conns[0])
            conns.append(await take(core))
            assert checked == conns

    @virtual_time
    async def test_a_check_runs_with_the_context_variables_of_its_caller(self) -> None:
        """The check belongs to the request."""
        request: ContextVar[str] = ContextVar("request", default="none")
        found: list[str] = []

        async def check(_: FakeConn) -> None:
            found.append(request.get())

        async with running(Driver(), 1, 1, check=check) as core:
            request.set("mine")
            await use(core)
            assert found == ["mine"]

    @virtual_time
    async def test_after_a_failed_check_the_next_is_tried_at_once(self) -> None:
        """Back-off applies to connects only; no time passes."""
        driver = Driver()
        async with running(driver, 5, 5, check=check_alive) as core:
            good, *bad = [await take(core) for _ in range(5)]
            for conn in (good, *bad):
                core.release(conn)
            go_bad(bad)
            began = now()
            assert await core.acquire(None) is good
            assert now() == began
            assert snapshot(core).lost == 4
            await settle()
            assert core.ledger.size == 5

    @virtual_time
    async def test_when_all_idle_ones_fail_their_check_a_new_one_is_opened_at_once(self) -> None:
        """There is no back-off, because no connect has failed."""
        driver = Driver()
        async with running(driver, 3, 3, check=check_alive) as core:
            conns = await take_all(core)
            for conn in conns:
                core.release(conn)
            go_bad(conns)
            began = now()
            assert await core.acquire(None) not in conns
            assert now() == began

    @virtual_time
    async def test_new_connections_that_fail_their_check_cause_a_back_off(self) -> None:
        """A failed check of a new connection counts as a failed connect."""

        async def check(conn: FakeConn) -> None:
            raise Broken

        driver = Driver()
        async with running(driver, 0, 4, check=check) as core:
            with pytest.raises(PoolTimeout) as late:
                await core.acquire(5.0)
            assert len(driver.conns) < 20
            assert isinstance(late.value.__cause__, Broken)

    @virtual_time
    async def test_a_check_that_hangs_does_not_outlast_the_deadline(self) -> None:
        """The caller gets its error in time, and the connection is not lost."""
        driver, end = Driver(), asyncio.Event()

        async def check(conn: FakeConn) -> None:
            await end.wait()

        async with running(driver, 1, 1, check=check) as core:
            began = now()
            with pytest.raises(PoolTimeout):
                await core.acquire(2.0)
            assert now() - began == pytest.approx(2.0)
            assert not core.ledger.leased
            end.set()
            await settle()
            assert len(core.ledger.idle) == 1
            assert len(driver.conns) == 1

    @virtual_time
    async def test_a_check_that_goes_on_hanging_costs_the_connection(self) -> None:
        """The connection is replaced after `clean_timeout`."""
        driver = Driver()
        hang = True

        async def check(conn: FakeConn) -> None:
            if hang:
                await never()

        async with running(driver, 1, 1, check=check) as core:
            with pytest.raises(PoolTimeout):
                await core.acquire(2.0)
            hang = False
            await asyncio.sleep(core.settings.clean_timeout + 0.1)
            assert driver.conns[0].closed
            assert await core.acquire(1.0) is driver.conns[1]

    @virtual_time
    async def test_a_caller_cancelled_during_its_check_leaks_nothing(self) -> None:
        """The check runs to its end, and the connection becomes idle again."""
        driver = Driver()

        async def check(conn: FakeConn) -> None:
            await asyncio.sleep(1.0)

        async with running(driver, 1, 1, check=check) as core:
            task = start(core)
            await asyncio.sleep(0.5)
            task.cancel()
            await settle()
            assert task.cancelled()
            await asyncio.sleep(1.0)
            assert len(core.ledger.idle) == 1
            assert snapshot(core).requests_cancelled == 1

    @virtual_time
    async def test_with_timeout_zero_a_check_may_take_ping_timeout(self) -> None:
        """`timeout=0` does not wait for a connection, but has to wait for its check."""

        async def check(conn: FakeConn) -> None:
            await asyncio.sleep(1.0)

        async with running(Driver(), 1, 1, check=check, ping_timeout=3.0) as core:
            core.release(await core.acquire(0))
        async with running(Driver(), 1, 1, check=check, ping_timeout=0.5) as core:
            began = now()
            with pytest.raises(PoolTimeout):
                await core.acquire(0)
            assert now() - began == pytest.approx(0.5)


class TestReturns:
    @virtual_time
    async def test_an_unclean_connection_is_reset_before_its_next_lease(self) -> None:
        """This holds also if a request waits for it."""
        driver = Driver(reset=slow(0.5))
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            waiting = start(core)
            await settle()
            conn.clean = False
            core.release(conn)
            assert (await waiting).clean
            assert now() == pytest.approx(0.5, abs=0.01)
            core.release(conn)

    @virtual_time
    async def test_cancelling_the_caller_does_not_stop_the_reset(self) -> None:
        """The reset runs in a background task."""
        driver = Driver(reset=slow(0.5))
        async with running(driver, 1, 1) as core:

            async def borrow() -> None:
                conn = await take(core)
                try:
                    await never()
                finally:
                    conn.clean = False
                    core.release(conn)

            with anyio.move_on_after(1.0):
                await borrow()
            await asyncio.sleep(1.0)
            assert driver.calls[-1][0] == "reset"
            assert [entry.conn for entry in core.ledger.idle] == driver.conns

    @pytest.mark.parametrize("trouble", [fails, never])
    @virtual_time
    async def test_a_connection_that_cannot_be_reset_is_replaced(self, trouble: Any) -> None:
        """The reset fails, or hangs longer than `clean_timeout`."""
        driver = Driver(reset=trouble)
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            conn.clean = False
            core.release(conn)
            assert await core.acquire(11.0) is driver.conns[1]
            assert conn.closed

    @virtual_time
    async def test_a_connection_that_broke_in_use_is_replaced(self) -> None:
        """The next request does not get it."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            conn.alive = False
            core.release(conn)
            assert await core.acquire(1.0) is driver.conns[1]
            assert snapshot(core).returns_bad == 1

    @virtual_time
    async def test_a_watched_connection_is_not_tested_again_at_once(self) -> None:
        """Its loss is reported when the loop runs; an unwatched one is tested each time."""
        for watches, pause in ((True, 0.0), (True, 1.0), (False, 0.0)):
            driver = Driver()
            driver.watches = watches
            async with running(driver, 1, 1) as core:
                await asyncio.sleep(10.0)
                await use(core)
                driver.conns[0].alive = False
                await asyncio.sleep(pause)
                trusted = watches and not pause
                assert (core.acquire_now() is driver.conns[0]) == trusted

    @virtual_time
    async def test_a_connection_lost_while_leased_is_not_leased_again(self) -> None:
        """This holds even if the driver calls it alive at its release."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            conn.lose()
            core.release(conn)
            assert await core.acquire(1.0) is driver.conns[1]

    @virtual_time
    async def test_a_connection_that_expires_at_its_release_is_closed(self) -> None:
        """The connection expires at that instant, not after it."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            core.ledger.leased[conn].expires_at = now()
            core.release(conn)
            await settle()
            assert conn.closed
            assert len(core.ledger.idle) == 1

    @virtual_time
    async def test_a_released_connection_has_no_holder(self) -> None:
        """Otherwise the pool would keep a task that has ended."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            entry = core.ledger.leased[conn]
            assert entry.holder is asyncio.current_task()
            core.release(conn)
            assert entry.holder is None

    @virtual_time
    async def test_a_dismissed_connection_is_closed_and_replaced(self) -> None:
        """Even a clean one is closed; a waiter gets a new one, and a second call is an error."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            waiting = start(core)
            await settle()
            core.discard(conn)
            with pytest.raises(ReleaseError):
                core.discard(conn)
            fresh = await waiting
            assert fresh is not conn
            core.release(fresh)
            assert snapshot(core).returns_bad == 0

    @virtual_time
    async def test_a_second_release_is_an_error(self) -> None:
        """The second release changes nothing."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            core.release(conn)
            with pytest.raises(ReleaseError, match=r"'test' has not leased .*released already"):
                core.release(conn)
            assert len(core.ledger.idle) == 1

    @virtual_time
    async def test_a_foreign_connection_is_an_error(self) -> None:
        """Connections of another pool and of none are refused, clean or not."""
        async with running(Driver(), 1, 1) as core, running(Driver(), 1, 1) as other:
            foreign = await take(other)
            for conn in (foreign, FakeConn(99)):
                for conn.clean in (True, False):
                    with pytest.raises(ReleaseError):
                        core.release(conn)
            foreign.clean = True
            other.release(foreign)

    @virtual_time
    async def test_the_rest_of_the_callers_work_can_be_left_to_the_pool(self) -> None:
        """`first` runs before the reset, in a background task; if it fails, the reset runs too."""
        driver, done = Driver(), []

        async def first() -> None:
            done.append(driver.times("reset"))
            raise Broken

        async with running(driver, 1, 1) as core:
            conn = await take(core)
            core.release(conn, first)
            await settle()
            assert done == [[]]
            assert len(driver.times("reset")) == 1
            assert core.acquire_now() is conn

    @virtual_time
    async def test_each_lease_has_its_own_number(self) -> None:
        """So a context manager can tell whether the connection is still leased to it."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            number = core.lease_number(conn)
            core.release(conn)
            assert core.lease_number(conn) == 0
            await take(core)
            assert core.lease_number(conn) == number + 1


class TestLost:
    @virtual_time
    async def test_a_connection_lost_while_idle_is_replaced_at_once(self) -> None:
        """The watch reports the loss without a round trip."""
        driver = Driver()
        async with running(driver, 2, 2) as core:
            lose(driver.conns[0])
            await settle()
            assert [entry.conn for entry in core.ledger.idle] == driver.conns[1:]
            assert len(driver.conns) == 3
            assert snapshot(core).lost == 1

    @virtual_time
    async def test_an_idle_connection_known_to_be_broken_is_not_leased(self) -> None:
        """The next one is leased in the same call."""
        driver = Driver()
        async with running(driver, 2, 2) as core:
            driver.conns[1].alive = False
            assert core.acquire_now() is driver.conns[0]

    @virtual_time
    async def test_a_thousand_broken_idle_connections_are_skipped(self) -> None:
        """A failover can break every connection of a pool of any size."""
        driver = Driver()
        async with running(driver, 2000, 2000) as core:
            while core.ledger.opening:
                await settle()
            go_bad(driver.conns)
            assert core.acquire_now() is None
            assert await core.acquire(1.0)

    @virtual_time
    async def test_a_connection_lost_during_its_reset_is_not_leased_again(self) -> None:
        """The result of the reset does not matter."""
        driver = Driver(reset=slow(1.0))
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            conn.clean = False
            core.release(conn)
            await settle()
            conn.lose()
            assert await core.acquire(5.0) is driver.conns[1]


class TestClose:
    @virtual_time
    async def test_an_idle_pool_closes_at_once(self) -> None:
        """There is nothing to wait for."""
        driver = Driver()
        core = make_core(driver, 3)
        core.open()
        await settle()
        began = now()
        await core.close(5.0)
        assert now() == began
        assert all(conn.closed for conn in driver.conns)
        assert len(driver.conns) == 3

    @virtual_time
    async def test_close_waits_for_leased_connections(self) -> None:
        """The wait lasts up to the time limit, and no longer than necessary."""
        async with running(Driver(), 1, 1) as core:
            user = asyncio.create_task(use(core, 2.0))
            await settle()
            began = now()
            await core.close(5.0)
            assert now() - began == pytest.approx(2.0, abs=0.01)
            await user

    @virtual_time
    async def test_close_waits_for_leased_connections_although_the_pool_was_empty_before(
        self,
    ) -> None:
        """An earlier failed connect or loss of all connections does not matter."""
        driver = Driver()
        driver.script["open"].append(fails)
        async with running(driver, 0, 1) as core:
            user = asyncio.create_task(use(core, 2.0))
            await asyncio.sleep(1.0)
            assert core.ledger.leased
            await core.close(5.0)
            await user

    @virtual_time
    async def test_close_ends_at_its_limit_although_a_connection_is_leased(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Closing that connection logs a warning."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            await take(core)
            began = now()
            await core.close(3.0)
            assert now() - began == pytest.approx(3.0, abs=0.01)
            assert driver.conns[0].closed
            assert "closed while in use: <conn 1>" in caplog.text

    @virtual_time
    async def test_close_ends_the_wait_for_min_size(self) -> None:
        """A closed pool opens no connections."""
        async with running(Driver(open=never), 1, 1) as core:
            waiting = asyncio.create_task(core.readiness.full.wait())
            await core.close(0)
            await settle()
            assert waiting.done()

    @virtual_time
    async def test_a_callback_of_the_user_may_close_the_pool(self) -> None:
        """Its task is not cancelled with the other background tasks."""
        ended: list[float] = []

        async def tell() -> None:
            await core.close(0)
            ended.append(now())

        core = make_core(Driver(open=fails), 1, 1, on_outage=tell, reconnect_timeout=1.0)
        core.open()
        await asyncio.sleep(5.0)
        assert len(ended) == 1
        assert len(core.runtime.tasks) == 0

    @virtual_time
    async def test_a_request_that_would_wait_again_gets_pool_closed(self) -> None:
        """The check of its connection failed after the pool was closed."""

        async def check(_: FakeConn) -> None:
            await asyncio.sleep(1.0)
            raise Broken

        async with running(Driver(), 1, 1, check=check) as core:
            waiting = start(core)
            await settle()
            closing = asyncio.create_task(core.close(5.0))
            with pytest.raises(PoolClosed):
                await waiting
            assert now() == pytest.approx(1.0)
            await closing

    @virtual_time
    async def test_a_connection_leased_beyond_the_limit_is_still_closed_properly(self) -> None:
        """Closing it may take a quarter of a second before it is abandoned."""
        said: list[float] = []

        async def farewell() -> None:
            await asyncio.sleep(0.2)
            said.append(now())

        async with running(Driver(close=farewell), 1, 1) as core:
            await take(core)
            await core.close(1.0)
            assert said == [pytest.approx(1.2, abs=0.001)]

    @virtual_time
    async def test_a_connection_released_while_closing_is_not_reset(self) -> None:
        """No request could use it; work passed as `first` is done."""
        driver, done = Driver(), []

        async def first() -> None:
            done.append(now())

        async with running(driver, 2, 2) as core:
            conns = await take_all(core)
            closing = asyncio.create_task(core.close(5.0))
            await settle()
            conns[0].clean = conns[1].clean = False
            core.release(conns[0])
            await settle()
            assert conns[0].closed
            assert driver.times("reset") == []
            core.release(conns[1], first)
            await closing
            assert len(done) == 1

    @virtual_time
    async def test_a_release_after_the_close_raises_pool_closed(self) -> None:
        """The error says that the work is lost; the caller has made no mistake."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            await core.close(0)
            with pytest.raises(PoolClosed, match="closed while this was in use: its work is lost"):
                core.release(conn)

    @virtual_time
    async def test_close_wakes_every_waiter(self) -> None:
        """Each gets PoolClosed at once."""
        async with running(Driver(), 1, 1) as core:
            await take(core)
            tasks = [start(core) for _ in range(5)]
            await settle()
            began = now()
            closing = asyncio.create_task(core.close(5.0))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert now() == began
            assert all(isinstance(each, PoolClosed) for each in results)
            await closing

    @virtual_time
    async def test_nothing_is_leased_after_the_call_of_close(self) -> None:
        """This holds from the call on, not from its end."""
        driver = Driver()
        async with running(driver, 2, 2) as core:
            conn = await take(core)
            closing = asyncio.create_task(core.close(5.0))
            await settle()
            assert core.acquire_now() is None
            with pytest.raises(PoolClosed, match="pool 'test' is closed"):
                await core.acquire(None)
            core.release(conn)
            await closing
            assert conn.closed
            assert len(driver.conns) == 2

    @virtual_time
    async def test_close_cancels_a_connect_that_hangs(self) -> None:
        """Closing takes no time."""
        driver = Driver(open=never)
        async with running(driver, 2, 2) as core:
            began = now()
            await core.close(5.0)
            assert now() == began
            assert driver.sockets == 0

    @virtual_time
    async def test_a_connect_that_ignores_cancellation_is_waited_for_up_to_the_limit(self) -> None:
        """Then it is abandoned; a connection that it still opens is closed."""
        driver = Driver(open=stubborn(30.0))
        core = make_core(driver, 1)
        core.open()
        await settle()
        began = now()
        await core.close(1.0)
        assert 1.0 < now() - began < 2.5
        assert not core.ledger.entries
        await asyncio.sleep(40.0)
        assert driver.sockets == 0

    @virtual_time
    async def test_a_reset_that_ignores_cancellation_is_abandoned(self) -> None:
        """The pool closes the connection without waiting for it."""
        driver = Driver(reset=stubborn(9.0), close=slow(5.0))
        core = make_core(driver, 1)
        core.open()
        await settle()
        conn = await take(core)
        conn.clean = False
        core.release(conn)
        await settle()
        began = now()
        await core.close(1.0)
        assert now() - began < 2.5
        assert conn.closed
        assert driver.sockets == 0
        await asyncio.sleep(60.0)
        assert driver.times("close") == [pytest.approx(began + 2.0, abs=1.0)]

    @virtual_time
    async def test_closing_a_connection_has_a_time_limit(self) -> None:
        """If it hangs, the socket is closed without it."""
        driver = Driver(close=never)
        core = make_core(driver, 3)
        core.open()
        await settle()
        began = now()
        await core.close(5.0)
        assert now() - began <= core.settings.close_timeout + 0.01
        assert driver.sockets == 0

    @virtual_time
    async def test_a_second_close_does_nothing(self) -> None:
        """The pool is closed already."""
        async with running(Driver(), 1) as core:
            await core.close(1.0)
            began = now()
            await core.close(1.0)
            assert now() == began

    @virtual_time
    async def test_concurrent_calls_of_close_wait_for_the_same_end(self) -> None:
        """The time limit of the first call applies."""
        async with running(Driver(), 1, 1) as core:
            await take(core)
            began = now()
            ends: list[float] = []

            async def close(timeout: float) -> None:
                await core.close(timeout)
                ends.append(now() - began)

            await asyncio.gather(close(2.0), close(50.0))
            assert ends == [pytest.approx(2.0, abs=0.01)] * 2

    @virtual_time
    async def test_a_cancelled_close_continues_in_the_background(self) -> None:
        """The task gets its CancelledError at once."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            await take(core)
            task = asyncio.create_task(core.close(2.0))
            await settle()
            task.cancel()
            await settle()
            assert task.cancelled()
            await asyncio.sleep(2.5)
            assert driver.sockets == 0
            assert len(core.runtime.tasks) == 0

    @virtual_time
    async def test_a_cancelled_scope_does_not_interrupt_close(self) -> None:
        """Frameworks cancel a scope when an application shuts down."""
        driver = Driver(close=slow(0.5))
        async with running(driver, 2) as core:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await core.close(1.0)
            assert driver.sockets == 0

    @virtual_time
    async def test_a_caller_in_its_check_gets_no_connection_of_a_closed_pool(self) -> None:
        """Otherwise it would hold a connection that nothing closes."""
        driver = Driver()

        async def check(conn: FakeConn) -> None:
            await asyncio.sleep(1.0)

        async with running(driver, 1, 1, check=check) as core:
            task = start(core)
            await settle()
            await core.close(0.1)
            (result,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(result, PoolClosed | asyncio.CancelledError) or result.closed  # type: ignore[union-attr]
            assert driver.sockets == 0

    @virtual_time
    async def test_a_request_served_before_the_close_that_runs_after_it_is_counted_once(
        self,
    ) -> None:
        """The request counts as failed: its connection was closed before its task ran."""
        core = make_core(Driver(), 1, 1)
        core.open()
        await settle()
        conn = await take(core)
        late = core.acquire(None)
        late.send(None)  # it waits, and its task has not run yet
        core.release(conn)
        await core.close(0)
        with pytest.raises(PoolClosed):
            late.send(None)
        stats = snapshot(core)
        assert (stats.requests, stats.requests_failed) == (2, 1)
        assert core.ledger.leases == 1


class TestLoops:
    @virtual_time
    async def test_a_pool_that_is_not_open_raises_wrong_loop(self) -> None:
        """The pool is attached to no event loop yet."""
        core = make_core(Driver())
        assert core.acquire_now() is None
        with pytest.raises(PoolWrongLoop, match="'test' is not open"):
            await core.acquire(None)

    @virtual_time
    async def test_a_pool_is_usable_from_open_to_close(self) -> None:
        """This holds on its own event loop only."""
        core = make_core(Driver())
        found = [(core.home is not None, core.usable, core.closed)]
        core.open()
        found.append((core.home is not None, core.usable, core.closed))
        await core.close(0)
        found.append((core.home is not None, core.usable, core.closed))
        for use_it in (core.admit, lambda: core.resize(1, 1)):
            with pytest.raises(PoolClosed):
                use_it()
        assert found == [(False, False, False), (True, True, False), (True, False, True)]

    @virtual_time
    async def test_a_pool_can_be_resized_before_it_is_opened(self) -> None:
        """The connections are opened later."""
        driver = Driver()
        core = make_core(driver, 1, 1)
        core.resize(2, 3)
        assert not driver.times("open")
        core.open()
        await settle()
        assert len(core.ledger.idle) == 2
        await core.close(0)

    @virtual_time
    async def test_a_connection_leased_on_a_loop_that_has_ended_has_its_own_error(self) -> None:
        """The error says that the work is lost, not that the connection is foreign."""
        async with running(Driver()) as core:
            conn = FakeConn(7)
            core.orphaned.add(conn)
            with pytest.raises(
                PoolWrongLoop, match="<conn 7> was leased on an event loop that has"
            ):
                core.release(conn)

    def test_on_another_loop_every_use_is_an_error(self) -> None:
        """No call hangs, and no connection is lost."""
        core = make_core(Driver(), 1)

        async def begin() -> FakeConn:
            core.open()
            await settle()
            return await take(core)

        async def elsewhere() -> None:
            with pytest.raises(PoolWrongLoop, match="open on another event loop"):
                await core.acquire(None)
            with pytest.raises(PoolWrongLoop, match=r"open on another .* one pool per event loop"):
                core.release(conn)
            with pytest.raises(PoolWrongLoop, match="open on another event loop"):
                await core.close(0)
            assert not core.usable

        async def end() -> None:
            core.release(conn)
            await core.close(0)

        with asyncio.Runner(loop_factory=VirtualLoop) as home:
            conn = home.run(begin())
            assert not core.release_now(conn)
            with asyncio.Runner(loop_factory=VirtualLoop) as other:
                other.run(elsewhere())
            home.run(end())

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    @pytest.mark.parametrize("usual", [ok, slow(0.1)])
    @virtual_time
    async def test_a_core_works_with_eager_tasks(self, usual: Any) -> None:
        """An eager task may end before `create_task` returns."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        driver = Driver(open=usual, close=usual, reset=usual)
        async with running(driver, 2, 5) as core:
            had_at = await asyncio.gather(*(use(core, 0.1) for _ in range(20)))
            assert max(had_at) < 1.0
            for conn in list(driver.conns):
                lose(conn)
            conn = await take(core)
            conn.clean = False
            core.release(conn)
            await asyncio.sleep(1.0)
            assert core.ledger.size == len(core.ledger.idle) >= 2
        assert driver.most_sockets <= 5


class TestEagerTasks:
    """An eager task may end or fail before `create_task` returns."""

    pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="came with Python 3.12")

    @virtual_time
    async def test_a_connect_that_fails_at_once_is_not_retried_without_pause(self) -> None:
        """For example, if a socket's file is missing: the event loop would be blocked for ever."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        driver = Driver(open=fails)
        async with running(driver, 2, 5) as core:
            waiting = start(core)
            await asyncio.sleep(1.0)
            assert 3 <= len(driver.times("open")) <= 20
            driver.usual["open"] = ok
            core.release(await waiting)

    @virtual_time
    async def test_a_ping_that_fails_at_once_discards_each_connection_once(self) -> None:
        """The first failure retires the others before they are pinged."""
        loop, told = asyncio.get_running_loop(), []
        loop.set_task_factory(asyncio.eager_task_factory)
        loop.set_exception_handler(lambda _, context: told.append(context))
        driver = Driver(ping=fails)
        async with running(driver, 4, 5) as core:
            conn = await take(core)
            loop.call_soon(lose, conn)
            await asyncio.sleep(0.1)
            core.release(conn)
            await asyncio.sleep(1.0)
            assert len(core.ledger.idle) == 4
            assert core.runtime.counters.lost == 3
        assert told == []

    @virtual_time
    async def test_a_callback_may_close_the_pool_at_once(self) -> None:
        """Closing does not cancel the callback that called it."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        ended: list[bool] = []

        async def give_up() -> None:
            await asyncio.sleep(0.01)
            await core.close(1.0)
            ended.append(True)

        driver = Driver(open=fails)
        async with running(driver, 1, 1, on_outage=give_up, reconnect_timeout=0.0) as core:
            await asyncio.sleep(5.0)
            assert ended == [True]


class TestForeignLoops:
    @virtual_time
    async def test_a_failing_task_factory_does_not_lose_an_entry(self) -> None:
        """No coroutine is left that was never awaited."""

        def refuse(*_: Any, **__: Any) -> Any:
            raise TypeError

        loop = asyncio.get_running_loop()
        async with running(Driver(), 0, 1) as core:
            for _ in range(3):
                loop.set_task_factory(refuse)
                try:
                    with pytest.raises(TypeError):
                        await core.acquire(1.0)
                finally:
                    loop.set_task_factory(None)
            assert core.ledger.size == 0
            core.release(await core.acquire(1.0))

    def test_a_failure_reported_on_another_loop_is_ignored(self) -> None:
        """A connection that outlived `asyncio.run()` must not wake the pool of that loop."""

        async def begin() -> tuple[Core[FakeConn], FakeConn]:
            core = make_core(driver, 3, 3)
            core.open()
            await settle()
            return core, await take(core)

        async def lose_it(core: Core[FakeConn], conn: FakeConn) -> None:
            lose(conn)
            await settle()
            assert len(core.runtime.tasks) == 0

        driver = Driver()
        with asyncio.Runner(loop_factory=VirtualLoop) as home:
            core, conn = home.run(begin())
        with asyncio.Runner(loop_factory=VirtualLoop) as other:
            other.run(lose_it(core, conn))
        assert driver.times("ping") == []
        core.abandon_all()

    def test_durations_on_uvloop_are_not_whole_milliseconds(self) -> None:
        """uvloop's own clock has whole milliseconds, and most leases are shorter."""
        uvloop = pytest.importorskip("uvloop")

        async def live() -> list[float]:
            core = make_core(Driver(), 1, 1)
            core.open()
            for _ in range(100):
                await use(core)
            core.flush_times()
            await core.close(0)
            return core.runtime.counters.use.recent()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            times = runner.run(live())
        assert sum(each * 1000 % 1 > 0 for each in times) > 50


class TestInsight:
    @virtual_time
    async def test_the_states_add_up_to_the_size(self) -> None:
        """This holds at every moment."""
        driver = Driver(reset=slow(1.0), close=slow(1.0))
        async with running(driver, 4, 5) as core:
            conns = [await take(core) for _ in range(3)]
            conns[0].clean = False
            core.release(conns[0])
            lose(conns[1])
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
    async def test_durations_of_waits_and_leases_are_summed_exactly(self) -> None:
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
    async def test_a_request_counts_once_however_many_connections_it_takes(
        self, check: Any
    ) -> None:
        """An unusable connection has served no request."""
        driver = Driver()
        async with running(driver, 4, 4, check=check) as core:
            go_bad(driver.conns[1:])
            core.release(await take(core))
            stats = snapshot(core)
            assert (stats.requests, stats.requests_failed, stats.lost) == (1, 0, 3)

    @virtual_time
    async def test_leases_of_unclean_or_broken_connections_count_too(self) -> None:
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

    @virtual_time
    async def test_leases_name_their_holders_with_the_longest_first(self) -> None:
        """Each lease has its task and its age."""
        async with running(Driver(), 2, 2) as core:
            for name in ("first", "second"):
                asyncio.create_task(use(core, 5.0), name=name)  # noqa: RUF006
                await asyncio.sleep(1.0)
            found = leases(core)
            assert [lease.holder for lease in found] == ["first", "second"]
            assert found[0].age == pytest.approx(2.0, abs=0.001)
            await asyncio.sleep(5.0)
            assert leases(core) == []

    @virtual_time
    async def test_the_explanation_has_numbers_holders_and_advice(self) -> None:
        """The text is for a person to read."""
        async with running(Driver(), 1, 1) as core:
            asyncio.create_task(use(core, 40.0), name="hoarder")  # noqa: RUF006
            await settle()
            waiting = start(core, 60.0)
            await asyncio.sleep(35.0)
            text = str(explain(core))
            assert "size 1 of 1 to 1: 0 idle, 1 leased" in text
            assert "leased for 35.000 s by hoarder: <conn 1>" in text
            assert "1 waiting\n  the first for 35.000 s" in text
            assert "raise max_size" in text
            assert "is it ever returned?" in text
            core.release(await waiting)


@virtual_time
async def test_a_pool_that_is_garbage_leaves_no_timer(caplog: pytest.LogCaptureFixture) -> None:
    """The pool is abandoned without I/O; its connections are returned, to be closed."""
    caplog.set_level(logging.INFO)
    driver = Driver()
    core = make_core(driver, 2, 2)
    core.open()
    await settle()
    conn = await take(core)
    await take(core)
    waiting = start(core, 5.0)
    await settle()
    assert set(core.abandon_all()) == set(driver.conns)
    waiting.cancel()
    await settle()
    assert timers() == []
    assert core.acquire_now() is None
    with pytest.raises(PoolWrongLoop):
        core.release(conn)


@virtual_time
async def test_a_pool_abandoned_in_an_outage_leaves_no_task_and_no_timer() -> None:
    """A connect under way is cancelled, and no further one is planned."""
    driver = Driver(open=fails)
    driver.script["open"].append(never)
    core = make_core(driver, 2, 2)
    core.open()
    await settle()
    assert core.outages.outage
    assert core.abandon_all() == []
    assert core.closed
    assert core.home is None
    await settle()
    assert len(core.runtime.tasks) == 0
    assert timers() == []


@pytest.mark.parametrize("closing", [False, True])
def test_a_pool_whose_loop_has_ended_abandons_everything(
    closing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The ledger is empty, the tasks are ended, and asyncio logs nothing."""
    driver = Driver()
    core = make_core(driver, 2, 4)
    mine: list[asyncio.Task[Any]] = []

    async def begin() -> None:
        core.open()
        await settle()
        driver.usual["open"] = never
        await core.acquire(None)
        await core.acquire(None)
        mine.append(asyncio.create_task(core.close(60.0)) if closing else start(core))
        await settle()

    loop = VirtualLoop()
    loop.run_until_complete(begin())
    if not closing:
        core.ledger.queue.serve(core.ledger.leased[driver.conns[0]])
    loop.close()
    for task in mine:
        force_close(task)
    assert core.ledger.idle == []
    assert set(core.abandon_all()) == set(driver.conns)
    assert (core.ledger.size, len(core.runtime.tasks), core.closed) == (0, 0, True)
    for each in [core._closing] if core._closing else []:
        work: Any = each.get_coro()
        assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
    del mine[:], task
    gc.collect()
    assert not caplog.records


def test_a_fork_leaves_the_ledger_unchanged() -> None:
    """The connections belong to the parent, whose event loop still runs."""
    driver = Driver()
    core = make_core(driver, 2, 2)

    async def begin() -> None:
        core.open()
        await settle()

    loop = VirtualLoop()
    loop.run_until_complete(begin())
    loop.close()
    assert set(core.abandon_all(forked=True)) == set(driver.conns)
    assert core.ledger.size == 2


@virtual_time
async def test_nothing_keeps_a_request_that_has_ended() -> None:
    """Its waiter may stay in the queue for a while, with others behind it."""
    places = []

    async def request(core: Core[FakeConn], timeout: float) -> None:
        place = set[int]()
        places.append(weakref.ref(place))
        core.release(await core.acquire(timeout))

    gc.disable()
    try:
        async with running(Driver(), 1, 1) as core:
            conn = await core.acquire(None)
            late = start(core, 50.0)
            await settle()
            tasks = [asyncio.create_task(request(core, limit)) for limit in (60.0, 1.0, 2.0, 70.0)]
            await asyncio.sleep(1.5)
            tasks[2].cancel()
            await asyncio.wait({tasks[2]})
            core.release(conn)
            await asyncio.gather(*tasks, return_exceptions=True)
            tasks.clear()
            await settle()
            assert [place() for place in places] == [None] * 4
            core.release(late.result())
    finally:
        gc.enable()
