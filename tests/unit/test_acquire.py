"""Acquire an idle connection, wait for one, and end the wait at its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import sys
import weakref

import anyio
import pytest

from asyncpool._core.pool import Core
from asyncpool._core.stacks import capture_three
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import (
    PoolTimeout,
    TooManyRequests,
)
from tests._tools import acquire_now, at_once
from tests.fake import Broken, FakeConn
from tests.unit._tools import (
    Driver,
    fails,
    now,
    running,
    settle,
    slow,
    start,
    take,
    take_all,
    timers,
    use,
    virtual_time,
)


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
            conn = acquire_now(core)
            assert conn is not None
            core.release(conn)
            assert (len(asyncio.all_tasks()), timers()) == (tasks, before)
            assert acquire_now(core) is conn

    @virtual_time
    async def test_releasing_an_unclean_connection_does_not_suspend_either(self) -> None:
        """A background task cleans the connection."""
        driver = Driver(reset=slow(1.0))
        async with running(driver, 1) as core:
            conn = await take(core)
            conn.clean = False
            core.release(conn)
            assert now() < 0.01
            assert acquire_now(core) is None
            await asyncio.sleep(1.5)
            assert acquire_now(core) is conn

    @virtual_time
    async def test_the_most_recently_used_connection_is_leased_first(self) -> None:
        """Surplus connections stay unused and can be closed."""
        async with running(Driver(), 3) as core:
            first, second, third = await take(core), await take(core), await take(core)
            for conn in (third, first, second):
                core.release(conn)
            assert [acquire_now(core) for _ in range(3)] == [second, first, third]


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
            assert acquire_now(core) is None
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
            conn.die()
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
            with pytest.raises(TooManyRequests, match=r"'test': 2 .*max_waiting=2") as refused:
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
    async def test_requests_that_are_refused_in_one_turn_are_counted_meanwhile(self) -> None:
        """Each gets its error in the next turn; the sum of all requests is right in both."""
        async with running(Driver(), 1, 1, max_waiting=1) as core:
            conn = await take(core)
            waiting = start(core)
            await settle()
            refused = [start(core) for _ in range(3)]
            await asyncio.sleep(0)
            stats = snapshot(core)
            assert (stats.requests, stats.refused_full) == (5, 0)
            await asyncio.wait(refused)
            stats = snapshot(core)
            assert (stats.requests, stats.refused_full) == (5, 3)
            assert {type(task.exception()) for task in refused} == {TooManyRequests}
            core.release(conn)
            core.release(await waiting)

    @virtual_time
    async def test_a_refusal_is_freed_without_the_garbage_collector(self) -> None:
        """In an overload there are many of them, each with a traceback."""
        async with running(Driver(), 1, 1, max_waiting=1) as core:
            conn = await take(core)
            waiting = start(core)
            await settle()
            gc.disable()
            try:
                with contextlib.suppress(TooManyRequests):
                    try:
                        await core.acquire(None)
                    except TooManyRequests as error:
                        refusal = weakref.ref(error)
                        raise
                assert refusal() is None
            finally:
                gc.enable()
            core.release(conn)
            core.release(await waiting)

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
            conn.die()
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
    async def test_the_error_has_the_last_statement_of_the_longest_lease(self) -> None:
        """It has the statement and the call site where the pool records call sites."""
        async with running(Driver(), 1, 1, last_statement=lambda conn: f"of {conn}") as core:
            lease = core.lease_of(await take(core))
            assert lease is not None
            lease.trace = capture_three(sys._getframe())
            where = r"last statement 'of <conn 1>', borrowed at .*test_acquire.py"
            with pytest.raises(PoolTimeout, match=where):
                await core.acquire(1.0)

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
            assert core.ledger.queue._deadlines.timer.at == math.inf
            core.release(conn)
            await waiting

    @pytest.mark.parametrize("timeout", [-1, math.nan])
    @virtual_time
    async def test_an_invalid_timeout_is_refused(self, timeout: float) -> None:
        """The call raises the error, and no connection is lost."""
        async with running(Driver(), 1, 1) as core:
            with pytest.raises(ValueError, match=r"^timeout must be zero or more"):
                await core.acquire(timeout)
            assert acquire_now(core) is not None

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


@virtual_time
async def test_nothing_keeps_a_request_that_has_ended() -> None:
    """The waiter may stay in the queue for a while, with others behind it."""
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


@virtual_time
async def test_a_long_wait_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """From its threshold on, served or not; a callback that fails is logged."""
    reported: list[float] = []
    async with running(Driver(), 1, 1) as core:
        core.slow_wait, core.on_slow_wait = 2.0, reported.append
        conn = await core.acquire(None)
        with pytest.raises(PoolTimeout):
            await core.acquire(1.0)
        with pytest.raises(PoolTimeout):
            await core.acquire(2.5)
        waiting = start(core)
        await asyncio.sleep(3.0)
        core.release(conn)
        core.release(await waiting)
        assert reported == pytest.approx([2.5, 3.0], abs=0.001)

        def fail(_: float) -> None:
            raise ZeroDivisionError

        core.on_slow_wait = fail
        conn = await core.acquire(None)
        with pytest.raises(PoolTimeout):
            await core.acquire(2.5)
        core.release(conn)
    assert "the on_slow_wait callback failed" in caplog.text
