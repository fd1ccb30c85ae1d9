"""The line: order, departures, hand-overs that cross with cancellations and deadlines."""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from asyncpool._core.wait_queue import Waiter, WaitQueue
from tests.unit._tools import join, now, settle, timers, virtual_time


class Late(Exception):
    """What the lines of these tests raise at a deadline."""


def make_line() -> WaitQueue[str]:
    return WaitQueue(lambda waiter: Late(waiter.deadline))


async def wait(waiter: Waiter[str]) -> str:
    """Wait as the core does."""
    while waiter.waiting:
        await waiter.wait()
    if waiter.error is not None:
        raise waiter.error
    assert waiter.served is not None
    return waiter.served


async def stand(
    line: WaitQueue[str], deadline: float = math.inf, *, ticket: int | None = None
) -> str:
    """Stand in line as the core does: what was handed over to one who leaves is passed on."""
    waiter = join(line, now(), deadline, ticket)
    try:
        return await wait(waiter)
    except BaseException:
        if (served := line.leave(waiter)) is not None:
            line.serve(served)
        raise


async def queue(line: WaitQueue[str], count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(stand(line)) for _ in range(count)]
    await settle()
    return tasks


class Untouchable(deque[Any]):
    """A queue that may be added to and taken from at its ends, and not searched."""

    def __iter__(self) -> Any:
        raise AssertionError("the line was searched")

    remove = index = __contains__ = __delitem__ = __getitem__ = __iter__  # type: ignore[assignment]


def steps(work: Callable[[], object]) -> int:
    """How many lines of Python run, in all functions, while it works."""
    counted = 0

    def trace(_frame: object, event: str, _arg: object) -> Any:
        nonlocal counted
        counted += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return counted


class TestOrder:
    @virtual_time
    async def test_waiters_are_served_in_the_order_of_their_coming(self) -> None:
        """Strict FIFO."""
        line = make_line()
        tasks = await queue(line, 3)
        for item in ("a", "b", "c"):
            assert line.serve(item)
        assert await asyncio.gather(*tasks) == ["a", "b", "c"]

    @virtual_time
    async def test_one_who_was_served_something_unfit_takes_the_first_place(self) -> None:
        """Its ticket is older than those of all who wait."""
        line = make_line()
        tasks = await queue(line, 2)
        again = asyncio.create_task(stand(line, ticket=0))
        await settle()
        line.serve("a")
        line.serve("b")
        await settle()
        assert await again == "a"
        assert [task.done() for task in tasks] == [True, False]
        line.serve("c")
        assert await tasks[1] == "c"

    @virtual_time
    async def test_nobody_in_line_means_that_the_item_stays_with_the_giver(self) -> None:
        """`serve` says whether it handed the item over."""
        line = make_line()
        assert not line.serve("a")

    @virtual_time
    async def test_an_item_that_came_before_the_wait_is_had_without_suspending(self) -> None:
        """From `join` on a hand-over may come."""
        line = make_line()
        waiter = join(line, now(), math.inf)
        line.serve("a")
        with pytest.raises(StopIteration) as end:
            wait(waiter).send(None)
        assert end.value.value == "a"


class TestDepartures:
    @virtual_time
    async def test_a_waiter_that_leaves_is_gone_that_instant(self) -> None:
        """It counts no more, is not listed, and is not served."""
        line = make_line()
        first, second = join(line, now(), math.inf), join(line, now(), math.inf)
        assert line.leave(first) is None
        assert line.length == 1
        assert list(line) == [second]
        line.serve("a")
        assert (first.served, second.served) == (None, "a")

    @virtual_time
    async def test_leaving_twice_counts_once(self) -> None:
        """`leave` after any exception is safe."""
        line = make_line()
        waiter = join(line, now(), math.inf)
        line.leave(waiter)
        line.leave(waiter)
        assert line.length == 0

    @pytest.mark.parametrize("cancelled_first", [True, False])
    @virtual_time
    async def test_what_was_handed_to_one_cancelled_in_the_same_tick_comes_back(
        self, cancelled_first: bool
    ) -> None:
        """`leave` returns it, whichever of the two came first."""
        line = make_line()
        waiter = join(line, now(), math.inf)
        task = asyncio.create_task(wait(waiter))
        await settle()
        if cancelled_first:
            task.cancel()
        line.serve("a")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert line.leave(waiter) == "a"
        assert line.leave(waiter) is None
        assert line.length == 0

    @pytest.mark.parametrize("cancelled_first", [True, False])
    @virtual_time
    async def test_a_notice_is_not_lost_when_its_receiver_is_cancelled(
        self, cancelled_first: bool
    ) -> None:
        """The next gets the item, on Pythons with python/cpython#112202 too."""
        line = make_line()
        head, following = await queue(line, 2)
        if cancelled_first:
            head.cancel()
        line.serve("a")
        head.cancel()
        async with asyncio.timeout(1):
            assert await following == "a"
        assert head.cancelled()

    @virtual_time
    async def test_a_burst_of_cancelled_heads_does_not_lose_the_item_either(self) -> None:
        """It is passed on from one to the next until somebody stays."""
        line = make_line()
        *leaving, last = await queue(line, 50)
        line.serve("a")
        for task in leaving:
            task.cancel()
        async with asyncio.timeout(1):
            assert await last == "a"
        assert line.length == 0

    @virtual_time
    async def test_when_all_end_each_gets_an_error_of_its_own(self) -> None:
        """An exception that several tasks raise would grow by each one's traceback."""
        line = make_line()
        tasks = [asyncio.create_task(stand(line, 5.0)) for _ in range(3)]
        await settle()
        line.fail_all(lambda: Late("closed"))
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(set(map(id, errors))) == 3
        assert line.length == 0
        assert timers() == []


class TestDeadlines:
    @virtual_time
    async def test_each_waiter_is_told_at_its_own_deadline(self) -> None:
        """Not before and not after, in whatever order they were set."""
        line = make_line()
        told = {}

        async def wait_until(deadline: float) -> None:
            with pytest.raises(Late):
                await stand(line, deadline)
            told[deadline] = now()

        await asyncio.gather(*map(wait_until, [3.0, 1.0, 2.0, 1.0, 5.0]))
        assert told == {at: pytest.approx(at, abs=1e-6) for at in told}
        assert timers() == []

    @pytest.mark.parametrize("served_first", [True, False])
    @virtual_time
    async def test_of_a_deadline_and_a_hand_over_in_one_tick_the_first_wins(
        self, served_first: bool
    ) -> None:
        """The waiter gets one of the two, and an item that it does not get stays where it was."""
        line = make_line()
        left: list[str] = []

        def serve() -> None:
            if not line.serve("a"):
                left.append("a")

        loop = asyncio.get_running_loop()
        if served_first:
            loop.call_at(1.0, serve)
        task = asyncio.create_task(stand(line, 1.0))
        await asyncio.sleep(0)
        if not served_first:
            loop.call_at(1.0, serve)
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert now() == pytest.approx(1.0)
        assert [result, *left] == ["a"] if served_first else isinstance(result, Late)
        assert left == ([] if served_first else ["a"])
        assert line.length == 0

    @pytest.mark.parametrize("deadlines", [range(1, 1001), range(1000, 0, -1), [30] * 1000])
    @virtual_time
    async def test_one_timer_serves_the_whole_line(self, deadlines: Any) -> None:
        """It costs no timer to wait; after `stop` none is left."""
        line = make_line()
        for deadline in deadlines:
            join(line, now(), float(deadline))
        (timer,) = timers()
        assert timer.when() == min(deadlines)
        line.stop()
        assert timers() == []

    @virtual_time
    async def test_without_a_deadline_there_is_no_timer(self) -> None:
        """`math.inf` is no instant to be woken at."""
        line = make_line()
        join(line, now(), math.inf)
        assert timers() == []

    @virtual_time
    async def test_departures_do_not_touch_the_timer(self) -> None:
        """When it rings for one who has left it is set anew, for the last one not at all."""
        line = make_line()
        first, second = join(line, now(), 1.0), join(line, now(), 2.0)
        (before,) = timers()
        line.leave(first)
        assert timers() == [before]
        await asyncio.sleep(1.5)
        assert [timer.when() for timer in timers()] == [2.0]
        line.leave(second)
        await asyncio.sleep(1.0)
        assert timers() == []

    @virtual_time
    async def test_the_timer_does_not_keep_the_line_alive(self) -> None:
        """A pool that is dropped is collected although somebody would have been told later."""
        line = make_line()
        join(line, now(), 1000.0)
        dead = weakref.ref(line)
        del line
        gc.collect()
        assert dead() is None
        assert len(timers()) == 1
        await asyncio.sleep(1001.0)

    @virtual_time
    async def test_the_timer_does_not_keep_a_requests_variables_alive(self) -> None:
        """It belongs to the line, so it runs in no borrower's context."""

        class Request:
            """Something large that a framework keeps in a context variable."""

        variable: ContextVar[Request] = ContextVar("variable")
        line = make_line()

        async def serve_request() -> weakref.ref[Request]:
            variable.set(request := Request())
            line.leave(join(line, now(), 1000.0))
            return weakref.ref(request)

        request = await asyncio.create_task(serve_request())
        await settle()  # the step in which a task has ended still holds it
        gc.collect()
        assert request() is None

    @virtual_time
    async def test_a_timer_that_rings_a_little_early_is_believed(self) -> None:
        """The loop's clock may be coarser than the deadline; the instant asked for has come."""
        line = make_line()
        waiter = join(line, now(), 1.0)
        line._on_timer()
        assert isinstance(waiter.error, Late)
        line.stop()

    @virtual_time
    async def test_after_stop_a_line_is_as_new(self) -> None:
        """Whoever waited then is not told; whoever comes has a timer."""
        line = make_line()
        before = [join(line, now(), 5.0), join(line, now(), 4.0)]
        line.stop()
        waiter = join(line, now(), 10.0)
        assert [timer.when() for timer in timers()] == [10.0]
        await asyncio.sleep(11.0)
        assert isinstance(waiter.error, Late)
        assert [each.error for each in before] == [None, None]

    @virtual_time
    async def test_the_hurried_keep_their_order_when_the_departed_are_dropped(self) -> None:
        """What is left of a heap is made a heap again."""
        line = make_line()
        join(line, now(), 1000.0)
        deadlines = (1.0, 5.0, 2.0, 6.0, 7.0, 3.0, 4.0)
        first, *rest = [join(line, now(), deadline) for deadline in deadlines]
        line.leave(first)
        for _ in range(200):
            line.leave(join(line, now(), 1000.0))
        assert len(line._early) == 6
        for at in range(2, 8):
            await asyncio.sleep(at + 0.5 - now())
            assert {waiter.deadline for waiter in rest if waiter.error} == set(range(2, at + 1))
        line.stop()


class TestCosts:
    @pytest.mark.parametrize("first", [1.0, 1e6])
    @virtual_time
    async def test_the_departed_are_dropped_while_the_head_waits(self, first: float) -> None:
        """What the line keeps is bounded by who waits, not by who came."""
        line = make_line()
        join(line, now(), first)
        for _ in range(100_000):
            line.leave(join(line, now(), 30.0))
        assert line.length == 1
        assert len(line._places) + len(line._deadlines) + len(line._early) < 200
        line.stop()

    @virtual_time
    async def test_a_departure_from_the_middle_touches_nobody_else(self) -> None:
        """It neither searches the line nor wakes anyone."""
        line = make_line()
        waiters = [join(line, now(), 30.0) for _ in range(10_000)]
        hurried = [join(line, now(), 29.0) for _ in range(100)]
        line._places, line._deadlines = Untouchable(line._places), Untouchable(line._deadlines)
        frozen: Any = tuple(line._early)
        line._early = frozen
        for waiter in waiters[4000:6000] + hurried[30:60]:
            line.leave(waiter)
        assert line.length == 8070
        assert line._early is frozen
        line._early = []
        line.stop()

    @pytest.mark.parametrize("act", ["join", "leave", "serve"])
    @virtual_time
    async def test_no_step_costs_more_in_a_longer_line(self, act: str) -> None:
        """Arrival, departure and hand-over are O(1) with one time limit for all."""

        def cost(length: int) -> int:
            line = make_line()
            waiters = [join(line, now(), 30.0) for _ in range(length)]
            work: dict[str, Callable[[], object]] = {
                "join": lambda: join(line, now(), 30.0),
                "leave": lambda: line.leave(waiters[length // 2]),
                "serve": lambda: line.serve("a"),
            }
            steps(work[act])  # the first call may run what the tracer sets up
            taken = steps(work[act])
            line.stop()
            return taken

        assert cost(10_000) == cost(10)

    @virtual_time
    async def test_dropping_the_departed_is_cheap_on_the_whole(self) -> None:
        """Spread over all arrivals it is a constant, even when all leave in the order of coming."""
        line = make_line()

        def come_and_go() -> None:
            for waiter in [join(line, 0.0, 30.0) for _ in range(5000)]:
                line.leave(waiter)
            for _ in range(5000):
                line.leave(join(line, 0.0, 30.0))

        assert steps(come_and_go) < 10_000 * 60
        line.stop()

    @virtual_time
    async def test_with_one_time_limit_for_all_nobody_is_in_the_heap(self) -> None:
        """Each deadline is the latest; only who has less time than somebody ahead is."""
        line = make_line()
        for deadline in (30.0, 30.0, 31.0):
            join(line, now(), deadline)
        assert line._early == []
        hurried = join(line, now(), 1.0)
        assert line._early == [hurried]
        line.stop()


class TestWaiter:
    @virtual_time
    async def test_a_waiter_is_notified_as_a_condition_is(self) -> None:
        """It has none of what `asyncio.Condition.__init__` makes: a Python that needs it shows."""
        waiter: Waiter[str] = Waiter(1, 0.0, 1.0)
        assert not vars(waiter)
        assert waiter.locked()
        assert (waiter.task, waiter.served, waiter.error) == (None, None, None)
        future = waiter.wait()
        assert not future.done()
        waiter.notify()
        assert future.done()

    @virtual_time
    async def test_a_notice_to_one_who_was_cancelled_does_no_harm(self) -> None:
        """Its future is done already."""
        waiter: Waiter[str] = Waiter(1, 0.0, 1.0)
        future = waiter.wait()
        future.cancel()
        waiter.notify()
        assert future.cancelled()
