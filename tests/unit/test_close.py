"""Close a pool: what it waits for, what it cancels, and its time limit."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import (
    PoolClosed,
)
from tests._tools import acquire_now
from tests.fake import Broken, FakeConn
from tests.unit._tools import (
    Driver,
    fails,
    make_core,
    never,
    now,
    running,
    settle,
    slow,
    start,
    stubborn,
    take,
    take_all,
    use,
    virtual_time,
)


class TestClose:
    @virtual_time
    async def test_an_idle_pool_closes_at_once(self) -> None:
        """There is nothing to wait for."""
        driver = Driver()
        core = make_core(driver, 3)
        core.open()
        await settle()
        began = now()
        await core.close(5.0)
        assert now() == began
        assert all(conn.closed for conn in driver.conns)
        assert len(driver.conns) == 3

    @virtual_time
    async def test_close_waits_for_leased_connections(self) -> None:
        """The wait lasts up to the time limit, and no longer than necessary."""
        async with running(Driver(), 1, 1) as core:
            user = asyncio.create_task(use(core, 2.0))
            await settle()
            began = now()
            await core.close(5.0)
            assert now() - began == pytest.approx(2.0, abs=0.01)
            await user

    @virtual_time
    async def test_close_waits_for_leased_connections_although_the_pool_was_empty_before(
        self,
    ) -> None:
        """An earlier failed connect or loss of all connections does not matter."""
        driver = Driver()
        driver.script["open"].append(fails)
        async with running(driver, 0, 1) as core:
            user = asyncio.create_task(use(core, 2.0))
            await asyncio.sleep(1.0)
            assert core.ledger.leased
            await core.close(5.0)
            await user

    @virtual_time
    async def test_close_ends_at_its_limit_although_a_connection_is_leased(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Closing that connection logs a warning."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            await take(core)
            began = now()
            await core.close(3.0)
            assert now() - began == pytest.approx(3.0, abs=0.01)
            assert driver.conns[0].closed
            assert "closed while in use: <conn 1>" in caplog.text

    @virtual_time
    async def test_close_ends_the_wait_for_min_size(self) -> None:
        """A closed pool opens no connections."""
        async with running(Driver(open=never), 1, 1) as core:
            waiting = asyncio.create_task(core.readiness.wait())
            await core.close(0)
            await settle()
            assert waiting.done()

    @virtual_time
    async def test_a_callback_of_the_user_may_close_the_pool(self) -> None:
        """Its task is not cancelled with the other background tasks."""
        ended: list[float] = []

        async def tell() -> None:
            await core.close(0)
            ended.append(now())

        core = make_core(Driver(open=fails), 1, 1, on_outage=tell, reconnect_timeout=1.0)
        core.open()
        await asyncio.sleep(5.0)
        assert len(ended) == 1
        assert len(core.runtime.tasks) == 0

    @virtual_time
    async def test_a_request_that_would_wait_again_gets_pool_closed(self) -> None:
        """The check of its connection failed after the pool was closed."""

        async def check(_: FakeConn) -> None:
            await asyncio.sleep(1.0)
            raise Broken

        async with running(Driver(), 1, 1, check=check) as core:
            waiting = start(core)
            await settle()
            closing = asyncio.create_task(core.close(5.0))
            with pytest.raises(PoolClosed):
                await waiting
            assert now() == pytest.approx(1.0)
            await closing

    @virtual_time
    async def test_a_connection_leased_beyond_the_limit_is_still_closed_properly(self) -> None:
        """Closing it may take a quarter of a second before it is abandoned."""
        said: list[float] = []

        async def farewell() -> None:
            await asyncio.sleep(0.2)
            said.append(now())

        async with running(Driver(close=farewell), 1, 1) as core:
            await take(core)
            await core.close(1.0)
            assert said == [pytest.approx(1.2, abs=0.001)]

    @virtual_time
    async def test_a_connection_released_while_closing_is_not_reset(self) -> None:
        """No request could use it; work passed as `first` is done."""
        driver, done = Driver(), []

        async def first() -> None:
            done.append(now())

        async with running(driver, 2, 2) as core:
            conns = await take_all(core)
            closing = asyncio.create_task(core.close(5.0))
            await settle()
            conns[0].clean = conns[1].clean = False
            core.release(conns[0])
            await settle()
            assert conns[0].closed
            assert driver.times("reset") == []
            core.release(conns[1], first)
            await closing
            assert len(done) == 1

    @virtual_time
    async def test_a_release_after_the_close_raises_pool_closed(self) -> None:
        """The error says that the work is lost; the caller has made no mistake."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            await core.close(0)
            lost = "was closed while this was in use: uncommitted work is lost"
            with pytest.raises(PoolClosed, match=lost):
                core.release(conn)

    @virtual_time
    async def test_close_wakes_every_waiter(self) -> None:
        """Each gets PoolClosed at once."""
        async with running(Driver(), 1, 1) as core:
            await take(core)
            tasks = [start(core) for _ in range(5)]
            await settle()
            began = now()
            closing = asyncio.create_task(core.close(5.0))
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert now() == began
            assert all(isinstance(each, PoolClosed) for each in results)
            await closing

    @virtual_time
    async def test_nothing_is_leased_after_the_call_of_close(self) -> None:
        """This holds from the call on, not from its end."""
        driver = Driver()
        async with running(driver, 2, 2) as core:
            conn = await take(core)
            closing = asyncio.create_task(core.close(5.0))
            await settle()
            assert acquire_now(core) is None
            with pytest.raises(PoolClosed, match="pool 'test' is already closed"):
                await core.acquire(None)
            core.release(conn)
            await closing
            assert conn.closed
            assert len(driver.conns) == 2

    @virtual_time
    async def test_close_cancels_a_connect_that_hangs(self) -> None:
        """Closing takes no time."""
        driver = Driver(open=never)
        async with running(driver, 2, 2) as core:
            began = now()
            await core.close(5.0)
            assert now() == began
            assert driver.sockets == 0

    @virtual_time
    async def test_a_connect_that_ignores_cancellation_is_waited_for_up_to_the_limit(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Then it is abandoned; a connection that it still opens is closed."""
        driver = Driver(open=stubborn(30.0))
        core = make_core(driver, 1)
        core.open()
        await settle()
        began = now()
        await core.close(1.0)
        assert 1.0 < now() - began < 2.5
        assert not core.ledger.entries
        await asyncio.sleep(40.0)
        assert (driver.made, driver.sockets) == (1, 0)
        assert not [each for each in caplog.records if each.levelname == "ERROR"]

    @virtual_time
    async def test_a_reset_that_ignores_cancellation_is_abandoned(self) -> None:
        """The pool closes the connection without waiting for it."""
        driver = Driver(reset=stubborn(9.0), close=slow(5.0))
        core = make_core(driver, 1)
        core.open()
        await settle()
        conn = await take(core)
        conn.clean = False
        core.release(conn)
        await settle()
        began = now()
        await core.close(1.0)
        assert now() - began < 2.5
        assert conn.closed
        assert driver.sockets == 0
        await asyncio.sleep(60.0)
        assert driver.times("close") == [pytest.approx(began + 2.0, abs=1.0)]

    @virtual_time
    async def test_closing_a_connection_has_a_time_limit(self) -> None:
        """If it hangs, the socket is closed without it."""
        driver = Driver(close=never)
        core = make_core(driver, 3)
        core.open()
        await settle()
        began = now()
        await core.close(5.0)
        assert now() - began <= core.settings.close_timeout + 0.01
        assert driver.sockets == 0

    @virtual_time
    async def test_a_pool_that_was_never_opened_can_be_closed(self) -> None:
        """It is closed afterwards, as any other pool."""
        core = make_core(Driver())
        await core.close(1.0)
        with pytest.raises(PoolClosed, match="already closed"):
            await core.acquire(None)

    @virtual_time
    async def test_a_pool_that_was_never_opened_can_be_closed_by_a_plain_call(self) -> None:
        """There is nothing to wait for."""
        core = make_core(Driver())
        core.close_unopened()
        with pytest.raises(PoolClosed, match="already closed"):
            await core.acquire(None)

    @virtual_time
    async def test_a_second_close_does_nothing(self) -> None:
        """The pool is closed already."""
        async with running(Driver(), 1) as core:
            await core.close(1.0)
            began = now()
            await core.close(1.0)
            assert now() == began

    @virtual_time
    async def test_concurrent_calls_of_close_wait_for_the_same_end(self) -> None:
        """The time limit of the first call applies."""
        async with running(Driver(), 1, 1) as core:
            await take(core)
            began = now()
            ends: list[float] = []

            async def close(timeout: float) -> None:
                await core.close(timeout)
                ends.append(now() - began)

            await asyncio.gather(close(2.0), close(50.0))
            assert ends == [pytest.approx(2.0, abs=0.01)] * 2

    @virtual_time
    async def test_a_cancelled_close_continues_in_the_background(self) -> None:
        """The task gets its CancelledError at once."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            await take(core)
            task = asyncio.create_task(core.close(2.0))
            await settle()
            task.cancel()
            await settle()
            assert task.cancelled()
            await asyncio.sleep(2.5)
            assert driver.sockets == 0
            assert len(core.runtime.tasks) == 0

    @virtual_time
    async def test_a_cancelled_scope_does_not_interrupt_close(self) -> None:
        """Frameworks cancel a scope when an application shuts down."""
        driver = Driver(close=slow(0.5))
        async with running(driver, 2) as core:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await core.close(1.0)
            assert driver.sockets == 0

    @virtual_time
    async def test_a_caller_in_its_check_gets_no_connection_of_a_closed_pool(self) -> None:
        """Otherwise it would hold a connection that nothing closes."""
        driver = Driver()

        async def check(conn: FakeConn) -> None:
            await asyncio.sleep(1.0)

        async with running(driver, 1, 1, check=check) as core:
            task = start(core)
            await settle()
            await core.close(0.1)
            (result,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(result, PoolClosed | asyncio.CancelledError) or result.closed  # type: ignore[union-attr]
            assert driver.sockets == 0

    @virtual_time
    async def test_a_request_served_before_the_close_that_runs_after_it_is_counted_once(
        self,
    ) -> None:
        """The request counts as failed: its connection was closed before its task ran."""
        core = make_core(Driver(), 1, 1)
        core.open()
        await settle()
        conn = await take(core)
        late = core.acquire(None)
        late.send(None)  # it waits, and its task has not run yet
        core.release(conn)
        await core.close(0)
        with pytest.raises(PoolClosed):
            late.send(None)
        stats = snapshot(core)
        assert (stats.requests, stats.requests_failed) == (2, 1)
        assert core.ledger.leases == 1
