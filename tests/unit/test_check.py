"""The user's `check` of each connection before it is leased."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import PoolClosed, PoolTimeout
from tests.fake import Broken, FakeConn
from tests.unit._tools import (
    Driver,
    check_alive,
    go_bad,
    never,
    now,
    ok,
    running,
    settle,
    slow,
    start,
    take,
    take_all,
    use,
    virtual_time,
)


class TestCheck:
    @virtual_time
    async def test_every_connection_is_checked_before_it_is_leased(self) -> None:
        """An idle connection is checked too."""
        checked: list[FakeConn] = []

        async def check(conn: FakeConn) -> None:
            checked.append(conn)

        async with running(Driver(), 1, check=check) as core:
            conns = [await take(core)]
            core.release(conns[0])
            conns.append(await take(core))
            assert checked == conns

    @virtual_time
    async def test_a_check_runs_with_the_context_variables_of_its_caller(self) -> None:
        """The check belongs to the request."""
        request: ContextVar[str] = ContextVar("request", default="none")
        found: list[str] = []

        async def check(_: FakeConn) -> None:
            found.append(request.get())

        async with running(Driver(), 1, 1, check=check) as core:
            request.set("mine")
            await use(core)
            assert found == ["mine"]

    @virtual_time
    async def test_after_a_failed_check_the_next_is_tried_at_once(self) -> None:
        """Back-off applies to connects only; no time passes."""
        driver = Driver()
        async with running(driver, 5, 5, check=check_alive) as core:
            good, *bad = [await take(core) for _ in range(5)]
            for conn in (good, *bad):
                core.release(conn)
            go_bad(bad)
            began = now()
            assert await core.acquire(None) is good
            assert now() == began
            assert snapshot(core).lost == 4
            await settle()
            assert core.ledger.size == 5

    @virtual_time
    async def test_when_all_idle_ones_fail_their_check_a_new_one_is_opened_at_once(self) -> None:
        """There is no back-off, because no connect has failed."""
        driver = Driver()
        async with running(driver, 3, 3, check=check_alive) as core:
            conns = await take_all(core)
            for conn in conns:
                core.release(conn)
            go_bad(conns)
            began = now()
            assert await core.acquire(None) not in conns
            assert now() == began

    @virtual_time
    async def test_a_failed_check_is_an_event_and_no_use(self) -> None:
        """Only the lease that the caller got is counted."""
        bad: list[FakeConn] = []

        async def check(conn: FakeConn) -> None:
            if conn in bad:
                raise Broken

        async with running(Driver(), 2, 2, check=check) as core:
            entry = core.ledger.idle[-1]
            entry.uses = 5  # as after five requests
            bad.append(entry.conn)
            core.release(await core.acquire(None))
            events = [(each.kind, each.text) for each in core.runtime.events.last]
            assert ("check failed", "check failed: Broken") in events
            assert core.ledger.leases == 5 + 1

    @virtual_time
    async def test_a_check_that_was_cancelled_is_no_use_and_one_that_fails_later_a_loss(
        self,
    ) -> None:
        """The caller has gone when the check of its connection fails."""

        async def check(_: FakeConn) -> None:
            await asyncio.sleep(1.0)
            raise Broken

        async with running(Driver(), 1, 1, check=check) as core:
            task = start(core)
            await asyncio.sleep(0.5)
            task.cancel()
            await settle()
            stats = snapshot(core)
            assert (stats.requests, stats.requests_cancelled, core.ledger.leases) == (1, 1, 0)
            await asyncio.sleep(1.0)
            assert snapshot(core).lost == 1

    @virtual_time
    async def test_a_check_that_ends_after_close_has_taken_its_connection(self) -> None:
        """It passes, but the connection is closed: the caller gets `PoolClosed`."""

        async def check(_: FakeConn) -> None:
            await asyncio.sleep(1.0)

        async with running(Driver(close=slow(0.2)), 1, 1, check=check) as core:
            task = start(core)
            await asyncio.sleep(0.9)
            closing = asyncio.create_task(core.close(0))
            with pytest.raises(PoolClosed):
                await task
            assert now() == pytest.approx(1.0)
            await closing

    @virtual_time
    async def test_a_request_whose_check_fails_keeps_its_position(self) -> None:
        """It is served before requests that came during its check."""
        driver = Driver()

        async def check(conn: FakeConn) -> None:
            await asyncio.sleep(1.0)
            if conn is driver.conns[0]:
                raise Broken

        async with running(driver, 1, 1, check=check) as core:
            served: list[str] = []

            async def request(name: str) -> None:
                conn = await core.acquire(10.0)
                served.append(name)
                core.release(conn)

            first = asyncio.create_task(request("first"))
            await asyncio.sleep(0.5)
            await asyncio.gather(first, request("second"))
            assert served == ["first", "second"]

    @virtual_time
    async def test_a_timeout_after_a_failed_check_names_the_whole_time_limit(self) -> None:
        """The limit is that of the request, not what was left when it waited again."""
        driver = Driver(open=never)
        driver.script["open"].append(ok)

        async def check(_: FakeConn) -> None:
            await asyncio.sleep(10.0)
            raise Broken

        async with running(driver, 1, 1, check=check) as core:
            with pytest.raises(PoolTimeout, match="within 30 s") as late:
                await core.acquire(30.0)
            assert now() == pytest.approx(30.0)
            assert late.value.timeout == 30.0

    @virtual_time
    async def test_new_connections_that_fail_their_check_cause_a_back_off(self) -> None:
        """A failed check of a new connection counts as a failed connect."""

        async def check(conn: FakeConn) -> None:
            raise Broken

        driver = Driver()
        async with running(driver, 0, 4, check=check) as core:
            with pytest.raises(PoolTimeout) as late:
                await core.acquire(5.0)
            assert len(driver.conns) < 20
            assert isinstance(late.value.__cause__, Broken)

    @virtual_time
    async def test_a_check_that_hangs_does_not_outlast_the_deadline(self) -> None:
        """The caller gets its error in time, and the connection is not lost."""
        driver, end = Driver(), asyncio.Event()

        async def check(conn: FakeConn) -> None:
            await end.wait()

        async with running(driver, 1, 1, check=check) as core:
            began = now()
            with pytest.raises(PoolTimeout, match="the check of a connection did not finish"):
                await core.acquire(2.0)
            assert now() - began == pytest.approx(2.0)
            assert not core.ledger.leased
            end.set()
            await settle()
            assert len(core.ledger.idle) == 1
            assert len(driver.conns) == 1

    @virtual_time
    async def test_a_check_that_goes_on_hanging_costs_the_connection(self) -> None:
        """The connection is replaced after `clean_timeout`."""
        driver = Driver()
        hang = True

        async def check(conn: FakeConn) -> None:
            if hang:
                await never()

        async with running(driver, 1, 1, check=check) as core:
            with pytest.raises(PoolTimeout):
                await core.acquire(2.0)
            hang = False
            await asyncio.sleep(core.settings.clean_timeout + 0.1)
            assert driver.conns[0].closed
            assert await core.acquire(1.0) is driver.conns[1]

    @virtual_time
    async def test_a_caller_cancelled_during_its_check_leaks_nothing(self) -> None:
        """The check runs to its end, and the connection becomes idle again."""
        driver = Driver()

        async def check(conn: FakeConn) -> None:
            await asyncio.sleep(1.0)

        async with running(driver, 1, 1, check=check) as core:
            task = start(core)
            await asyncio.sleep(0.5)
            task.cancel()
            await settle()
            assert task.cancelled()
            await asyncio.sleep(1.0)
            assert len(core.ledger.idle) == 1
            assert snapshot(core).requests_cancelled == 1

    @virtual_time
    async def test_with_timeout_zero_a_check_may_take_ping_timeout(self) -> None:
        """`timeout=0` does not wait for a connection, but has to wait for its check."""

        async def check(conn: FakeConn) -> None:
            await asyncio.sleep(1.0)

        async with running(Driver(), 1, 1, check=check, ping_timeout=3.0) as core:
            core.release(await core.acquire(0))
        async with running(Driver(), 1, 1, check=check, ping_timeout=0.5) as core:
            began = now()
            with pytest.raises(PoolTimeout):
                await core.acquire(0)
            assert now() - began == pytest.approx(0.5)
