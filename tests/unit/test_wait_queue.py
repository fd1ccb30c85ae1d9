"""The wait queue: its order, and hand-overs that coincide with cancellations and deadlines."""

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

from asyncpool._core.admission import Decided
from asyncpool._core.service_rate import STEP
from asyncpool._core.wait_queue import WaitQueue
from asyncpool._core.waiter import Waiter
from tests.unit._tools import join, now, settle, timers, virtual_time


class Late(Exception):
    """The error that the queues of these tests raise at a deadline."""


def make_queue() -> WaitQueue[str]:
    return WaitQueue(lambda waiter, _: Late(waiter.deadline))


async def wait(waiter: Waiter[str]) -> str:
    """Wait as the core does."""
    while waiter.waiting:
        await waiter.wait()
    if waiter.error is not None:
        raise waiter.error
    assert waiter.served is not None
    return waiter.served


async def wait_in_turn(
    wait_queue: WaitQueue[str], deadline: float = math.inf, *, ticket: int | None = None
) -> str:
    """Wait as the core does: an item served to a waiter that leaves is passed on."""
    waiter = join(wait_queue, now(), deadline, ticket)
    try:
        return await wait(waiter)
    except BaseException:
        if (served := wait_queue.leave(waiter)) is not None:
            wait_queue.serve(served)
        raise


async def enqueue(wait_queue: WaitQueue[str], count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(wait_in_turn(wait_queue)) for _ in range(count)]
    await settle()
    return tasks


class Untouchable(deque[Any]):
    """A deque that allows only operations at its ends."""

    def __iter__(self) -> Any:
        raise AssertionError("the wait_queue was searched")

    remove = index = __contains__ = __delitem__ = __getitem__ = __iter__  # type: ignore[assignment]


def steps(work: Callable[[], object]) -> int:
    """Count the lines of Python that run during the work."""
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
    async def test_waiters_are_served_in_order_of_arrival(self) -> None:
        """The queue is strictly first in, first out."""
        wait_queue = make_queue()
        tasks = await enqueue(wait_queue, 3)
        for item in ("a", "b", "c"):
            assert wait_queue.serve(item)
        assert await asyncio.gather(*tasks) == ["a", "b", "c"]

    @virtual_time
    async def test_a_waiter_that_rejoins_takes_the_first_place(self) -> None:
        """Its ticket is older than those of all other waiters."""
        wait_queue = make_queue()
        tasks = await enqueue(wait_queue, 2)
        again = asyncio.create_task(wait_in_turn(wait_queue, ticket=0))
        await settle()
        wait_queue.serve("a")
        wait_queue.serve("b")
        await settle()
        assert await again == "a"
        assert [task.done() for task in tasks] == [True, False]
        wait_queue.serve("c")
        assert await tasks[1] == "c"

    @virtual_time
    async def test_without_waiters_an_item_is_not_handed_over(self) -> None:
        """`serve` returns whether it handed the item over."""
        wait_queue = make_queue()
        assert not wait_queue.serve("a")

    @virtual_time
    async def test_an_item_served_before_the_wait_is_returned_without_suspending(self) -> None:
        """A waiter may be served from `admit` on."""
        wait_queue = make_queue()
        waiter = join(wait_queue, now(), math.inf)
        wait_queue.serve("a")
        with pytest.raises(StopIteration) as end:
            wait(waiter).send(None)
        assert end.value.value == "a"


class TestPlaces:
    """The position that a new waiter would have, which decides whether it is let in."""

    @staticmethod
    def new(wait_queue: WaitQueue[str], *place: Any) -> Waiter[str]:
        waiter: Waiter[str] = Waiter(wait_queue.ticket(), 0.0, math.inf)
        waiter.place = place or None
        return waiter

    @pytest.mark.parametrize("place", [(), (1, "flow")])
    def test_nobody_is_ahead_in_an_empty_queue(self, place: tuple[Any, ...]) -> None:
        """No order is made for one waiter, whatever its place."""
        wait_queue = make_queue()
        assert wait_queue.place_for(self.new(wait_queue, *place)) == (wait_queue.plain, 0)
        assert wait_queue.order is None

    def test_all_are_ahead_where_nobody_has_a_priority(self) -> None:
        """No order is made before the first waiter that needs one."""
        wait_queue = make_queue()
        for _ in range(2):
            wait_queue.admit(self.new(wait_queue))
        assert wait_queue.place_for(self.new(wait_queue)) == (wait_queue.plain, 2)
        assert wait_queue.order is None
        assert wait_queue.head_in_time() is wait_queue.head() is next(iter(wait_queue))

    @pytest.mark.parametrize(("joined_at", "limit"), [(99.0, 2.0), (98.5, math.inf)])
    def test_a_doubtful_patience_is_extended_or_disproved(
        self, joined_at: float, limit: float
    ) -> None:
        """By the oldest request that waits, if no cancellation has confirmed it for long."""
        wait_queue: WaitQueue[str] = WaitQueue(lambda *_: Late(), lambda: 100.0)
        waiter = self.new(wait_queue)
        waiter.joined_at = joined_at
        wait_queue.admit(waiter)
        wait_queue.line.patience.limit = 1.0
        wait_queue.doubt_patience(wait_queue.line, 100.0)
        assert wait_queue.line.patience.limit == limit
        wait_queue.doubt_patience(wait_queue.line, 101.0)
        assert wait_queue.line.patience.limit == limit

    def test_what_was_measured_long_ago_is_forgotten_when_requests_wait_again(self) -> None:
        """The duration of a use, and a patience that nothing has confirmed."""
        clock = [0.0]
        wait_queue: WaitQueue[str] = WaitQueue(lambda *_: Late(), lambda: clock[0])
        line = wait_queue.line

        def come(count: int = 1) -> None:
            for _ in range(count):
                waiter = self.new(wait_queue)
                waiter.joined_at = clock[0]
                wait_queue.admit(waiter)

        come(STEP)
        clock[0] = 0.9
        for _ in range(STEP):
            wait_queue.serve("item")
        line.use, line.patience.limit, line.patience._trusted_at = 5.0, 1.0, 0.9
        for instant, known in ((1.0, True), (500.0, False)):
            clock[0] = instant
            come()
            assert (line.use, line.patience.limit) == ((5.0, 1.0) if known else (0.0, math.inf))
            wait_queue.serve("item")
            assert line.may_be_late is known

    def test_the_waiters_of_its_own_priority_are_counted(self) -> None:
        """A higher priority makes the line slower, so its waiters are not counted twice."""
        wait_queue = make_queue()
        for place in ((), (), (1, "flow")):
            wait_queue.admit(self.new(wait_queue, *place))
        flow, ahead = wait_queue.place_for(self.new(wait_queue, 1, "flow"))
        assert (flow.line.priority, flow.key, ahead) == (1, "flow", 1)
        assert wait_queue.place_for(self.new(wait_queue)) == (wait_queue.plain, 2)
        assert wait_queue.head() in flow.places

    def test_the_oldest_waiter_of_a_line_is_known(self) -> None:
        """With and without an order; a line without waiters has none."""
        wait_queue = make_queue()
        assert wait_queue.oldest(wait_queue.line) == math.inf
        for number, place in enumerate([(), (), (1, "flow")]):
            waiter = self.new(wait_queue, *place)
            waiter.joined_at = 1.0 + number
            wait_queue.admit(waiter)
        assert (wait_queue.oldest(wait_queue.line), wait_queue.oldest(waiter.line)) == (1.0, 3.0)
        wait_queue.leave(waiter)
        assert wait_queue.oldest(waiter.line) == math.inf

    def test_waiters_that_share_a_connection_need_one_together(self) -> None:
        """Their need may change while they wait."""
        wait_queue = make_queue()
        waiters = [self.new(wait_queue) for _ in range(3)]
        for waiter in waiters:
            wait_queue.admit(waiter)
        assert (wait_queue.own_demand, wait_queue.demand) == (3, 3)
        for waiter in waiters[:2]:
            waiter.needs_own_connection = False
        wait_queue.recount()
        assert (wait_queue.own_demand, wait_queue.demand) == (1, 2)
        waiters[0].needs_own_connection = True
        wait_queue.recount()
        assert (wait_queue.own_demand, wait_queue.demand) == (2, 3)

    @pytest.mark.parametrize("event", ["an order begins", "nobody waits", "STEP were served"])
    def test_decisions_are_forgotten_when(self, event: str) -> None:
        """They hold for a queue without an order whose rate was not measured again."""
        wait_queue = make_queue()
        for _ in range(STEP + 1):
            wait_queue.admit(self.new(wait_queue))
        wait_queue.decided[1.0] = Decided()
        wait_queue.sees_scopes = True
        if event == "an order begins":
            wait_queue.admit(self.new(wait_queue, 1, None))
        else:
            for _ in range(STEP + (event == "nobody waits")):
                wait_queue.serve("item")
        assert not wait_queue.decided
        assert wait_queue.sees_scopes is (event != "nobody waits")

    def test_an_order_knows_since_when_requests_wait(self) -> None:
        """The queue does not become younger by the first request with a flow."""
        wait_queue: WaitQueue[str] = WaitQueue(lambda *_: Late(), lambda: 9.0)
        first = self.new(wait_queue)
        first.joined_at = 1.0
        wait_queue.admit(first)
        wait_queue.admit(self.new(wait_queue, 0, "flow"))
        assert wait_queue.plain.since == 1.0

    def test_the_first_waiter_of_all_is_passed_over_if_it_is_too_late(self) -> None:
        """A head is judged once, and none counts as judged before."""
        wait_queue: WaitQueue[str] = WaitQueue(lambda *_: Late(), lambda: 1.0)
        first, second = self.new(wait_queue), self.new(wait_queue)
        first.useful_until, wait_queue.line.may_be_late = 0.5, True
        wait_queue.admit(first)
        wait_queue.admit(second)
        assert wait_queue.head_in_time() is second
        assert isinstance(first.error, Late)


class TestDepartures:
    @virtual_time
    async def test_a_waiter_that_has_left_keeps_nothing_alive(self) -> None:
        """The queue keeps the waiter for a while."""
        wait_queue = make_queue()
        waiter = join(wait_queue, now(), math.inf)
        waiter.task = asyncio.current_task()
        wait_queue.fail(waiter, Late())
        wait_queue.leave(waiter)
        assert (waiter.task, waiter.error, waiter.served) == (None, None, None)
        assert wait_queue.undelivered_errors == 0

    @virtual_time
    async def test_a_waiter_that_leaves_is_removed_at_once(self) -> None:
        """The waiter is not counted, not listed and not served."""
        wait_queue = make_queue()
        first, second = join(wait_queue, now(), math.inf), join(wait_queue, now(), math.inf)
        assert wait_queue.leave(first) is None
        assert wait_queue.length == 1
        assert list(wait_queue) == [second]
        wait_queue.serve("a")
        assert (first.served, second.served) == (None, "a")

    @virtual_time
    async def test_leaving_twice_counts_once(self) -> None:
        """`leave` after any exception is safe."""
        wait_queue = make_queue()
        waiter = join(wait_queue, now(), math.inf)
        wait_queue.leave(waiter)
        wait_queue.leave(waiter)
        assert wait_queue.length == 0

    @pytest.mark.parametrize("cancelled_first", [True, False])
    @virtual_time
    async def test_an_item_served_to_a_waiter_cancelled_in_the_same_tick_is_returned(
        self, cancelled_first: bool
    ) -> None:
        """`leave` returns it, whichever of the two happened first."""
        wait_queue = make_queue()
        waiter = join(wait_queue, now(), math.inf)
        task = asyncio.create_task(wait(waiter))
        await settle()
        if cancelled_first:
            task.cancel()
        wait_queue.serve("a")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert wait_queue.leave(waiter) == "a"
        assert wait_queue.leave(waiter) is None
        assert wait_queue.length == 0

    @pytest.mark.parametrize("cancelled_first", [True, False])
    @virtual_time
    async def test_a_notification_is_not_lost_when_its_receiver_is_cancelled(
        self, cancelled_first: bool
    ) -> None:
        """The next waiter gets the item, also on a Python with python/cpython#112202."""
        wait_queue = make_queue()
        head, following = await enqueue(wait_queue, 2)
        if cancelled_first:
            head.cancel()
        wait_queue.serve("a")
        head.cancel()
        async with asyncio.timeout(1):
            assert await following == "a"
        assert head.cancelled()

    @virtual_time
    async def test_several_cancelled_waiters_do_not_lose_the_item(self) -> None:
        """Each passes it on until a waiter stays."""
        wait_queue = make_queue()
        *leaving, last = await enqueue(wait_queue, 50)
        wait_queue.serve("a")
        for task in leaving:
            task.cancel()
        async with asyncio.timeout(1):
            assert await last == "a"
        assert wait_queue.length == 0

    @virtual_time
    async def test_when_all_waits_end_each_gets_its_own_error(self) -> None:
        """The traceback of an exception raised in several tasks would grow with each."""
        wait_queue = make_queue()
        tasks = [asyncio.create_task(wait_in_turn(wait_queue, 5.0)) for _ in range(3)]
        await settle()
        wait_queue.fail_all(lambda: Late("closed"))
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(set(map(id, errors))) == 3
        assert wait_queue.length == 0
        assert timers() == []


class TestDeadlines:
    @virtual_time
    async def test_each_waiter_times_out_at_its_own_deadline(self) -> None:
        """The order in which deadlines were set does not matter."""
        wait_queue = make_queue()
        told = {}

        async def wait_until(deadline: float) -> None:
            with pytest.raises(Late):
                await wait_in_turn(wait_queue, deadline)
            told[deadline] = now()

        await asyncio.gather(*map(wait_until, [3.0, 1.0, 2.0, 1.0, 5.0]))
        assert told == {at: pytest.approx(at, abs=1e-6) for at in told}
        assert timers() == []

    @pytest.mark.parametrize("served_first", [True, False])
    @virtual_time
    async def test_of_a_deadline_and_a_hand_over_in_one_tick_the_first_wins(
        self, served_first: bool
    ) -> None:
        """The waiter gets one of the two; an item that it does not get is not lost."""
        wait_queue = make_queue()
        left: list[str] = []

        def serve() -> None:
            if not wait_queue.serve("a"):
                left.append("a")

        loop = asyncio.get_running_loop()
        if served_first:
            loop.call_at(1.0, serve)
        task = asyncio.create_task(wait_in_turn(wait_queue, 1.0))
        await asyncio.sleep(0)
        if not served_first:
            loop.call_at(1.0, serve)
        (result,) = await asyncio.gather(task, return_exceptions=True)
        assert now() == pytest.approx(1.0)
        assert [result, *left] == ["a"] if served_first else isinstance(result, Late)
        assert left == ([] if served_first else ["a"])
        assert wait_queue.length == 0

    @pytest.mark.parametrize("deadlines", [range(1, 1001), range(1000, 0, -1), [30] * 1000])
    @virtual_time
    async def test_one_timer_serves_the_whole_queue(self, deadlines: Any) -> None:
        """A wait needs no timer of its own; after `stop` there is none."""
        wait_queue = make_queue()
        for deadline in deadlines:
            join(wait_queue, now(), float(deadline))
        (timer,) = timers()
        assert timer.when() == min(deadlines)
        wait_queue.stop()
        assert timers() == []

    @virtual_time
    async def test_without_a_deadline_there_is_no_timer(self) -> None:
        """`math.inf` is never due."""
        wait_queue = make_queue()
        join(wait_queue, now(), math.inf)
        assert timers() == []

    @virtual_time
    async def test_waiters_that_leave_do_not_change_the_timer(self) -> None:
        """When it fires for one that has left, it is set again if another waits."""
        wait_queue = make_queue()
        first, second = join(wait_queue, now(), 1.0), join(wait_queue, now(), 2.0)
        (before,) = timers()
        wait_queue.leave(first)
        assert timers() == [before]
        await asyncio.sleep(1.5)
        assert [timer.when() for timer in timers()] == [2.0]
        wait_queue.leave(second)
        await asyncio.sleep(1.0)
        assert timers() == []

    @virtual_time
    async def test_the_timer_does_not_keep_the_queue_alive(self) -> None:
        """A dropped pool is collected although a deadline was still to come."""
        wait_queue = make_queue()
        join(wait_queue, now(), 1000.0)
        dead = weakref.ref(wait_queue)
        del wait_queue
        gc.collect()
        assert dead() is None
        assert len(timers()) == 1
        await asyncio.sleep(1001.0)

    @virtual_time
    async def test_the_timer_does_not_keep_context_variables_alive(self) -> None:
        """The timer runs in an empty context, because it serves all waiters."""

        class Request:
            """A large object that a framework keeps in a context variable."""

        variable: ContextVar[Request] = ContextVar("variable")
        wait_queue = make_queue()

        async def serve_request() -> weakref.ref[Request]:
            variable.set(request := Request())
            wait_queue.leave(join(wait_queue, now(), 1000.0))
            return weakref.ref(request)

        request = await asyncio.create_task(serve_request())
        await settle()  # a task is referenced during its last step
        gc.collect()
        assert request() is None

    @virtual_time
    async def test_a_timer_that_fires_slightly_early_counts_as_due(self) -> None:
        """The clock of the loop may be coarser than the deadline."""
        wait_queue = make_queue()
        waiter = join(wait_queue, now(), 1.0)
        wait_queue._on_timer(1.0)
        assert isinstance(waiter.error, Late)
        wait_queue.stop()

    @virtual_time
    async def test_after_stop_a_queue_can_be_used_again(self) -> None:
        """Earlier waiters do not time out; new ones have a timer."""
        wait_queue = make_queue()
        before = [join(wait_queue, now(), 5.0), join(wait_queue, now(), 4.0)]
        wait_queue.stop()
        waiter = join(wait_queue, now(), 10.0)
        assert [timer.when() for timer in timers()] == [10.0]
        await asyncio.sleep(11.0)
        assert isinstance(waiter.error, Late)
        assert [each.error for each in before] == [None, None]

    @virtual_time
    async def test_early_deadlines_keep_their_order_when_the_queue_is_compacted(self) -> None:
        """The rest of a heap is turned into a heap again."""
        wait_queue = make_queue()
        join(wait_queue, now(), 1000.0)
        deadlines = (1.0, 5.0, 2.0, 6.0, 7.0, 3.0, 4.0)
        first, *rest = [join(wait_queue, now(), deadline) for deadline in deadlines]
        wait_queue.leave(first)
        for _ in range(200):
            wait_queue.leave(join(wait_queue, now(), 1000.0))
        assert len(wait_queue._deadlines._early) == 6
        for at in range(2, 8):
            await asyncio.sleep(at + 0.5 - now())
            assert {waiter.deadline for waiter in rest if waiter.error} == set(range(2, at + 1))
        wait_queue.stop()


class TestCosts:
    @pytest.mark.parametrize("first", [1.0, 1e6])
    @virtual_time
    async def test_waiters_that_have_left_are_dropped_while_the_first_still_waits(
        self, first: float
    ) -> None:
        """The memory of the queue depends on current waiters, not on past ones."""
        wait_queue = make_queue()
        join(wait_queue, now(), first)
        for _ in range(100_000):
            wait_queue.leave(join(wait_queue, now(), 30.0))
        assert wait_queue.length == 1
        assert len(wait_queue.plain.places) + len(wait_queue._deadlines) < 200
        wait_queue.stop()

    @virtual_time
    async def test_a_waiter_that_leaves_from_the_middle_touches_no_other(self) -> None:
        """Leaving neither searches the queue nor wakes a task."""
        wait_queue = make_queue()
        waiters = [join(wait_queue, now(), 30.0) for _ in range(10_000)]
        hurried = [join(wait_queue, now(), 29.0) for _ in range(100)]
        deadlines = wait_queue._deadlines
        wait_queue.plain.places, deadlines._in_order = (
            Untouchable(wait_queue.plain.places),
            Untouchable(deadlines._in_order),
        )
        frozen: Any = tuple(deadlines._early)
        deadlines._early = frozen
        for waiter in waiters[4000:6000] + hurried[30:60]:
            wait_queue.leave(waiter)
        assert wait_queue.length == 8070
        assert deadlines._early is frozen
        deadlines._early = []
        wait_queue.stop()

    @pytest.mark.parametrize("act", ["join", "leave", "serve"])
    @virtual_time
    async def test_no_step_costs_more_in_a_longer_queue(self, act: str) -> None:
        """With one timeout for all, joining, leaving and serving are O(1)."""

        def cost(length: int) -> int:
            wait_queue = make_queue()
            waiters = [join(wait_queue, now(), 30.0) for _ in range(length)]
            work: dict[str, Callable[[], object]] = {
                "join": lambda: join(wait_queue, now(), 30.0),
                "leave": lambda: wait_queue.leave(waiters[length // 2]),
                "serve": lambda: wait_queue.serve("a"),
            }
            steps(work[act])  # the first call may run set-up work of the tracer
            taken = steps(work[act])
            wait_queue.stop()
            assert taken
            return taken

        assert cost(10_000) == cost(10)

    @pytest.mark.parametrize("ending", ["served", "failed", "left"])
    async def test_an_empty_queue_keeps_nothing_of_a_burst(self, ending: str) -> None:
        """What is kept costs memory, and time in each full garbage collection."""
        wait_queue = make_queue()
        instants = [now() + seconds for seconds in (math.inf, 9.0, 8.0)]
        waiters = [Waiter[str](wait_queue.ticket(), now(), at) for at in instants]
        for waiter in waiters:
            wait_queue.admit(waiter)
        kept = [weakref.ref(waiter) for waiter in waiters]
        for waiter in waiters:
            if ending == "served":
                wait_queue.serve("item")
            elif ending == "failed":
                wait_queue.fail(waiter, Late())
            else:
                wait_queue.leave(waiter)
        del waiter, waiters
        wait_queue.stop()
        assert [each() for each in kept] == [None] * 3

    @virtual_time
    async def test_compacting_is_cheap_on_average(self) -> None:
        """Its cost per waiter is constant, even when all leave in order of arrival."""

        def come_and_go(count: int) -> None:
            wait_queue = make_queue()
            for waiter in [join(wait_queue, 0.0, 30.0) for _ in range(count)]:
                wait_queue.leave(waiter)
            for _ in range(count):
                wait_queue.leave(join(wait_queue, 0.0, 30.0))
            wait_queue.stop()

        few, many = (steps(lambda count=count: come_and_go(count)) for count in (500, 5000))  # type: ignore[misc]
        assert 0 < many < 11 * few

    @virtual_time
    async def test_with_one_timeout_for_all_the_heap_is_empty(self) -> None:
        """Only deadlines earlier than the last one are in the heap."""
        wait_queue = make_queue()
        for deadline in (30.0, 30.0, 31.0):
            join(wait_queue, now(), deadline)
        assert wait_queue._deadlines._early == []
        hurried = join(wait_queue, now(), 1.0)
        assert wait_queue._deadlines._early == [hurried]
        wait_queue.stop()


class TestWaiter:
    @virtual_time
    async def test_a_waiter_is_notified_as_a_condition_is(self) -> None:
        """`asyncio.Condition.__init__` is not called: this fails on a Python that needs it."""
        waiter: Waiter[str] = Waiter(1, 0.0, 1.0)
        assert not vars(waiter)
        assert waiter.locked()
        assert (waiter.task, waiter.served, waiter.error) == (None, None, None)
        future = waiter.wait()
        assert not future.done()
        waiter.notify()
        assert future.done()

    @virtual_time
    async def test_a_notification_to_a_cancelled_waiter_does_no_harm(self) -> None:
        """Its future is done already."""
        waiter: Waiter[str] = Waiter(1, 0.0, 1.0)
        future = waiter.wait()
        future.cancel()
        waiter.notify()
        assert future.cancelled()
