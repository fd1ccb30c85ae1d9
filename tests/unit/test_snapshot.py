"""What is told of the requests adds up in every moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import PoolTimeout
from tests.unit._tools import Driver, lose, running, settle, use, virtual_time


@virtual_time
async def test_a_request_that_waits_again_has_queued_once() -> None:
    """It was served a connection that was lost in the same tick."""
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
async def test_a_request_counts_from_its_coming_to_its_end() -> None:
    """Also between the moment in which its time is up and the one in which its task learns it."""
    async with running(Driver(), 1, 1) as core:
        await core.acquire(None)
        waiting = asyncio.create_task(core.acquire(1.0))
        await settle()
        end = core.ledger.queue.fail
        seen = []

        def look(waiter: Any, error: BaseException) -> None:
            end(waiter, error)
            seen.append(snapshot(core))

        core.ledger.queue.fail = look  # type: ignore[method-assign]
        with pytest.raises(PoolTimeout):
            await waiting
        for stats in [*seen, snapshot(core)]:
            assert (stats.requests, stats.requests_failed, stats.waiting) == (2, 1, 0)


@virtual_time
async def test_a_request_counts_once_when_the_pool_ends_under_its_hand_over() -> None:
    """It was cancelled, and not served as well, though its connection is closed by now."""
    async with running(Driver(), 1, 1) as core:
        conn = await core.acquire(None)
        waiting = asyncio.create_task(core.acquire(None))
        await settle()
        core.release(conn)
        core.store.discard(core.ledger.leased[conn])  # as `close` does when its time is up
        waiting.cancel()
        await settle()
        stats = snapshot(core)
        assert (stats.requests, stats.requests_cancelled, stats.leased) == (2, 1, 0)


@virtual_time
async def test_the_spread_of_uses_and_waits_has_each_of_them_once() -> None:
    """However many there were between two looks, and with one under way."""
    async with running(Driver(), 1, 1) as core:
        counters = core.store.counters
        for _ in range(3):
            for _ in range(1500):
                core.release(core.acquire_now() or await core.acquire(None))
            conn = await core.acquire(None)
            waiting = [asyncio.create_task(use(core, 0.5)) for _ in range(3)]
            await asyncio.sleep(2.0)
            core.store.sort_times()
            core.release(conn)
            await asyncio.gather(*waiting)
        core.store.sort_times()
        assert counters.use.count == core.ledger.leases == 3 * 1504
        assert counters.use.sum == pytest.approx(counters.use_time)
        assert counters.use.max == pytest.approx(2.0)
        assert counters.wait.count == counters.requests_queued == 9
        assert counters.wait.sum == pytest.approx(counters.wait_time)
        assert counters.wait.max == pytest.approx(3.0)
