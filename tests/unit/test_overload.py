"""Overload: what is answered in time at any load, by callers that wait and by those that cancel.

Each test runs requests against a pool of ten on a virtual clock; a use takes 20 ms.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from random import Random
from typing import Any

import anyio
import pytest

from asyncpool import within
from asyncpool._core.service_rate import STEP
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import PoolTimeout, TooManyRequests
from tests._tools import few
from tests.unit._load import USE, Load, Outcomes
from tests.unit._tools import Driver, Moving, now, running, settle, slow, use, virtual_time

MODES = ("wait", "refuse")


def memoryless(random: Random) -> float:
    """Uses that are long now and then: exponential."""
    return random.expovariate(1 / USE)


def mixed(random: Random) -> float:
    """Three short uses for each long one."""
    return random.choice((0.25, 0.25, 0.25, 3.25)) * USE


def even(random: Random) -> float:
    """Uses of about the same duration."""
    return USE * random.choice((0.7, 1.0, 1.3))


USES = {"even": even, "memoryless": memoryless, "mixed": mixed}


@pytest.mark.parametrize("mode", few(MODES))
@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("load", few([3.0, 1.5, 1.2, 10.0]))
@pytest.mark.parametrize("kind", few(["memoryless", "even", "mixed"]))
def test_the_pool_answers_what_it_can(kind: str, load: float, cancels: bool, mode: str) -> None:
    """95 % of the capacity is answered in time, also where nobody says a deadline."""

    @virtual_time
    async def run() -> None:
        async with running(Driver(), 10, 10, overload=mode) as core:
            found = await Load(core, cancels=cancels, use=USES[kind]).run(load, 8.0)
            assert found.share(load) > 0.95
            late = found.ends["late"] + found.ends["TimeoutError"]
            assert late < 0.15 * found.ends["in time"]

    run()


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.exhaustive
def test_refusing_keeps_the_answers_quick(cancels: bool) -> None:
    """With `overload="refuse"` 99 of 100 answers take a quarter of the deadline at most."""

    @virtual_time
    async def run() -> None:
        async with running(Driver(), 10, 10, overload="refuse") as core:
            found = await Load(core, cancels=cancels).run(3.0, 8.0, skip=3.0)
            assert found.quantile(0.99) < 0.25
            assert found.share(3.0) > 0.95

    run()


@pytest.mark.parametrize("mode", few(MODES))
@pytest.mark.parametrize("cancels", few([True, False]))
def test_nothing_is_refused_below_capacity(cancels: bool, mode: str) -> None:
    """At 0.9 of the capacity every request is answered in time."""

    @virtual_time
    async def run() -> None:
        async with running(Driver(), 10, 10, overload=mode) as core:
            found = await Load(core, cancels=cancels).run(0.9, 20.0)
            assert set(found.ends) == {"in time"}

    run()


@pytest.mark.parametrize("mode", MODES)
@virtual_time
async def test_a_burst_that_can_be_served_is_served(mode: str) -> None:
    """Of 300 requests at once, 0.6 s of work, none is refused, however often they come."""
    async with running(Driver(), 10, 10, overload=mode) as core:
        for _ in range(5):
            work = [use(core, USE, timeout=1.0) for _ in range(300)]
            await asyncio.gather(*work)
            await asyncio.sleep(1.0)


@pytest.mark.parametrize("mode", few(MODES))
@pytest.mark.parametrize("cancels", [False, True])
def test_after_a_spike_all_is_well_again(cancels: bool, mode: str) -> None:
    """Two seconds at 5 times the capacity; half a second later 95 % are answered in time."""

    @virtual_time
    async def run() -> None:
        async with running(Driver(), 10, 10, overload=mode) as core:
            load = Load(core, cancels=cancels)
            found = await load.run(lambda at: 5.0 if 2 < at < 4 else 0.5, 7.0, skip=4.5)
            assert found.ends["in time"] > 0.95 * sum(found.ends.values())

    run()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cancels", [False, True])
def test_a_slow_server_still_does_useful_work(cancels: bool, mode: str) -> None:
    """From one instant on uses take four times as long: 90 % of what is left is answered."""

    @virtual_time
    async def run() -> None:
        async with running(Driver(), 10, 10, overload=mode) as core:

            def slower(random: Random) -> float:
                return USE * random.choice((0.7, 1.0, 1.3)) * (4 if now() > 3 else 1)

            found = await Load(core, cancels=cancels, use=slower).run(0.9, 10.0, skip=3.0)
            assert found.share(1.0) * 4 > 0.9

    run()


def of(flow: str | None = None, priority: int | None = None) -> AbstractContextManager[object]:
    """The block of a request with a flow or a priority."""
    return within(flow=flow, priority=priority)


async def run_together(core: Any, loads: list[tuple[float, Load]]) -> list[Outcomes]:
    """Run several loads on one pool for 6 s."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(load.run(times, 6.0)) for times, load in loads]
    return [task.result() for task in tasks]


@pytest.mark.parametrize("mode", few(MODES))
@pytest.mark.parametrize("cancels", few([True, False]))
def test_small_tenants_do_not_notice_a_large_one(cancels: bool, mode: str) -> None:
    """Three flows of 0.2 of the capacity beside one of 3: all of theirs is answered in time."""

    @virtual_time
    async def run() -> None:
        async with running(Driver(), 10, 10, overload=mode) as core:
            names = ["large", "a", "b", "c"]
            loads = [
                (
                    3.0 if name == "large" else 0.2,
                    Load(core, cancels=cancels, limits=partial(of, name), random=Random(name)),
                )
                for name in names
            ]
            large, *small = await run_together(core, loads)
            for each in small:
                assert each.ends["in time"] >= 0.99 * sum(each.ends.values())
            assert sum(each.share(3.0) for each in (large, *small)) > 0.95

    run()


@pytest.mark.parametrize("mode", few(MODES))
@pytest.mark.parametrize("cancels", few([True, False]))
def test_a_high_priority_does_not_notice_a_low_one(cancels: bool, mode: str) -> None:
    """0.2 of the capacity with priority 1, 3 without: all of the first is answered in time."""

    @virtual_time
    async def run() -> None:
        async with running(Driver(), 10, 10, overload=mode) as core:
            low = Load(core, cancels=cancels)
            high = Load(core, cancels=cancels, limits=partial(of, None, 1), random=Random(2))
            others, first = await run_together(core, [(3.0, low), (0.2, high)])
            assert first.ends["in time"] >= 0.99 * sum(first.ends.values())
            assert others.share(3.0) + first.share(3.0) > 0.95

    run()


@virtual_time
async def test_many_small_flows_are_refused_as_one() -> None:
    """Of 200 flows that together are three times too many, each waits only if it can be served."""
    async with running(Driver(), 10, 10) as core:
        loads = [
            (0.015, Load(core, limits=partial(of, f"flow-{number}"), random=Random(number)))
            for number in range(200)
        ]
        found = await run_together(core, loads)
        assert sum(each.share(3.0) for each in found) > 0.95


@virtual_time
async def test_the_deadline_of_an_anyio_scope_is_seen() -> None:
    """Who could not be served before its cancel scope ends is refused at once."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        ends: list[str] = []

        async def hurried() -> None:
            with anyio.move_on_after(1.0) as scope:
                try:
                    await use(core, 0.1)
                except TooManyRequests as error:
                    ends.append(error.rule)
            if scope.cancelled_caught:
                ends.append("cancelled")

        await asyncio.gather(*(hurried() for _ in range(40)))
        assert len(ends) > 30
        assert set(ends) == {"deadline"}


@pytest.mark.parametrize("limits", [within, anyio.fail_after])
@virtual_time
async def test_who_says_its_deadline_is_not_judged_by_the_patience_of_others(
    limits: Callable[[float], AbstractContextManager[object]],
) -> None:
    """Where callers give up after 0.5 s, a batch job that has 30 s waits for its turn."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:

        async def hurried() -> None:
            async with asyncio.timeout(0.5):
                conn = await core.acquire(None)
                conn.clean = False
                try:
                    await asyncio.sleep(0.02)
                finally:
                    core.release(conn)

        async def crowd() -> None:
            tasks = []
            for _ in range(200):
                tasks.append(asyncio.create_task(hurried()))
                await asyncio.sleep(0.005)
            found = await asyncio.gather(*tasks, return_exceptions=True)
            ends.update(type(each) for each in found)

        async def job() -> None:
            with limits(30.0):
                core.release(await core.acquire(None))

        ends: set[type] = set()
        others = asyncio.create_task(crowd())
        await asyncio.sleep(0.9)
        assert core.ledger.queue.line.patience.limit == pytest.approx(0.5, rel=0.1)
        assert await refused(core, 100.0)
        jobs = [asyncio.create_task(job()) for _ in range(2)]
        await others
        assert ends == {type(None), TimeoutError, TooManyRequests}
        await asyncio.gather(*jobs)
        assert core.runtime.counters.refused_patience > 0


@virtual_time
async def test_a_group_that_is_cancelled_harms_no_others() -> None:
    """Fifty tasks of one group give up together; all others of a long queue are served."""
    async with running(Driver(), 2, 2, timeout=100.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(60)))
        others = [asyncio.create_task(use(core, 0.1)) for _ in range(100)]
        await asyncio.sleep(0.5)
        group = [asyncio.create_task(core.acquire(None)) for _ in range(50)]
        await asyncio.sleep(0.3)
        for task in group:
            task.cancel()
        others += [asyncio.create_task(use(core, 0.1)) for _ in range(100)]
        await asyncio.gather(*others)
        assert core.ledger.queue.line.patience.limit == math.inf


@virtual_time
async def test_a_refusal_says_how_long_the_wait_would_be() -> None:
    """`expected_wait` is that of the queue; `retry_after` at least the time limit."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        others = [asyncio.create_task(use(core, 0.1)) for _ in range(40)]
        await settle()
        with pytest.raises(TooManyRequests, match=r"in time \(time limit 2 s") as refused:
            await core.acquire(2.0)
        assert refused.value.rule == "deadline"
        assert refused.value.waiting == 39
        assert refused.value.expected_wait == pytest.approx(4.0, rel=0.05)
        assert refused.value.retry_after == refused.value.expected_wait
        with pytest.raises(TooManyRequests) as refused:
            await core.acquire(5.0)
        assert refused.value.retry_after == 5.0
        assert core.runtime.counters.refused_deadline == 2
        assert [event.kind for event in core.runtime.events.last].count("overload") == 1
        await asyncio.gather(*others)


async def refused(core: Any, timeout: float) -> bool:
    """Whether a request is refused; one that may wait is cancelled."""
    task = asyncio.create_task(core.acquire(timeout))
    await settle()
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return False
    return isinstance(task.exception(), TooManyRequests)


@virtual_time
async def test_a_refusal_is_remembered_for_requests_like_it() -> None:
    """Not for one that has more time, a priority or a deadline; nor for a shorter queue."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        others = [asyncio.create_task(use(core, 0.1)) for _ in range(46)]
        await settle()
        assert await refused(core, 2.0)
        for _ in range(2):
            assert await refused(core, 2.0)
            assert await refused(core, 1.0)
            assert not await refused(core, 20.0)
            with within(priority=1):
                assert not await refused(core, 2.0)
        assert await refused(core, 2.0)
        with within(20.0):
            assert await refused(core, 2.0)
            assert not await refused(core, 20.0)
        others += [asyncio.create_task(use(core, 0.1)) for _ in range(20)]
        await settle()
        assert await refused(core, 2.0)
        for task in others[5:]:
            task.cancel()
        await settle()
        assert not await refused(core, 2.0)
        await asyncio.wait(others)


@virtual_time
@pytest.mark.parametrize("setting", [{"overload": None}, {"max_size": 20}])
async def test_a_changed_setting_ends_what_is_remembered(setting: dict[str, Any]) -> None:
    """Requests are refused by the settings of now."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        others = [asyncio.create_task(use(core, 0.1)) for _ in range(40)]
        await settle()
        assert await refused(core, 2.0)
        if "max_size" in setting:
            core.resize(1, 20)
        else:
            core.change(**setting)
        assert not await refused(core, 2.0)
        await asyncio.wait(others)


@virtual_time
async def test_each_time_limit_has_its_own_refusal() -> None:
    """None is told to come back after the limit of another."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        others = [asyncio.create_task(use(core, 0.1)) for _ in range(60)]
        await settle()
        found = {}
        for limit in (3.0, 0.1, 2.0, 0.1, 3.0):
            with pytest.raises(TooManyRequests) as refusal:
                await core.acquire(limit)
            found[limit] = refusal.value.retry_after
        assert found == pytest.approx({0.1: 0.4, 2.0: 6.0, 3.0: 6.0}, 0.1)
        await asyncio.wait(others)


@virtual_time
async def test_a_refusal_is_forgotten_when_connections_are_opened() -> None:
    """As where a budget grows: with ten connections the wait is a tenth."""
    budget = Moving(1)
    async with running(Driver(open=slow(1.5)), 1, 10, timeout=100.0, budget=budget) as core:
        await asyncio.sleep(2.0)
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        others = [asyncio.create_task(use(core, 0.1)) for _ in range(60)]
        await settle()
        assert await refused(core, 3.0)
        budget.move(10)
        assert not await refused(core, 3.0)
        await asyncio.wait(others)


@virtual_time
async def test_a_new_queue_does_not_know_the_refusals_of_the_last_one() -> None:
    """What stood for too long was served; then a burst comes that can be served."""
    async with running(Driver(), 1, 1, timeout=1.0, overload="refuse") as core:
        waiting = [asyncio.create_task(use(core, USE)) for _ in range(6)]
        while now() < 3.0 or core.ledger.queue.rate.count % STEP != 1:
            await asyncio.sleep(USE)
            waiting.append(asyncio.create_task(use(core, USE)))
        assert await refused(core, 1.0)
        await asyncio.wait(waiting)
        burst = [asyncio.create_task(core.acquire(0.9)) for _ in range(10)]
        for each in burst:
            conn = await each
            await asyncio.sleep(USE)
            core.release(conn)


@virtual_time
async def test_nobody_is_refused_while_the_pool_may_grow() -> None:
    """Where one more connection may be opened, what was measured says too little."""
    async with running(Driver(), 0, 4) as core:
        for size in (1, 4):
            core.resize(0, size)
            work = [use(core, 0.1, timeout=2.0) for _ in range(70)]
            await asyncio.gather(*work, return_exceptions=True)
        counters = core.runtime.counters
        assert counters.requests_timed_out + counters.refused_deadline < 70


@virtual_time
async def test_few_always_wait() -> None:
    """As many as the square root of `max_size` are never refused: their hand-overs measure."""
    async with running(Driver(), 9, 9) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(200)))
        held = [await core.acquire(None) for _ in range(9)]
        waiting = [asyncio.create_task(core.acquire(0.001)) for _ in range(3)]
        await settle()
        with pytest.raises(TooManyRequests):
            await core.acquire(0.001)
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in found] == [PoolTimeout] * 3
        for conn in held:
            core.release(conn)


@virtual_time
async def test_a_waiter_that_would_be_too_late_makes_room() -> None:
    """A hand-over passes over a waiter whose `within` leaves no time to use the connection."""
    async with running(Driver(), 1, 1) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        held = await core.acquire(None)

        async def hurried() -> None:
            with within(0.9):
                await core.acquire(None)

        first = asyncio.create_task(hurried())
        await settle()
        second = asyncio.create_task(core.acquire(None))
        core.ledger.queue.line.use = 0.1
        await asyncio.sleep(0.85)
        core.release(held)
        with pytest.raises(TooManyRequests) as late:
            await first
        assert late.value.rule == "deadline"
        core.release(await second)


@virtual_time
async def test_the_last_waiter_is_served_however_late() -> None:
    """Where nobody else waits, a connection is better used late than not at all."""
    async with running(Driver(), 1, 1) as core:
        held = await core.acquire(None)

        async def hurried() -> object:
            with within(0.9):
                return await core.acquire(None)

        first = asyncio.create_task(hurried())
        await settle()
        core.ledger.queue.line.use = 0.1
        await asyncio.sleep(0.85)
        core.release(held)
        core.release(await first)  # type: ignore[arg-type]


class TestWithin:
    """`asyncpool.within`."""

    @virtual_time
    async def test_a_wait_ends_at_the_deadline(self) -> None:
        """It does with `PoolTimeout`, however long the pool's own limit is."""
        async with running(Driver(), 1, 1, timeout=30.0) as core:
            held, begun = await core.acquire(None), now()
            with within(2.0), pytest.raises(PoolTimeout):
                await core.acquire(None)
            assert now() - begun == pytest.approx(2.0, abs=0.001)
            core.release(held)

    @virtual_time
    async def test_the_earliest_deadline_holds(self) -> None:
        """An inner block can only shorten the time; what it does not give is the outer one's."""
        async with running(Driver(), 1, 1) as core:
            held, begun = await core.acquire(None), now()
            with within(1.0, priority=3, flow="a"), within(5.0):
                waiting = asyncio.ensure_future(core.acquire(None))
                await settle()
            (waiter,) = core.ledger.queue
            assert waiter.place == (3, "a")
            with pytest.raises(PoolTimeout):
                await waiting
            assert now() - begun == pytest.approx(1.0, abs=0.001)
            core.release(held)

    @virtual_time
    async def test_nothing_is_left_after_the_block(self) -> None:
        """A request after the block has the pool's limit again."""
        async with running(Driver(), 1, 1, timeout=3.0) as core:
            held = await core.acquire(None)
            with within(1.0):
                pass
            begun = now()
            with pytest.raises(PoolTimeout):
                await core.acquire(None)
            assert now() - begun == pytest.approx(3.0, abs=0.001)
            core.release(held)

    @virtual_time
    async def test_no_time_left_fails_at_once(self) -> None:
        """So it does where the deadline has passed."""
        async with running(Driver(), 1, 1) as core:
            held = await core.acquire(None)
            with within(1.0):
                await asyncio.sleep(1.5)
                passed = r"within 0 s .*the deadline of asyncpool.within\(\) has passed"
                for limit in (None, 0.5):
                    with pytest.raises(PoolTimeout, match=passed):
                        await core.acquire(limit)
                with pytest.raises(PoolTimeout, match=r"no connection within 0 s \(") as late:
                    await core.acquire(0)
                assert "deadline" not in str(late.value)
            with within(1.0), pytest.raises(PoolTimeout, match="no connection within 0 s") as late:
                await core.acquire(0)
            assert "deadline" not in str(late.value)
            assert snapshot(core).requests_timed_out == 4
            core.release(held)

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"seconds": -1}, ValueError, "seconds"),
            ({"seconds": "1"}, TypeError, "seconds"),
            ({"priority": 1.5}, TypeError, "priority"),
            ({"priority": True}, TypeError, "priority"),
            ({"flow": []}, TypeError, "flow"),
        ],
    )
    def test_bad_arguments(
        self, arguments: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        """Each is an error at the call that names it."""
        with pytest.raises(error, match=text):
            within(**arguments)

    def test_a_block_is_entered_once(self) -> None:
        """Entered again it would lose what it has to restore."""
        block = within(1.0)
        with block, pytest.raises(RuntimeError, match="call within"), block:
            pass


class TestOrder:
    """Priorities and flows."""

    async def _order(self, places: list[tuple[int, str | None]]) -> list[int]:
        """Let requests wait; return the order in which they are served."""
        served: list[int] = []

        async def request(number: int, priority: int, flow: str | None) -> None:
            with within(priority=priority, flow=flow):
                conn = await core.acquire(None)
            served.append(number)
            core.release(conn)

        async with running(Driver(), 1, 1) as core:
            held = await core.acquire(None)
            async with asyncio.TaskGroup() as group:
                for number, place in enumerate(places):
                    group.create_task(request(number, *place))
                    await settle()
                core.release(held)
        return served

    @virtual_time
    async def test_without_either_the_first_is_first(self) -> None:
        """The queue is strictly first in, first out."""
        assert await self._order([(0, None)] * 5) == [0, 1, 2, 3, 4]

    @virtual_time
    async def test_flows_take_turns(self) -> None:
        """Those without a flow are one more flow; within each the order stays."""
        places = [(0, "a"), (0, "a"), (0, "a"), (0, "b"), (0, None), (0, "b"), (0, None)]
        assert await self._order(places) == [0, 3, 4, 1, 5, 6, 2]

    @virtual_time
    async def test_a_higher_priority_is_first(self) -> None:
        """Within a priority the order stays; priorities may be negative."""
        places: list[tuple[int, str | None]] = [(0, None), (-1, None), (2, None), (0, None)]
        assert await self._order([*places, (2, None)]) == [2, 4, 0, 3, 1]

    @virtual_time
    async def test_a_cancelled_waiter_costs_no_turn(self) -> None:
        """The others of its flow move up."""
        served: list[str] = []

        async def request(flow: str, name: str) -> None:
            with within(flow=flow):
                conn = await core.acquire(None)
            served.append(name)
            core.release(conn)

        async with running(Driver(), 1, 1) as core:
            held = await core.acquire(None)
            names = ["a1", "a2", "b1", "a3", "b2"]
            tasks = [asyncio.create_task(request(name[0], name)) for name in names]
            await settle()
            tasks[0].cancel()
            tasks[2].cancel()
            await settle()
            core.release(held)
            await asyncio.gather(*tasks, return_exceptions=True)
            assert served == ["a2", "b2", "a3"]
            assert core.ledger.queue.order is None
            assert list(core.ledger.queue.line.flows) == [None]
