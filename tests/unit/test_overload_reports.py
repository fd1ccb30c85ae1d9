"""What snapshots and explanations say of an overloaded pool."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from itertools import cycle
from typing import Any

import pytest

from asyncpool import PoolStats, TooManyRequests, within
from asyncpool._core.pool import Core
from asyncpool._core.service_rate import ServiceRate
from asyncpool._diagnostics.explain import explain
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.insight import WaiterInfo
from asyncpool.stats import since
from tests.fake import FakeConn
from tests.unit._load import USE, Load
from tests.unit._tools import Driver, never, now, ok, running, settle, start, take_all, virtual_time

SIZE = 4
CAPACITY = SIZE / USE
"""The requests that the pool can serve each second."""


@asynccontextmanager
async def loaded(
    times: float = 3.0, *, settings: dict[str, Any] | None = None, **load: Any
) -> AsyncIterator[Core[FakeConn]]:
    """A pool after three seconds of a load that goes on; at the end nobody waits."""
    async with running(Driver(), SIZE, SIZE, **settings or {}) as core:
        task = asyncio.create_task(Load(core, **load).run(times, 4.0))
        await asyncio.sleep(3.0)
        yield core
        await task


def refused(stats: PoolStats) -> dict[str, int]:
    """Return the refused requests by rule, without the rules that refused none."""
    rules = ("full", "deadline", "patience", "standing")
    counts = {rule: getattr(stats, f"refused_{rule}") for rule in rules}
    return {rule: count for rule, count in counts.items() if count}


class TestStats:
    """`PoolStats` of a pool with waiters."""

    @virtual_time
    async def test_without_waiters_the_numbers_of_the_queue_are_zero(self) -> None:
        """A rate without waiters would be that of the requests; what was learnt is kept."""
        async with loaded(deadline=0.5, cancels=True) as core:
            before = snapshot(core)
            await asyncio.sleep(3.0)
            stats = snapshot(core)
            assert (stats.standing, stats.service_rate, stats.expected_wait) == (0.0, 0.0, 0.0)
            assert stats.patience == before.patience < 1.0
        async with loaded(0.3) as core:
            stats = snapshot(core)
            assert (stats.patience, stats.requests_refused) == (math.inf, 0)

    @virtual_time
    async def test_waiters_of_which_none_was_served_give_no_rate(self) -> None:
        """Only the time for which they wait is known."""
        async with running(Driver(), SIZE, SIZE) as core:
            conns = await take_all(core)
            waiting = start(core)
            await asyncio.sleep(7.0)
            stats = snapshot(core)
            assert stats.standing == pytest.approx(7.0, abs=0.001)
            assert (stats.service_rate, stats.expected_wait) == (0.0, 0.0)
            for conn in conns:
                core.release(conn)
            core.release(await waiting)
            assert snapshot(core).standing == 0.0

    @virtual_time
    async def test_the_rate_is_what_the_pool_can_serve(self) -> None:
        """Not what is requested; and the wait is that of the queue at this rate."""
        async with loaded() as core:
            stats = snapshot(core)
            assert stats.service_rate == pytest.approx(CAPACITY, rel=0.1)
            wait = (stats.waiting + 1) / stats.service_rate
            assert stats.expected_wait == pytest.approx(wait)
            assert 2.0 < stats.standing <= 3.0
            assert refused(stats) == {"deadline": stats.requests_refused}
            assert stats.requests_refused > CAPACITY

    @virtual_time
    async def test_the_expected_wait_is_that_of_the_error(self) -> None:
        """A refused caller and a dashboard read the same number."""
        async with loaded(settings={"max_waiting": 30, "timeout": 1.0}) as core:
            waiting = [start(core, 9.0) for _ in range(30 - core.ledger.waiting)]
            await settle()
            before = snapshot(core)
            with pytest.raises(TooManyRequests) as full:
                await core.acquire(9.0)
            assert full.value.rule == "full"
            core.change(max_waiting=0)
            with pytest.raises(TooManyRequests) as late:
                await core.acquire(before.expected_wait / 2)
            assert late.value.expected_wait == pytest.approx(before.expected_wait, rel=0.1)
            for task in waiting:
                core.release(await task)

    @virtual_time
    async def test_a_learnt_patience_is_reported(self) -> None:
        """It is the age at which the callers are cancelled."""
        async with loaded(deadline=0.5, cancels=True) as core:
            stats = snapshot(core)
            assert stats.patience == pytest.approx(0.5, rel=0.1)
            assert stats.refused_patience > 0

    @virtual_time
    async def test_refused_requests_are_counted_by_rule(self) -> None:
        """`requests_refused` is their sum; it is part of the failed requests."""
        async with loaded(settings={"overload": "refuse", "max_waiting": 12}) as core:
            first = snapshot(core)
            core.change(max_waiting=0)
            await asyncio.sleep(0.5)
            second = snapshot(core)
            assert refused(first).keys() >= {"full"}
            assert refused(second).keys() >= {"full", "standing"}
            for stats in (first, second):
                assert sum(refused(stats).values()) == stats.requests_refused
                assert stats.requests_refused <= stats.requests_failed
            assert since(second, first).requests_refused > 0
            assert since(second, first).service_rate == second.service_rate

    @virtual_time
    async def test_with_priorities_the_numbers_are_of_those_without(self) -> None:
        """The requests of a high priority take a part of what the pool can serve."""
        turns = cycle([nullcontext] * 4 + [lambda: within(priority=5)])

        def limits() -> AbstractContextManager[object]:
            return next(turns)()

        async with loaded(limits=limits) as core:
            stats = snapshot(core)
            assert core.ledger.queue.order is not None
            rate = CAPACITY * (1 - 3.0 / 5)
            assert stats.service_rate == pytest.approx(rate, rel=0.25)
            assert stats.expected_wait == pytest.approx(1.0, rel=0.4)
            assert 2.0 < stats.standing <= 3.0

    @virtual_time
    async def test_with_flows_a_request_without_one_waits_for_its_turn_only(self) -> None:
        """Nearly all requests are of one flow, which takes every other turn."""
        turns = cycle([lambda: within(flow="busy")] * 9 + [nullcontext])

        def limits() -> AbstractContextManager[object]:
            return next(turns)()

        async with loaded(limits=limits) as core:
            stats = snapshot(core)
            ahead = core.ledger.queue.plain.ahead
            assert stats.expected_wait * stats.service_rate == pytest.approx(ahead + 1)
            assert ahead + 1 < stats.waiting / 4
            assert stats.service_rate == pytest.approx(CAPACITY, rel=0.1)

    @virtual_time
    async def test_a_snapshot_that_is_disturbed_by_the_loop_has_no_rate(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another thread may read the measurements while the loop begins a new one."""

        def changed(*_: object) -> None:
            raise IndexError

        async with loaded() as core:
            assert snapshot(core, flush=False).service_rate > 0
            monkeypatch.setattr(ServiceRate, "measure", changed)
            stats = snapshot(core, flush=False)
            monkeypatch.undo()
            assert (stats.service_rate, stats.expected_wait) == (0.0, 0.0)
            assert stats.waiting == core.ledger.waiting > 0

    @virtual_time
    async def test_a_connect_that_is_under_way_shortens_the_expected_wait(self) -> None:
        """As for the decision whether a request is refused."""
        async with loaded() as core:
            queue = core.ledger.queue
            alone, twice = (queue.pace(1.0, leased=4, coming=each) for each in (0, 4))
            assert twice.expected_wait == pytest.approx(alone.expected_wait / 2)
            assert alone.service_rate == twice.service_rate > 0


class TestExplain:
    """`explain()` of a pool that is overloaded, or was."""

    @virtual_time
    async def test_an_overload_is_explained(self) -> None:
        """How many were refused and why, how the others wait, and what to do."""
        async with loaded() as core:
            found = explain(core)
            refusals, queue = found.overload
            stats = found.stats
            assert refusals.startswith(f"{stats.requests_refused} of {stats.requests} requests")
            assert f": {stats.refused_deadline} could not have been served within" in refusals
            assert "the last one 0.0 s ago" in refusals
            assert f"not been empty for {stats.standing:.1f} s: " in queue
            assert f"{stats.service_rate:.3g} requests a second are served" in queue
            assert f"would wait for {stats.expected_wait:.3g} s" in queue
            (event,) = (each for each in found.events if each.kind == "overload")
            assert event.text.startswith("refusing requests: overloaded: it could not be served")
            advice = " ".join(found.advice)
            assert "each connection for a shorter time" in advice
            assert 'set overload="refuse"' in advice
            assert "503" in advice
            assert "return them sooner" not in advice
            assert f"overload: {refusals}\noverload: {queue}\n" in str(found)
            plain = found.as_dict()
            assert plain["overload"] == list(found.overload)
            assert plain["stats"]["patience"] is None
            assert json.loads(json.dumps(plain, allow_nan=False)) == plain

    @virtual_time
    async def test_what_callers_are_found_to_do_is_said(self) -> None:
        """With the number of those refused for it."""
        async with loaded(deadline=0.5, cancels=True) as core:
            refusals, _, callers = explain(core).overload
            assert "before their callers would have been cancelled" in refusals
            assert callers.startswith("callers cancel their requests after about 0.")

    @virtual_time
    async def test_a_pool_that_refuses_is_not_advised_to(self) -> None:
        """The other advice remains."""
        async with loaded(settings={"overload": "refuse"}) as core:
            found = explain(core)
            assert "a wait queue that did not drain" in found.overload[0]
            assert "overload=" not in " ".join(found.advice)
            assert "503" in " ".join(found.advice)

    @virtual_time
    async def test_an_overload_is_over_after_ten_seconds_without_a_refusal(self) -> None:
        """The counters stay."""
        async with loaded() as core:
            await asyncio.sleep(10.0)
            (refusals,) = explain(core).overload
            assert "the last one 9." in refusals
            await asyncio.sleep(2.0)
            found = explain(core)
            assert found.overload == ()
            assert "503" not in str(found)
            assert found.stats.requests_refused > 0

    @virtual_time
    async def test_a_queue_that_does_not_drain_is_an_overload_though_nobody_is_refused(
        self,
    ) -> None:
        """Here each request may wait for as long as it likes."""
        async with loaded(1.5, deadline=1000.0, settings={"timeout": 2.0}) as core:
            (queue,) = explain(core).overload
            assert queue.startswith("the wait queue has not been empty for")
            assert 'set overload="refuse"' in str(explain(core))

    @virtual_time
    async def test_a_peak_that_the_queue_takes_is_no_overload(self) -> None:
        """The queue has waiters for less than the time limit of the requests."""
        async with loaded(1.5, deadline=1000.0) as core:
            found = explain(core)
            assert found.stats.service_rate > 0
            assert found.stats.standing > 1.0
            assert found.overload == ()
            assert "return them sooner" in found.advice[0]

    @virtual_time
    async def test_a_closed_pool_is_not_overloaded(self) -> None:
        """Whatever it has refused before."""
        async with loaded() as core:
            assert explain(core).overload
        assert now() - core.refused_at < 5.0
        found = explain(core)
        assert found.overload == ()
        assert found.advice == ("the pool is closed: create a new one",)

    @virtual_time
    async def test_a_queue_that_nothing_is_handed_to_is_no_overload(self) -> None:
        """The holders do not return their connections; refusing would not help."""
        async with running(Driver(), SIZE, SIZE, timeout=2.0) as core:
            conns = await take_all(core)
            waiting = start(core, 60.0)
            await asyncio.sleep(9.0)
            found = explain(core)
            assert found.overload == ()
            assert "return them sooner" in found.advice[0]
            core.release(conns[0])
            await waiting

    @virtual_time
    async def test_waits_for_connects_that_do_not_end_are_no_overload(self) -> None:
        """The pool has room for more connections, so the number of requests is not the cause."""
        driver = Driver(open=never)
        driver.script["open"].append(ok)
        async with running(driver, 1, 1000, timeout=2.0) as core:
            task = asyncio.create_task(Load(core, deadline=1000.0).run(2 / 1000, 5.0))
            await asyncio.sleep(4.0)
            stats = snapshot(core)
            assert stats.service_rate == pytest.approx(1 / USE, rel=0.1)
            assert stats.standing > core.settings.timeout
            assert explain(core).overload == ()
            await task

    @virtual_time
    async def test_waiters_show_their_priority_and_their_flow(self) -> None:
        """They are listed as they are served: the highest first, flows in turn."""
        async with running(Driver(), SIZE, SIZE) as core:
            conns = await take_all(core)
            waiting = []
            for priority, flow in ((0, None), (0, "a"), (0, "a"), (0, 7), (5, "b"), (5, "b")):
                with within(priority=priority, flow=flow):
                    waiting.append(start(core))
                    waiting[-1].set_name(f"{priority} {flow} {len(waiting)}")
                await settle()
            found = explain(core).waiters
            assert [(each.priority, each.flow) for each in found] == [
                (5, "b"),
                (5, "b"),
                (0, None),
                (0, "a"),
                (0, "7"),
                (0, "a"),
            ]
            text = str(explain(core))
            assert "5 b 5, priority 5, flow b" in text
            assert "0 None 1\n" in text
            served: list[str] = []
            for conn in [*conns, *conns[:2]]:
                core.release(conn)
                await settle()
                served += [task.get_name() for task in waiting if task.done()]
                waiting = [task for task in waiting if not task.done()]
            assert served == [each.task for each in found]

    @virtual_time
    async def test_waiters_without_either_show_neither(self) -> None:
        """As in a pool whose callers do not use `within`."""
        async with running(Driver(), SIZE, SIZE) as core:
            conns = await take_all(core)
            waiting = start(core)
            await settle()
            (waiter,) = explain(core).waiters
            assert waiter == WaiterInfo(waiter.age, waiter.task, waiter.waits_at)
            core.release(conns[0])
            await waiting
