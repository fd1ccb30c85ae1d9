"""Deadlocks, leases that nobody can return, and those that last too long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncpool._core.entry import Entry
from asyncpool._core.lease_monitor import PAUSE
from asyncpool._core.pool import Core
from asyncpool.errors import PoolDeadlock, PoolTimeout
from tests.sim.fake import FakeConn
from tests.unit._tools import Driver, now, running, settle, virtual_time


async def nested(core: Core[FakeConn], depth: int, pause: float = 0.0) -> float:
    """Hold so many connections at once, each in a block; returns the instant of the last."""
    entry = core.take_now() or await core.acquire_entry(None)
    try:
        await asyncio.sleep(pause)
        return now() if depth == 1 else await nested(core, depth - 1, pause)
    finally:
        core.release(entry.conn)


class TestDeadlock:
    @virtual_time
    async def test_who_waits_for_what_it_holds_itself_is_told(self) -> None:
        """Long before its time is up, with the place where it waits."""
        async with running(Driver(), 1, 1) as core:
            task = asyncio.create_task(nested(core, 2), name="greedy")
            with pytest.raises(PoolDeadlock, match="deadlock: every connection") as caught:
                await task
            assert now() == pytest.approx(PAUSE, abs=0.001)
            assert list(caught.value.holders) == ["greedy"]
            assert "nested" in caught.value.holders["greedy"][-1]
            assert isinstance(caught.value, PoolTimeout)
            assert core.store.counters.requests_failed == 1

    @virtual_time
    async def test_of_several_the_last_is_told_and_the_others_go_on(self) -> None:
        """One block that ends is enough for the next."""
        async with running(Driver(), 4, 4) as core:
            work = [nested(core, 2, 0.01) for _ in range(4)]
            ends = await asyncio.gather(*work, return_exceptions=True)
            assert sorted(type(end).__name__ for end in ends) == ["PoolDeadlock", *["float"] * 3]

    @virtual_time
    async def test_there_is_none_while_one_of_the_holders_works(self) -> None:
        """It may take its time, and the line its time limit."""
        async with running(Driver(), 2, 2, timeout=60.0) as core:
            busy = asyncio.create_task(nested(core, 1, 50.0))
            await settle()
            assert await nested(core, 2) == pytest.approx(50.0)
            await busy

    @virtual_time
    async def test_what_anybody_may_return_is_no_deadlock(self) -> None:
        """A producer that hands each connection to a worker waits for the workers."""
        async with running(Driver(), 2, 2) as core:

            async def work(conn: FakeConn) -> None:
                await asyncio.sleep(3.0)
                core.release(conn)

            for take_now, ends_at in ((True, 9.0), (False, 18.0)):
                workers = [
                    asyncio.create_task(
                        work((take_now and core.acquire_now()) or await core.acquire(None))
                    )
                    for _ in range(6)
                ]
                await asyncio.gather(*workers)
                assert now() == pytest.approx(ends_at)

    @virtual_time
    async def test_what_was_bound_to_a_block_is_its_own_to_return(self) -> None:
        """It was borrowed by a bare `acquire`, and counts from then on."""
        async with running(Driver(), 1, 1) as core:
            conn = await core.acquire(None)
            assert core.bind(conn) == core.lease_number(conn) == 1
            with pytest.raises(PoolDeadlock):
                await core.acquire(None)
            core.release(conn)

    @virtual_time
    async def test_there_is_none_while_a_connection_is_opened_or_cleaned(self) -> None:
        """It will serve somebody."""
        driver = Driver(reset=lambda: asyncio.sleep(2.0))
        async with running(driver, 2, 2, timeout=60.0) as core:
            conn = await core.acquire(None)
            conn.clean = False
            core.release(conn)
            assert await nested(core, 2) == pytest.approx(2.0)

    @virtual_time
    async def test_none_is_looked_for_while_connections_are_lent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody is served between two looks."""
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
    async def test_it_is_found_although_others_wait_too(self) -> None:
        """Who waits and has none is served by it."""
        async with running(Driver(), 1, 1) as core:
            task = asyncio.create_task(nested(core, 2, 0.01))
            await settle()
            assert await nested(core, 1) < 1.0
            with pytest.raises(PoolDeadlock):
                await task

    @virtual_time
    async def test_after_the_line_has_emptied_nobody_looks(self) -> None:
        """The timer is set by who waits."""
        async with running(Driver(), 1, 1) as core:
            conn = await core.acquire(None)
            waiting = asyncio.create_task(nested(core, 1))
            await settle()
            core.release(conn)
            await waiting
            assert core.lease_monitor.timer is not None
            await asyncio.sleep(PAUSE)
            assert core.lease_monitor.timer is None


class TestForgotten:
    @pytest.mark.parametrize("waited_for", [True, False])
    @virtual_time
    async def test_what_nobody_has_any_more_is_taken_back(self, waited_for: bool) -> None:
        """At once when somebody waits for it, else in the next round."""
        told: list[tuple[str, str]] = []

        def on_leak(entry: Entry[Any], what: str) -> None:
            told.append((str(entry.holder), what))

        driver = Driver()
        async with running(
            driver, 1, 1, keeper=True, ping_interval=20.0, on_leak=on_leak, timeout=30.0
        ) as core:

            async def forget() -> None:
                conn = await core.acquire(None)
                conn.clean = False
                core.ledger.leased[conn].kept = [conn]  # as one-shot statements do
                await asyncio.sleep(5.0)

            await asyncio.create_task(forget(), name="careless")
            driver.conns.clear()
            if waited_for:
                await nested(core, 1)
                assert now() == pytest.approx(5.0 + PAUSE, abs=0.001)
                assert core.store.counters.use_time == pytest.approx(5.0 + PAUSE, abs=0.001)
            else:
                await asyncio.sleep(41.0)
                assert core.ledger.idle
            assert told == [("careless", "was never returned and is reclaimed")]
            assert core.store.counters.leaks == 1
            assert driver.times("reset")

    @virtual_time
    async def test_a_block_returns_its_own(self) -> None:
        """Though its task has ended, and nobody has the connection: it was entered by hand."""
        driver = Driver()
        async with running(driver, 1, 1) as core:

            async def enter() -> Entry[FakeConn]:
                return await core.acquire_entry(None)

            entry = await asyncio.create_task(enter())
            driver.conns.clear()
            with pytest.raises(PoolTimeout):
                await core.acquire(5.0)
            core.release(entry.conn)

    @virtual_time
    async def test_one_that_listens_is_of_use(self) -> None:
        """As with handlers of notifications, which nobody holds."""
        driver = Driver()
        async with running(driver, 1, 1, listens=lambda conn: conn.number == 1) as core:

            async def forget() -> None:
                await core.acquire(None)

            await asyncio.create_task(forget())
            driver.conns.clear()
            with pytest.raises(PoolTimeout):
                await core.acquire(5.0)

    @virtual_time
    async def test_what_was_taken_back_is_as_new(self) -> None:
        """It has been used until now, as far as the limits of idle connections go."""
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
            assert core.store.counters.use_time == pytest.approx(100.0, abs=0.001)

    @virtual_time
    async def test_it_is_looked_for_as_long_as_somebody_waits(self) -> None:
        """The waiter came first, and the borrower went later."""
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
            assert core.store.counters.use_time == pytest.approx(5.0, abs=PAUSE + 0.01)
            await careless

    @virtual_time
    async def test_what_somebody_still_has_is_not(self) -> None:
        """A task may end and leave its connection to another."""
        async with running(Driver(), 1, 1) as core:
            conn = await asyncio.create_task(core.acquire(None))
            with pytest.raises(PoolTimeout):
                await core.acquire(5.0)
            assert core.store.counters.leaks == 0
            core.release(conn)

    @virtual_time
    async def test_the_outcome_of_a_task_is_somebodys(self) -> None:
        """Until it is asked for, the task has it."""
        async with running(Driver(), 1, 1) as core:
            task = asyncio.create_task(core.acquire(None))
            await settle()
            with pytest.raises(PoolTimeout):
                await core.acquire(5.0)
            assert core.store.counters.leaks == 0
            core.release(task.result())


class TestOverdue:
    @virtual_time
    async def test_a_long_lease_is_told_once(self) -> None:
        """When it has lasted that long, and again of the next one."""
        told: list[tuple[float, str]] = []

        def on_leak(_: Entry[Any], what: str) -> None:
            told.append((round(now(), 3), what))

        async with running(Driver(), 2, 2, keeper=True, leak_timeout=10.0, on_leak=on_leak) as core:
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
            assert core.store.counters.leaks == 2

    @virtual_time
    async def test_a_teller_that_fails_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """And the round goes on."""

        def on_leak(*_: object) -> None:
            raise ZeroDivisionError

        async with running(Driver(), 1, 1, keeper=True, leak_timeout=1.0, on_leak=on_leak) as core:
            conn = await core.acquire(None)
            await asyncio.sleep(2.0)
            core.release(conn)
        assert "the leak callback failed" in caplog.text
