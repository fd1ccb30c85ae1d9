"""The maintenance round: what it closes, what it pings, and when it runs."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from itertools import pairwise
from typing import Any

import pytest

from asyncpool._core.maintenance import make_round, next_due, ping_all, run_maintenance
from asyncpool._core.pool import Core
from asyncpool._diagnostics.snapshot import snapshot
from tests._tools import acquire_now
from tests.fake import FakeConn
from tests.unit._tools import (
    Driver,
    fails,
    make_core,
    never,
    now,
    running,
    settle,
    slow,
    timers,
    use,
    virtual_time,
)


async def grow(core: Core[FakeConn], size: int) -> None:
    """Open connections until this many are idle."""
    await asyncio.gather(*(use(core, 0.001) for _ in range(size)))


class TestIdle:
    @virtual_time
    async def test_one_round_closes_the_whole_surplus_down_to_min_size(self) -> None:
        """The round closes neither one connection only nor one too many."""
        driver = Driver()
        async with running(driver, 2, 10, upkeep=True, max_idle=60.0) as core:
            await grow(core, 10)
            await asyncio.sleep(59.0)
            assert core.ledger.size == 10
            await asyncio.sleep(2.0)
            assert core.ledger.size == 2
            assert len(set(driver.times("close"))) == 1

    @virtual_time
    async def test_min_size_connections_stay_however_long_they_are_idle(self) -> None:
        """Connections are never closed only to be opened again."""
        driver = Driver()
        async with running(driver, 3, 10, upkeep=True, max_idle=60.0):
            await asyncio.sleep(10_000.0)
            assert len(driver.conns) == 3
            assert driver.times("close") == []

    @virtual_time
    async def test_a_light_load_leaves_the_surplus_idle(self) -> None:
        """A single task needs one connection."""
        async with running(Driver(), 1, 10, upkeep=True, max_idle=60.0) as core:
            await grow(core, 10)
            for _ in range(100):
                await use(core, 0.5)
                await asyncio.sleep(0.5)
            assert core.ledger.size == 1


class TestLifetime:
    @virtual_time
    async def test_idle_connections_are_replaced_when_they_expire(self) -> None:
        """No request is needed; the lifetime is shortened by up to 5 %."""
        driver = Driver()
        async with running(driver, 1, 2, upkeep=True, max_lifetime=100.0):
            await asyncio.sleep(1000.0)
            times = driver.times("open")
            lives = [later - earlier for earlier, later in pairwise(times)]
            assert 10 <= len(lives) <= 11
            assert all(94.9 <= life <= 100.6 for life in lives)
            assert len(set(lives)) > 1

    @virtual_time
    async def test_with_room_the_replacement_opens_before_the_old_one_closes(self) -> None:
        """There is an idle connection at every moment."""
        driver = Driver(open=slow(1.0))
        async with running(driver, 1, 2, upkeep=True, max_lifetime=100.0) as core:
            await asyncio.sleep(2.0)
            while len(driver.conns) < 5:
                assert core.ledger.idle
                await asyncio.sleep(0.1)
            assert driver.most_sockets == 2
            # Otherwise every past entry would be kept.
            assert core.ledger.idle[0].predecessor is None

    @virtual_time
    async def test_several_are_replaced_before_they_close_if_there_is_room(
        self,
    ) -> None:
        """The pool never has fewer than `min_size`, although all are due in the same round."""
        driver = Driver()
        async with running(driver, 2, 4) as core:
            driver.usual["open"] = slow(1.0)
            for entry in core.ledger.idle:
                entry.expires_at = now()
            await make_round(core)
            for _ in range(30):
                await asyncio.sleep(0.1)
                assert len(core.ledger.idle) >= 2
            assert [conn.closed for conn in driver.conns] == [True, True, False, False]

    @virtual_time
    async def test_without_room_the_old_connection_is_closed_first(self) -> None:
        """There are never more than `max_size`."""
        driver = Driver(open=slow(1.0))
        async with running(driver, 1, 1, upkeep=True, max_lifetime=100.0) as core:
            await asyncio.sleep(150.0)
            assert len(driver.conns) == 2
            assert len(core.ledger.idle) == 1
        assert driver.most_sockets == 1

    @virtual_time
    async def test_an_expired_connection_above_min_size_is_not_replaced(self) -> None:
        """The pool does not need another one."""
        driver = Driver()
        async with running(driver, 1, 5, upkeep=True, max_lifetime=100.0) as core:
            await grow(core, 5)
            await asyncio.sleep(101.0)
            assert core.ledger.size == 1

    @virtual_time
    async def test_an_expired_leased_connection_is_closed_when_released(self) -> None:
        """The caller is not interrupted."""
        driver = Driver()
        async with running(driver, 1, 1, upkeep=True, max_lifetime=100.0) as core:
            await use(core, 200.0)
            await settle()
            assert [conn.closed for conn in driver.conns] == [True, False]

    @virtual_time
    async def test_in_an_outage_expired_connections_are_kept(self) -> None:
        """Each is kept until its replacement is open."""
        driver = Driver()
        async with running(driver, 2, 3, upkeep=True, max_lifetime=100.0) as core:
            driver.usual["open"] = fails
            driver.conns[0].die()
            await asyncio.sleep(500.0)
            assert [entry.conn for entry in core.ledger.idle] == [driver.conns[1]]
            assert await use(core) == now()

    @virtual_time
    async def test_a_limited_number_of_replacements_is_opened_at_once(self) -> None:
        """The limit is that of all connects."""
        driver = Driver(open=slow(1.0))
        limits = {"max_lifetime": 100.0, "open_at_once": 2, "fill_at_once": 2}
        async with running(driver, 6, 20, upkeep=True, **limits) as core:
            await asyncio.sleep(150.0)
            assert len(driver.conns) >= 12
            assert driver.most["open"] == 2
            assert len(core.ledger.idle) >= 6


class TestPings:
    @virtual_time
    async def test_only_connections_idle_for_ping_interval_are_pinged(self) -> None:
        """A use counts as much as a ping."""
        driver = Driver()
        async with running(driver, 2, 2, upkeep=True, ping_interval=30.0) as core:
            for _ in range(10):
                await asyncio.sleep(10.0)
                await use(core)
            assert driver.times("ping") == [pytest.approx(at, abs=1.0) for at in (30.0, 60.0, 90.0)]

    @virtual_time
    async def test_a_connection_that_fails_its_ping_is_replaced(self) -> None:
        """The broken connection is not leased again."""
        driver = Driver()
        async with running(driver, 2, 2, upkeep=True, ping_interval=30.0) as core:
            driver.script["ping"].append(fails)
            await asyncio.sleep(31.0)
            assert [conn.closed for conn in driver.conns] == [True, False, False]
            assert snapshot(core).lost == 1
            assert core.outages.last_error is not None

    @virtual_time
    async def test_a_connection_lost_with_its_answer_is_replaced(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The connection answered, and its loss is known already."""
        driver = Driver()
        async with running(driver, 1, 1) as core:
            (entry,) = core.ledger.idle
            monkeypatch.setattr(driver, "is_alive", lambda _: False)
            assert not await core.store.ping(entry)
            monkeypatch.undo()
            await settle()
            assert core.runtime.counters.lost == 1
            assert [each.conn for each in core.ledger.idle] == driver.conns[1:]

    @virtual_time
    async def test_a_cancelled_ping_discards_the_connection(self) -> None:
        """The cancellation is passed on and counts as no error of the server."""
        driver = Driver(ping=never)
        async with running(driver, 1, 1) as core:
            ping = asyncio.create_task(core.store.ping(core.ledger.idle[0]))
            await settle()
            ping.cancel()
            await settle()
            assert ping.cancelled()
            assert driver.conns[0].closed
            assert core.outages.last_error is None

    @virtual_time
    async def test_a_failed_ping_does_not_count_as_a_failed_connect(self) -> None:
        """The replacement is opened at once."""
        driver = Driver(ping=fails)
        async with running(driver, 3, 3) as core:
            await ping_all(core, list(core.ledger.idle))
            began = now()
            await settle()
            assert len(core.ledger.idle) == 3
            assert driver.times("open")[3:] == [pytest.approx(began, abs=0.001)] * 3

    @virtual_time
    async def test_a_ping_that_hangs_ends_after_ping_timeout(self) -> None:
        """The connection is replaced."""
        driver = Driver(ping=never)
        async with running(driver, 1, 1, ping_timeout=5.0) as core:
            began = now()
            await ping_all(core, list(core.ledger.idle))
            assert now() - began == pytest.approx(5.0, abs=0.01)
            assert driver.conns[0].closed

    @virtual_time
    async def test_half_of_the_idle_connections_stay_usable_during_pings(self) -> None:
        """The pool always has connections to lease."""
        driver = Driver(ping=slow(1.0))
        async with running(driver, 6, 6) as core:
            pings = asyncio.create_task(ping_all(core, list(core.ledger.idle)))
            while not pings.done():
                await asyncio.sleep(0.1)
                assert len(core.ledger.idle) >= 3
            assert driver.most["ping"] == 3
            assert len(driver.times("ping")) == 6

    @virtual_time
    async def test_a_limited_number_is_pinged_at_once(self) -> None:
        """This holds in a large pool too."""
        driver = Driver(ping=slow(1.0))
        async with running(driver, 40, 40, open_at_once=40) as core:
            await ping_all(core, list(core.ledger.idle))
            assert driver.most["ping"] == core.settings.ping_at_once == 8
            assert len(driver.times("ping")) == 40

    @virtual_time
    async def test_a_connection_leased_meanwhile_is_not_pinged(self) -> None:
        """The ping would disturb its holder."""
        driver = Driver(ping=slow(1.0))
        async with running(driver, 2, 2) as core:
            pings = asyncio.create_task(ping_all(core, list(core.ledger.idle)))
            await settle()
            conn = acquire_now(core)
            assert conn is not None
            await pings
            assert len(driver.times("ping")) == 1
            core.release(conn)

    @virtual_time
    async def test_a_pinged_connection_goes_to_a_waiter(self) -> None:
        """A ping ends like a release."""
        driver = Driver(ping=slow(1.0))
        async with running(driver, 1, 1) as core:
            pings = asyncio.create_task(ping_all(core, list(core.ledger.idle)))
            await settle()
            assert await use(core) == pytest.approx(1.0, abs=0.01)
            await pings


class TestRounds:
    @virtual_time
    async def test_a_failed_round_is_logged_and_the_next_one_runs(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No error ends the maintenance."""

        def fail() -> None:
            raise ZeroDivisionError

        driver = Driver()
        async with running(driver, 1, 1, upkeep=True, ping_interval=10.0) as core:
            monkeypatch.setattr(core.lease_monitor, "report_overdue", fail)
            await asyncio.sleep(15.0)
            assert not driver.times("ping")
            monkeypatch.undo()
            await asyncio.sleep(15.0)
            assert driver.times("ping")
        assert "pool 'test': a maintenance round failed" in caplog.text

    @virtual_time
    async def test_each_round_refills_the_pool(self) -> None:
        """This holds for any reason why connections are missing."""
        async with running(Driver(), 0, 4) as core:
            core.ledger.resize(2, 4)
            await make_round(core)
            await settle()
            assert len(core.ledger.idle) == 2

    @virtual_time
    async def test_rounds_are_as_frequent_as_the_shortest_limit_needs(self) -> None:
        """A limit shorter than the usual pause is observed too."""
        driver = Driver()
        async with running(driver, 1, 1, upkeep=True, ping_interval=0.1):
            await asyncio.sleep(1.0)
            assert 6 <= len(driver.times("ping")) <= 10

    @virtual_time
    async def test_between_rounds_maintenance_sleeps_until_something_is_due(self) -> None:
        """A quiet pool rarely wakes."""
        driver = Driver()
        numbers = {"max_idle": 600.0, "ping_interval": 30.0, "max_lifetime": 3600.0}
        async with running(driver, 1, 4, upkeep=True, **numbers):
            await asyncio.sleep(3000.0)
            assert 95 <= len(driver.times("ping")) <= 100

    @virtual_time
    async def test_a_long_lease_causes_no_rounds(self) -> None:
        """A connection leased for days, as for LISTEN, has expired and causes no rounds."""
        loop, woken = asyncio.get_running_loop(), 0
        driver = Driver()
        async with running(driver, 1, 1, upkeep=True, max_lifetime=100.0) as core:
            conn = acquire_now(core)
            assert conn is not None
            await asyncio.sleep(200.0)
            while loop.time() < 300.0:
                (timer, *_) = sorted(timers(), key=lambda each: each.when())
                woken += 1
                await asyncio.sleep(timer.when() - loop.time() + 1e-6)
            assert woken < 5
            core.release(conn)

    @virtual_time
    async def test_without_limits_it_sleeps_for_ever(self) -> None:
        """`math.inf` is never due."""
        never_due: Any = dict.fromkeys(("max_idle", "ping_interval", "max_lifetime"), math.inf)
        core = make_core(Driver(), 1, **never_due)
        assert next_due(core.ledger, 5.0) == math.inf

    @virtual_time
    async def test_it_ends_when_the_pool_is_collected(self) -> None:
        """Between rounds it holds the pool weakly."""
        core = make_core(Driver(), 2, max_idle=10.0)
        core.open()
        maintenance = asyncio.create_task(run_maintenance(weakref.ref(core)))
        await settle()
        dead = weakref.ref(core)
        del core
        gc.collect()
        assert dead() is None
        await asyncio.sleep(20.0)
        assert maintenance.done()

    @virtual_time
    async def test_concurrent_rounds_do_no_harm(self) -> None:
        """A user may start one at any time."""
        driver = Driver(ping=slow(0.1), open=slow(0.1))
        async with running(driver, 2, 5, max_lifetime=10.0, ping_interval=5.0) as core:
            await asyncio.sleep(10.0)
            await asyncio.gather(*(make_round(core) for _ in range(5)))
            await asyncio.sleep(1.0)
            assert len(core.ledger.idle) == core.ledger.size == 2
        assert driver.most_sockets <= 5
