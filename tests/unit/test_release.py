"""Release a connection: reset, replacement of a broken one, misuse."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from asyncpool._core.lease import NO_LEASE
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import (
    ReleaseError,
)
from tests._tools import acquire_now
from tests.fake import Broken, FakeConn
from tests.unit._tools import (
    Driver,
    fails,
    go_bad,
    never,
    now,
    running,
    settle,
    slow,
    start,
    take,
    use,
    virtual_time,
)


class TestReturns:
    @virtual_time
    async def test_an_unclean_connection_is_reset_before_its_next_lease(self) -> None:
        """This holds also if a request waits for it."""
        driver = Driver(reset=slow(0.5))
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            waiting = start(core)
            await settle()
            conn.clean = False
            core.release(conn)
            assert (await waiting).clean
            assert now() == pytest.approx(0.5, abs=0.01)
            core.release(conn)

    @virtual_time
    async def test_cancelling_the_caller_does_not_stop_the_reset(self) -> None:
        """The reset runs in a background task."""
        driver = Driver(reset=slow(0.5))
        async with running(driver, 1, 1) as core:

            async def borrow() -> None:
                conn = await take(core)
                try:
                    await never()
                finally:
                    conn.clean = False
                    core.release(conn)

            with anyio.move_on_after(1.0):
                await borrow()
            await asyncio.sleep(1.0)
            assert driver.calls[-1][0] == "reset"
            assert [entry.conn for entry in core.ledger.idle] == driver.conns

    @pytest.mark.parametrize("trouble", [fails, never])
    @virtual_time
    async def test_a_connection_that_cannot_be_reset_is_replaced(self, trouble: Any) -> None:
        """The reset fails, or hangs longer than `clean_timeout`."""
        driver = Driver(reset=trouble)
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            conn.clean = False
            core.release(conn)
            assert await core.acquire(11.0) is driver.conns[1]
            assert conn.closed

    @virtual_time
    async def test_a_connection_that_broke_in_use_is_replaced(self) -> None:
        """The next request does not get it."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            conn.alive = False
            core.release(conn)
            assert await core.acquire(1.0) is driver.conns[1]
            assert snapshot(core).returns_bad == 1

    @virtual_time
    async def test_a_watched_connection_is_not_tested_again_at_once(self) -> None:
        """Its loss is reported when the loop runs; an unwatched one is tested each time."""
        for watches, pause in ((True, 0.0), (True, 1.0), (False, 0.0)):
            driver = Driver()
            driver.watches = watches
            async with running(driver, 1, 1) as core:
                await asyncio.sleep(10.0)
                await use(core)
                driver.conns[0].alive = False
                await asyncio.sleep(pause)
                trusted = watches and not pause
                assert (acquire_now(core) is driver.conns[0]) == trusted

    @virtual_time
    async def test_a_connection_lost_while_leased_is_not_leased_again(self) -> None:
        """This holds even if the driver calls it alive at its release."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            conn.lose()
            core.release(conn)
            assert await core.acquire(1.0) is driver.conns[1]

    @virtual_time
    async def test_a_connection_that_expires_at_its_release_is_closed(self) -> None:
        """The connection expires at that instant, not after it."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            core.ledger.leased[conn].expires_at = now()
            core.release(conn)
            await settle()
            assert conn.closed
            assert len(core.ledger.idle) == 1

    @virtual_time
    async def test_a_released_connection_has_no_holder(self) -> None:
        """Otherwise the pool would keep a task that has ended."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            entry = core.ledger.leased[conn]
            assert entry.lease.holder is asyncio.current_task()
            core.release(conn)
            assert entry.lease is NO_LEASE
            assert entry.lease.holder is None

    @virtual_time
    async def test_a_dismissed_connection_is_closed_and_replaced(self) -> None:
        """Even a clean one is closed; a waiter gets a new one, and a second call is an error."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            waiting = start(core)
            await settle()
            core.discard(conn)
            with pytest.raises(ReleaseError):
                core.discard(conn)
            fresh = await waiting
            assert fresh is not conn
            core.release(fresh)
            assert snapshot(core).returns_bad == 0

    @virtual_time
    async def test_a_second_release_is_an_error(self) -> None:
        """The second release changes nothing."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            core.release(conn)
            with pytest.raises(ReleaseError, match=r"'test' has not leased .*released already"):
                core.release(conn)
            assert len(core.ledger.idle) == 1

    @virtual_time
    async def test_a_foreign_connection_is_an_error(self) -> None:
        """Connections of another pool and of none are refused, clean or not."""
        async with running(Driver(), 1, 1) as core, running(Driver(), 1, 1) as other:
            foreign = await take(other)
            for conn in (foreign, FakeConn(99)):
                for conn.clean in (True, False):
                    with pytest.raises(ReleaseError):
                        core.release(conn)
            foreign.clean = True
            other.release(foreign)

    @virtual_time
    async def test_the_rest_of_the_callers_work_can_be_left_to_the_pool(self) -> None:
        """`first` runs before the reset, in a background task; if it fails, the reset runs too."""
        driver, done = Driver(), []

        async def first() -> None:
            done.append(driver.times("reset"))
            raise Broken

        async with running(driver, 1, 1) as core:
            conn = await take(core)
            core.release(conn, first)
            await settle()
            assert done == [[]]
            assert len(driver.times("reset")) == 1
            assert acquire_now(core) is conn

    @virtual_time
    async def test_each_time_that_a_connection_is_leased_has_its_own_lease(self) -> None:
        """So a context manager can tell whether the connection is still leased to it."""
        async with running(Driver(), 1, 1) as core:
            conn = await take(core)
            lease = core.lease_of(conn)
            core.release(conn)
            assert core.lease_of(conn) is None
            await take(core)
            assert core.lease_of(conn) not in (None, lease)


class TestShared:
    @virtual_time
    async def test_a_shared_lease_is_no_use(self) -> None:
        """Its time is counted apart, and the connection is idle or cleaned afterwards."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            for clean in (True, False):
                conn = await take(core)
                entry = core.ledger.leased[conn]
                core.ledger.share(entry)
                await asyncio.sleep(2.0)
                conn.clean = clean
                assert core.release_channel(entry) is clean
                if not clean:
                    core.release(conn)
                await settle()
                assert core.ledger.idle == [entry]
            counters = core.runtime.counters
            assert counters.shared_time == pytest.approx(4.0)
            assert counters.use_time - counters.shared_time == pytest.approx(0.0)
            assert (core.ledger.leases, len(driver.times("reset"))) == (0, 1)

    @virtual_time
    async def test_a_channel_that_is_not_kept_is_closed(self) -> None:
        """Its lease is a use, as it was not shared."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            entry = core.ledger.leased[await take(core)]
            await asyncio.sleep(2.0)
            entry.expires_at = now()
            assert core.release_channel(entry)
            await settle()
            assert entry not in core.ledger.entries
            assert driver.conns[0].closed
            counters = core.runtime.counters
            assert counters.use_time == pytest.approx(2.0)
            assert (counters.shared_time, counters.returns_bad) == (0.0, 0)

    @virtual_time
    async def test_a_clean_connection_is_handed_to_the_first_waiter(self) -> None:
        """That is one use and the next; an expired one is not handed over."""
        async with running(Driver(), 1, 1) as core:
            entry = core.ledger.leased[await take(core)]
            waiting = start(core)
            await asyncio.sleep(2.0)
            assert core.hand_over(entry)
            assert await waiting is entry.conn
            assert core.runtime.counters.use_time == pytest.approx(2.0)
            assert core.ledger.leases == 2
            entry.expires_at = now()
            assert not core.hand_over(entry)
            core.release(entry.conn)


class TestLost:
    @virtual_time
    async def test_a_connection_lost_while_idle_is_replaced_at_once(self) -> None:
        """The watch reports the loss without a round trip."""
        driver = Driver()
        async with running(driver, 2, 2) as core:
            driver.conns[0].die()
            await settle()
            assert [entry.conn for entry in core.ledger.idle] == driver.conns[1:]
            assert len(driver.conns) == 3
            assert snapshot(core).lost == 1

    @virtual_time
    async def test_an_idle_connection_known_to_be_broken_is_not_leased(self) -> None:
        """The next one is leased in the same call."""
        driver = Driver()
        async with running(driver, 2, 2) as core:
            driver.conns[1].alive = False
            assert acquire_now(core) is driver.conns[0]

    @virtual_time
    async def test_a_thousand_broken_idle_connections_are_skipped(self) -> None:
        """A failover can break every connection of a pool of any size."""
        driver = Driver()
        async with running(driver, 2000, 2000) as core:
            while core.ledger.opening:
                await settle()
            go_bad(driver.conns)
            assert acquire_now(core) is None
            assert await core.acquire(1.0)

    @virtual_time
    async def test_a_connection_lost_during_its_reset_is_not_leased_again(self) -> None:
        """The result of the reset does not matter."""
        driver = Driver(reset=slow(1.0))
        async with running(driver, 1, 1) as core:
            conn = await take(core)
            conn.clean = False
            core.release(conn)
            await settle()
            conn.lose()
            assert await core.acquire(5.0) is driver.conns[1]
