"""Deadlocks, forgotten connections, and leases that last too long."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from asyncpool._core.entry import Entry
from asyncpool._core.lease import Lease
from asyncpool._core.lease_monitor import PAUSE
from asyncpool._core.pool import Core
from asyncpool.errors import PoolDeadlock, PoolTimeout
from tests._tools import acquire_now
from tests.fake import FakeConn
from tests.unit._tools import Driver, now, running, settle, start, virtual_time


async def nested(core: Core[FakeConn], depth: int, pause: float = 0.0) -> float:
    """Hold `depth` connections at once, each in a block; return the instant of the last lease."""
    entry = await core.acquire_entry(None, Lease.new())
    try:
        await asyncio.sleep(pause)
        return now() if depth == 1 else await nested(core, depth - 1, pause)
    finally:
        core.release(entry.conn)


class TestDeadlock:
    @virtual_time
    async def test_a_task_that_waits_for_its_own_connection_gets_a_deadlock_error(self) -> None:
        """The error comes long before the timeout and says where the task waits."""
        async with running(Driver(), 1, 1) as core:
            task = asyncio.create_task(nested(core, 2), name="greedy")
            with pytest.raises(PoolDeadlock, match="deadlock: every connection") as caught:
                await task
            assert now() == pytest.approx(PAUSE, abs=0.001)
            assert list(caught.value.holders) == ["greedy"]
            assert "nested" in caught.value.holders["greedy"][-1]
            assert isinstance(caught.value, PoolTimeout)
            assert core.runtime.counters.requests_failed == 1

    @virtual_time
    async def test_the_last_of_several_gets_the_error_and_the_others_continue(self) -> None:
        """One block that ends is enough for the next."""
        async with running(Driver(), 4, 4) as core:
            work = [nested(core, 2, 0.01) for _ in range(4)]
            ends = await asyncio.gather(*work, return_exceptions=True)
            assert sorted(type(end).__name__ for end in ends) == ["PoolDeadlock", *["float"] * 3]

    @virtual_time
    async def test_a_lease_that_is_meant_to_last_hides_no_deadlock(self) -> None:
        """It does not end, so the others wait for one another as if it were not there."""
        async with running(Driver(), 2, 2, timeout=1.0) as core:
            standing = await core.acquire_entry(None, Lease.new())
            core.ledger.make_standing(standing)
            with pytest.raises(PoolDeadlock):
                await nested(core, 2)
            core.discard(standing.conn)

    @virtual_time
    async def test_where_all_leases_are_meant_to_last_there_is_no_deadlock(self) -> None:
        """No task waits for itself; the request has its timeout."""
        async with running(Driver(), 1, 1, timeout=1.0) as core:
            standing = await core.acquire_entry(None, Lease.new())
            core.ledger.make_standing(standing)
            held = r"1 of the leased held by pool.listen\(\)"
            with pytest.raises(PoolTimeout, match=held) as caught:
                await core.acquire(None)
            assert not isinstance(caught.value, PoolDeadlock)
            core.discard(standing.conn)

    @virtual_time
    async def test_there_is_no_deadlock_while_one_of_the_holders_works(self) -> None:
        """Its work may take any time; the waiters have their timeout."""
        async with running(Driver(), 2, 2, timeout=60.0) as core:
            busy = asyncio.create_task(nested(core, 1, 50.0))
            await settle()
            assert await nested(core, 2) == pytest.approx(50.0)
            await busy

    @virtual_time
    async def test_leases_outside_a_block_are_no_deadlock(self) -> None:
        """A producer that hands each connection to a worker waits for the workers."""
        async with running(Driver(), 2, 2) as core:

            async def work(conn: FakeConn) -> None:
                await asyncio.sleep(3.0)
                core.release(conn)

            for take_now, ends_at in ((True, 9.0), (False, 18.0)):
                workers = [
                    asyncio.create_task(
                        work((acquire_now(core) if take_now else None) or await core.acquire(None))
                    )
                    for _ in range(6)
                ]
                await asyncio.gather(*workers)
                assert now() == pytest.approx(ends_at)

    @virtual_time
    async def test_a_lease_bound_to_a_block_counts(self) -> None:
        """The lease was made by a bare `acquire` before."""
        async with running(Driver(), 1, 1) as core:
            conn = await core.acquire(None)
            assert core.bind(conn) is core.lease_of(conn)
            with pytest.raises(PoolDeadlock):
                await core.acquire(None)
            core.release(conn)

    @virtual_time
    async def test_there_is_no_deadlock_while_a_connection_is_opened_or_cleaned(self) -> None:
        """That connection will serve a waiter."""
        driver = Driver(reset=lambda: asyncio.sleep(2.0))
        async with running(driver, 2, 2, timeout=60.0) as core:
            conn = await core.acquire(None)
            conn.clean = False
            core.release(conn)
            assert await nested(core, 2) == pytest.approx(2.0)

    @virtual_time
    async def test_deadlocks_are_not_searched_while_connections_are_leased(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lease was made between two checks."""
        looked: list[float] = []
        async with running(Driver(), 1, 1) as core:
            monkeypatch.setattr(core.lease_monitor, "_break_deadlock", lambda: looked.append(now()))
            await asyncio.gather(*(nested(core, 1, 0.2) for _ in range(10)))
            assert looked == []
            busy = asyncio.create_task(nested(core, 1, 1.0))
            await settle()
            await nested(core, 1)
            assert looked
            await busy

    @virtual_time
    async def test_a_deadlock_is_found_although_other_tasks_wait_too(self) -> None:
        """A waiter that holds no connection is served when the deadlock ends."""
        async with running(Driver(), 1, 1) as core:
            task = asyncio.create_task(nested(core, 2, 0.01))
            await settle()
            assert await nested(core, 1) < 1.0
            with pytest.raises(PoolDeadlock):
                await task

    @virtual_time
    async def test_without_waiters_there_are_no_checks(self) -> None:
        """Waiters start the timer."""
        async with running(Driver(), 1, 1) as core:
            conn = await core.acquire(None)
            waiting = asyncio.create_task(nested(core, 1))
            await settle()
            core.release(conn)
            await waiting
            assert core.lease_monitor.timer.at < math.inf
            await asyncio.sleep(PAUSE)
            assert core.lease_monitor.timer.at == math.inf


class TestForgotten:
    @pytest.mark.parametrize("waited_for", [True, False])
    @virtual_time
    async def test_a_forgotten_connection_is_reclaimed(self, waited_for: bool) -> None:
        """This happens at the next check if a request waits, else in the next round."""
        told: list[tuple[str, str]] = []

        def on_leak(entry: Entry[Any], what: str) -> None:
            told.append((str(entry.lease.holder), what))

        driver = Driver()
        async with running(
            driver, 1, 1, upkeep=True, ping_interval=20.0, on_leak=on_leak, timeout=30.0
        ) as core:

            async def forget() -> None:
                conn = await core.acquire(None)
                conn.clean = False
                await asyncio.sleep(5.0)

            await asyncio.create_task(forget(), name="careless")
            driver.conns.clear()
            if waited_for:
                await nested(core, 1)
                assert now() == pytest.approx(5.0 + PAUSE, abs=0.001)
                assert core.runtime.counters.use_time == pytest.approx(5.0 + PAUSE, abs=0.001)
            else:
                await asyncio.sleep(41.0)
                assert core.ledger.idle
            assert told == [("careless", "was never returned and is reclaimed")]
            assert core.runtime.counters.leaks == 1
            assert driver.times("reset")

    @virtual_time
    async def test_a_connection_of_a_block_is_not_reclaimed(self) -> None:
        """This holds although the block was entered by hand and its task has ended."""
        driver = Driver()
        async with running(driver, 1, 1) as core:

            async def enter() -> Entry[FakeConn]:
                return await core.acquire_entry(None, Lease.new())

            entry = await asyncio.create_task(enter())
            driver.conns.clear()
            with pytest.raises(PoolTimeout):
                await core.acquire(5.0)
            core.release(entry.conn)

    @virtual_time
    async def test_a_listening_connection_is_not_reclaimed(self) -> None:
        """Its notification handlers work without a holder."""
        driver = Driver()
        async with running(driver, 1, 1, is_listening=lambda conn: conn.number == 1) as core:

            async def forget() -> None:
                await core.acquire(None)

            await asyncio.create_task(forget())
            driver.conns.clear()
            with pytest.raises(PoolTimeout):
                await core.acquire(5.0)

    @virtual_time
    async def test_a_connection_that_is_listened_on_is_not_reclaimed(self) -> None:
        """It is asked of the connection whether it is."""
        asked: list[FakeConn] = []
        driver = Driver()

        def is_listening(conn: FakeConn) -> bool:
            asked.append(conn)
            return True

        async with running(driver, 1, 1, is_listening=is_listening) as core:

            async def forget() -> None:
                await core.acquire(None)

            await asyncio.create_task(forget())
            core.lease_monitor.reclaim()
            assert asked == driver.conns
            assert len(core.ledger.leased) == 1

    @virtual_time
    async def test_a_reclaimed_connection_counts_as_just_used(self) -> None:
        """`max_idle` and `ping_interval` start at that instant."""
        driver = Driver()
        async with running(driver, 0, 1) as core:

            async def forget() -> None:
                await core.acquire(None)

            await asyncio.create_task(forget())
            driver.conns.clear()
            await asyncio.sleep(100.0)
            core.lease_monitor.reclaim()
            await settle()
            (entry,) = core.ledger.idle
            assert entry.used_at == pytest.approx(100.0, abs=0.001)
            assert core.runtime.counters.use_time == pytest.approx(100.0, abs=0.001)

    @virtual_time
    async def test_checks_continue_as_long_as_a_request_waits(self) -> None:
        """Here the request came first, and the holder ended later."""
        driver = Driver()
        async with running(driver, 1, 1) as core:

            async def forget() -> None:
                conn = await core.acquire(None)
                await asyncio.sleep(5.0)
                assert conn

            await asyncio.sleep(10.0)
            careless = asyncio.create_task(forget())
            await settle()
            driver.conns.clear()
            assert await nested(core, 1) == pytest.approx(15.0, abs=PAUSE + 0.01)
            assert core.runtime.counters.use_time == pytest.approx(5.0, abs=PAUSE + 0.01)
            await careless

    @virtual_time
    async def test_a_connection_that_is_still_referenced_is_not_reclaimed(self) -> None:
        """A task may end and leave its connection to another."""
        async with running(Driver(), 1, 1) as core:
            conn = await start(core)
            with pytest.raises(PoolTimeout):
                await core.acquire(5.0)
            assert core.runtime.counters.leaks == 0
            core.release(conn)

    @virtual_time
    async def test_the_result_of_a_task_is_a_reference(self) -> None:
        """Until it is read, the task refers to the connection."""
        async with running(Driver(), 1, 1) as core:
            task = start(core)
            await settle()
            with pytest.raises(PoolTimeout):
                await core.acquire(5.0)
            assert core.runtime.counters.leaks == 0
            core.release(task.result())


class TestOverdue:
    @virtual_time
    async def test_a_long_lease_is_reported_once(self) -> None:
        """The report comes at `leak_timeout`; the next lease is reported anew."""
        told: list[tuple[float, str]] = []

        def on_leak(_: Entry[Any], what: str) -> None:
            told.append((round(now(), 3), what))

        async with running(Driver(), 2, 2, upkeep=True, leak_timeout=10.0, on_leak=on_leak) as core:
            await asyncio.sleep(3.0)
            for _ in range(2):
                conn = await core.acquire(None)
                await asyncio.sleep(35.0)
                core.release(conn)
            what = "has been in use for longer than leak_timeout"
            assert [each for _, each in told] == [what, what]
            assert [at - since for (at, _), since in zip(told, (3.0, 38.0), strict=True)] == [
                pytest.approx(10.0, abs=0.3)
            ] * 2
            assert core.runtime.counters.leaks == 2

    @virtual_time
    async def test_a_leak_callback_that_fails_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The round continues."""

        def on_leak(*_: object) -> None:
            raise ZeroDivisionError

        async with running(Driver(), 1, 1, upkeep=True, leak_timeout=1.0, on_leak=on_leak) as core:
            conn = await core.acquire(None)
            await asyncio.sleep(2.0)
            core.release(conn)
        assert "the leak callback failed" in caplog.text
