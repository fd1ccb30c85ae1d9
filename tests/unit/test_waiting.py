"""What is noted of requests that wait, and which decisions are remembered."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import anyio
import pytest

from asyncpool._core.admission import REMEMBERED, REMEMBERED_SHARE, Decided, judge
from asyncpool._core.pool import Core
from asyncpool._core.service_rate import STEP, ServiceRate
from asyncpool._core.waiter import Waiter
from asyncpool.errors import PoolTimeout, TooManyRequests
from tests.fake import FakeConn
from tests.unit._tools import Driver, now, running, settle, start, virtual_time


def serving(rate: float) -> ServiceRate:
    """The rate of a queue that has served for a hundred seconds until the instant 0."""
    found = ServiceRate()
    found.begin(-100.0)
    for number in range(int(rate * 100)):
        found.note((number + 1) / rate - 100.0)
    return found


async def waits(core: Core[FakeConn], timeout: float = 30.0) -> asyncio.Task[FakeConn]:
    """Let one more request wait."""
    task = start(core, timeout)
    await settle()
    return task


async def end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of waiters ahead of each request that was judged."""
    found: list[int] = []

    def noting(rate: Any, flow: Any, ahead: int, *args: Any, **options: Any) -> Any:
        found.append(ahead)
        return judge(rate, flow, ahead, *args, **options)

    monkeypatch.setattr("asyncpool._core.waiting.judge", noting)
    return found


class TestDecisions:
    """A decision holds for the next requests with the same time limit."""

    @virtual_time
    async def test_while_nothing_is_known_every_sixteenth_request_is_judged(
        self, judged: list[int]
    ) -> None:
        """The first ones that the queue is short for are not."""
        async with running(Driver(), 1, 1) as core:
            held = await core.acquire(None)
            tasks = [await waits(core) for _ in range(40)]
            assert judged == [1, 1 + STEP, 1 + 2 * STEP]
            other = await waits(core, 20.0)
            assert judged[3:] == [40]
            await end(*tasks, other)
            core.release(held)

    @virtual_time
    async def test_a_refusal_is_remembered_for_a_tenth_of_the_time_limit(
        self, judged: list[int]
    ) -> None:
        """Not for a request with another limit, a deadline, or a priority."""
        async with running(Driver(), 1, 1) as core:
            held = await core.acquire(None)
            first = await waits(core, math.inf)
            queue = core.ledger.queue
            queue.rate = serving(1.0)
            for _ in range(3):
                with pytest.raises(TooManyRequests):
                    await core.acquire(2.0)
            assert judged == [1]
            decided = queue.decided[2.0]
            assert decided.refused_from == 1
            assert decided.until == pytest.approx(2.0 * REMEMBERED_SHARE, abs=1e-4)
            await asyncio.sleep(2.0 * REMEMBERED_SHARE + 0.01)
            with pytest.raises(TooManyRequests):
                await core.acquire(2.0)
            with pytest.raises(TooManyRequests):
                await core.acquire(3.0)
            assert judged == [1] * 3
            await end(first)
            core.release(held)

    @virtual_time
    async def test_few_time_limits_are_remembered(self) -> None:
        """Any number of them may be used."""
        async with running(Driver(), 1, 1) as core:
            held = await core.acquire(None)
            tasks, most = [await waits(core)], 0
            for number in range(3 * REMEMBERED):
                tasks.append(await waits(core, 100.0 + number))
                most = max(most, len(core.ledger.queue.decided))
            assert most == REMEMBERED
            await end(*tasks)
            core.release(held)


class TestScopes:
    """The deadlines of anyio's scopes."""

    @virtual_time
    async def test_a_scope_says_until_when_a_connection_is_of_use(self) -> None:
        """It is looked for where a request has to be judged."""
        async with running(Driver(), 1, 1) as core:
            held, queue = await core.acquire(None), core.ledger.queue
            tasks = [await waits(core)]
            queue.decided[9.0] = Decided()

            async def in_scope(seconds: float) -> None:
                with anyio.move_on_after(seconds):
                    await core.acquire(20.0)

            began = now()
            tasks.append(asyncio.create_task(in_scope(5.0)))  # type: ignore[arg-type]
            await settle()
            (_, waiter) = queue
            assert waiter.useful_until == pytest.approx(began + 5.0, abs=1e-4)
            assert (queue.sees_scopes, queue.line.may_be_late) == (True, True)
            assert 9.0 not in queue.decided
            await end(*tasks)
            core.release(held)

    @virtual_time
    async def test_without_a_scope_nothing_is_noted(self) -> None:
        """Nor for one without a deadline."""
        async with running(Driver(), 1, 1) as core:
            held, queue = await core.acquire(None), core.ledger.queue
            tasks = [await waits(core), await waits(core)]
            assert [each.useful_until for each in queue] == [math.inf] * 2
            assert (queue.sees_scopes, queue.line.may_be_late) == (False, False)
            await end(*tasks)
            core.release(held)


class TestCancellations:
    """Requests that had to wait and were cancelled; the patience of callers is learnt from them."""

    @pytest.mark.parametrize(
        ("leased", "age", "counts"),
        [(1, 0.39, 0), (1, 0.45, 1), (0, 0.45, 1), (2, 0.75, 0), (2, 0.85, 1)],
    )
    @virtual_time
    async def test_those_that_came_late_count(self, leased: int, age: float, counts: int) -> None:
        """There were more than four hand-overs for each connection since they came."""
        async with running(Driver(), 1, 1) as core:
            queue = core.ledger.queue
            queue.rate = serving(10.0)
            core.note_cancelled(queue, queue.line, now() - age, leased)
            assert queue.line.patience._cancelled == counts

    @virtual_time
    async def test_those_of_one_turn_count_once(self) -> None:
        """As the tasks of a group are cancelled together."""
        async with running(Driver(), 1, 1) as core:
            queue = core.ledger.queue
            queue.rate, patience = serving(10.0), queue.line.patience
            for _ in range(3):
                core.note_cancelled(queue, queue.line, now() - 1.0, 1)
            assert patience._cancelled == 1
            await settle()
            core.note_cancelled(queue, queue.line, now() - 1.0, 1)
            assert patience._cancelled == 2
            await settle()
            core.change(overload=None)
            core.note_cancelled(queue, queue.line, now() - 1.0, 1)
            assert patience._cancelled == 2

    @pytest.mark.parametrize("known", [False, True])
    @virtual_time
    async def test_a_known_patience_makes_waiters_late(self, known: bool) -> None:
        """Then what was decided without it no longer holds."""
        async with running(Driver(), 1, 1) as core:
            queue = core.ledger.queue
            queue.rate = serving(10.0)
            queue.decided[1.0] = Decided()
            if known:
                queue.line.patience.limit = 1.0
            core.note_cancelled(queue, queue.line, now() - 1.0, 1)
            assert (queue.line.may_be_late, bool(queue.decided)) == (known, not known)

    @virtual_time
    async def test_a_timeout_is_no_cancellation(self) -> None:
        """The pool knows the time limits of its requests."""
        async with running(Driver(), 1, 1) as core:
            held, queue = await core.acquire(None), core.ledger.queue
            first = await waits(core)
            queue.rate, patience = serving(10.0), queue.line.patience
            queue.rate.since = now()
            task = await waits(core)
            with pytest.raises(PoolTimeout):
                await core.acquire(2.0)
            assert patience._cancelled == 0
            await end(task)
            assert patience._cancelled == 1
            await end(first)
            core.release(held)

    @pytest.mark.parametrize("waited", [0.5, 2.0])
    @virtual_time
    async def test_a_longer_wait_speaks_against_the_patience(self, waited: float) -> None:
        """One that was served after it."""
        async with running(Driver(), 1, 1) as core:
            held, line = await core.acquire(None), core.ledger.queue.line
            task = await waits(core)
            line.patience.limit = 1.0
            await asyncio.sleep(waited)
            core.release(held)
            core.release(await task)
            assert line.patience._outlasted == (waited > 1.0)


@pytest.mark.parametrize(
    ("useful_until", "patience", "expected"),
    [
        (10.0, math.inf, ("deadline", 4.0, 10.0, 6.0)),
        (10.0, 1.0, ("deadline", 4.0, 10.0, 6.0)),
        (math.inf, 1.0, ("patience", 4.0, 4.0, 0.0)),
        (math.inf, 5.0, ("patience", 4.0, 5.0, 1.0)),
    ],
)
@virtual_time
async def test_the_refusal_of_a_waiter_that_is_too_late(
    useful_until: float, patience: float, expected: tuple[object, ...]
) -> None:
    """It says the rule, the wait that is expected now, and what was left of its time."""
    async with running(Driver(), 1, 1) as core:
        line = core.ledger.queue.line
        line.use, line.patience.limit = 2.0, patience
        waiter: Waiter[Any] = Waiter(1, 0.0, math.inf)
        waiter.line, waiter.useful_until = line, useful_until
        await asyncio.sleep(4.0 - now())
        refusal, left = core.late_refusal(waiter, 6, 3)
        found = (refusal.rule, refusal.expected_wait, refusal.retry_after, left)
        assert found == pytest.approx(expected)
        assert core.late_refusal(waiter, 2, 0)[0].expected_wait == pytest.approx(4.0)


@virtual_time
async def test_the_first_refusal_of_an_overload_is_an_event() -> None:
    """The next one after ten calm seconds begins another overload."""
    async with running(Driver(), 1, 1, max_waiting=1) as core:
        held = await core.acquire(None)
        waiting = await waits(core, 100.0)
        for pause, number in ((0.0, 1), (9.0, 1), (9.0, 1), (11.0, 2)):
            await asyncio.sleep(pause)
            with contextlib.suppress(TooManyRequests):
                await core.acquire(None)
            events = [each for each in core.runtime.events.last if each.kind == "overload"]
            assert len(events) == number
            assert events[0].text.startswith("refusing requests: 1 request is already waiting")
        await end(waiting)
        core.release(held)
