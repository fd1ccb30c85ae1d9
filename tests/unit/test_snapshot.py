"""The request counters add up at every moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import PoolTimeout
from tests.unit._tools import Driver, lose, running, settle, use, virtual_time


@virtual_time
async def test_a_request_that_waits_again_has_queued_once() -> None:
    """A request counts once even if its connection is lost right after the hand-over."""
    async with running(Driver(), 1, 1) as core:
        conn = await core.acquire(None)
        waiting = asyncio.create_task(core.acquire(None))
        await settle()
        core.release(conn)
        lose(conn)
        await waiting
        stats = snapshot(core)
        assert (stats.requests, stats.requests_queued) == (2, 1)


@virtual_time
async def test_a_request_counts_from_arrival_to_end() -> None:
    """The counters add up between a waiter's deadline and the moment its task gets the error."""
    async with running(Driver(), 1, 1) as core:
        await core.acquire(None)
        waiting = asyncio.create_task(core.acquire(1.0))
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
        waiting = asyncio.create_task(core.acquire(None))
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
                core.release(core.acquire_now() or await core.acquire(None))
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
