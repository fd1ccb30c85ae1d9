"""What a refusal must not do: hang a loop, harm others, or outlast its reason."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from random import Random

import pytest

from asyncpool import within
from asyncpool._core.wait_queue import WaitQueue
from asyncpool._core.waiter import Waiter
from asyncpool.errors import PoolTimeout, TooManyRequests
from tests.unit._load import USE, Load
from tests.unit._tools import Driver, now, running, settle, use, virtual_time
from tests.unit.test_overload import of


@virtual_time
async def test_code_that_tries_again_at_once_does_not_stop_the_loop() -> None:
    """A refusal comes in the next turn of the event loop."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        others = [asyncio.create_task(use(core, 0.1)) for _ in range(40)]
        await settle()
        tries = 0

        async def try_again() -> None:
            nonlocal tries
            while tries < 1000:
                tries += 1
                try:
                    core.release(await core.acquire(1.0))
                except TooManyRequests:
                    continue

        hasty = asyncio.create_task(try_again())
        await asyncio.sleep(0)
        assert tries < 5
        await hasty
        await asyncio.gather(*others)


@pytest.mark.parametrize("cancels", [1, 2])
@virtual_time
async def test_a_request_that_is_cancelled_while_it_is_refused(cancels: int) -> None:
    """It raises CancelledError, and counts as cancelled."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(40)))
        others = [asyncio.create_task(use(core, 0.1)) for _ in range(40)]
        await settle()
        task = asyncio.create_task(core.acquire(1.0))
        await asyncio.sleep(0)
        for _ in range(cancels):
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        counters = core.runtime.counters
        assert (counters.requests_cancelled, counters.requests_failed) == (1, 0)
        await asyncio.gather(*others)


@virtual_time
async def test_without_a_rule_all_wait() -> None:
    """With `overload=None` nobody is refused or passed over, whatever the load."""
    async with running(Driver(), 1, 1, overload=None, timeout=1.0) as core:
        await asyncio.gather(*(use(core, 0.1) for _ in range(8)))
        found = await asyncio.gather(*(use(core, 0.1) for _ in range(40)), return_exceptions=True)
        kinds = [type(each) for each in found]
        assert (kinds.count(float), kinds.count(PoolTimeout)) == (10, 30)
        load = Load(core, cancels=True)
        await load.run(3.0, 4.0)
        assert core.ledger.queue.line.patience.limit == math.inf
        assert core.runtime.counters.refused_patience == 0


@virtual_time
async def test_the_head_that_is_looked_at_is_the_one_that_is_served() -> None:
    """With priorities too: what is late is failed when the head is looked at, not later."""
    queue: WaitQueue[str] = WaitQueue(lambda _, is_late: TimeoutError(is_late), now)
    waiters = [Waiter[str](queue.ticket(), now(), math.inf) for _ in range(3)]
    for waiter, priority in zip(waiters, (1, 1, 0), strict=True):
        waiter.place = priority, None
        queue.admit(waiter)
    first, second, _ = waiters
    first.useful_until, first.line.use = now() + 0.001, 1.0
    await asyncio.sleep(0.0008)
    head = queue.head_in_time()
    assert head is second
    assert first.error is not None
    assert queue.serve("item")
    assert second.served == "item"


@virtual_time
async def test_a_first_flow_does_not_change_what_is_known_of_the_others() -> None:
    """In a queue that has stood for long, one request with a flow has no others refused."""
    async with running(Driver(), 10, 10, timeout=30.0) as core:
        load = Load(core, deadline=1.0)

        async def one_flow() -> None:
            await asyncio.sleep(4.0)
            with of("one"):
                await use(core, USE)

        task = asyncio.create_task(one_flow())
        found = await load.run(3.0, 8.0)
        await task
        assert found.share(3.0) > 0.95


@virtual_time
async def test_a_use_is_as_long_with_flows_as_without() -> None:
    """The mean use is that of all requests, not of one flow's share of the rate."""
    async with running(Driver(), 10, 10, timeout=1.0) as core:
        loads = [
            Load(core, limits=partial(of, f"flow-{number}"), random=Random(number))
            for number in range(10)
        ]
        await asyncio.gather(*(load.run(0.3, 4.0) for load in loads))
        assert core.ledger.queue.line.use == pytest.approx(USE, rel=0.3)


@virtual_time
async def test_a_limit_that_nothing_confirms_is_doubled_in_a_full_queue() -> None:
    """Callers gave up after 0.5 s; those of now have 30 s, and the queue is never empty.

    It is not forgotten: it may be what keeps callers from being cancelled.
    """
    async with running(Driver(), 10, 10, timeout=30.0) as core:
        await Load(core, cancels=True, deadline=0.5).run(3.0, 3.0)
        patience = core.ledger.queue.line.patience
        assert patience.limit == pytest.approx(0.5, rel=0.1)
        stop = now() + 30.0

        async def worker() -> None:
            while now() < stop:
                try:
                    await use(core, USE)
                except TooManyRequests as error:
                    await asyncio.sleep(error.retry_after or 0)

        await asyncio.gather(*(worker() for _ in range(600)))
        assert patience.limit == pytest.approx(2.0, rel=0.1)


@virtual_time
async def test_flows_that_have_left_are_forgotten() -> None:
    """Thousands of keys whose requests are out of time, while nothing is handed over."""
    async with running(Driver(), 1, 1, timeout=0.1) as core:
        held = await core.acquire(None)

        async def request(number: int) -> None:
            with within(flow=number), pytest.raises(PoolTimeout):
                await core.acquire(None)

        for number in range(3000):
            asyncio.create_task(request(number))  # noqa: RUF006 - all end in time
            await asyncio.sleep(0.01)
        line = core.ledger.queue.line
        assert len(line.flows) < 300
        assert len(line.turns) < 300
        await asyncio.sleep(1.0)
        core.release(held)


@virtual_time
async def test_a_low_priority_that_is_never_served_is_refused() -> None:
    """Higher ones take all: it is told so, and does not wait in vain."""
    async with running(Driver(), 10, 10) as core:
        high = Load(core, limits=partial(of, None, 1))
        low = Load(core, random=Random(2))
        _, found = await asyncio.gather(high.run(1.5, 8.0), low.run(0.5, 8.0, skip=3.0))
        assert found.ends["TooManyRequests"] > 5 * found.ends["PoolTimeout"]


@virtual_time
async def test_a_first_flow_does_not_make_a_queue_young() -> None:
    """With `overload="refuse"` a queue that has stood for long goes on refusing."""
    async with running(Driver(), 10, 10, overload="refuse", timeout=30.0) as core:
        load = Load(core, deadline=1.0)

        async def one_flow() -> None:
            await asyncio.sleep(4.0)
            with of("one"):
                await use(core, USE)

        task = asyncio.create_task(one_flow())
        found = await load.run(3.0, 8.0, skip=3.0)
        await task
        assert found.quantile(0.99) < 0.25


@virtual_time
async def test_a_limit_that_nothing_confirms_passes_nobody_over() -> None:
    """Requests that have waited long for a connect are served, though others once gave up."""
    async with running(Driver(), 1, 1, timeout=100.0) as core:
        held = await core.acquire(None)
        patience = core.ledger.queue.line.patience
        patience.limit, patience._trusted_at = 1.0, now()
        core.ledger.queue.line.may_be_late = True
        waiting = [asyncio.create_task(use(core, 0.1)) for _ in range(3)]
        await asyncio.sleep(40.0)
        core.release(held)
        await asyncio.gather(*waiting)
