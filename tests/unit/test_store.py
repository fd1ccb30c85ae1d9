"""Opening connections: how many, how fast, and with which back-off after a failure."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import weakref
from itertools import pairwise

import pytest

from asyncpool import Budget
from asyncpool._core.entry import State
from asyncpool._core.pool import Core
from asyncpool._core.store_tasks import open_connection
from asyncpool.errors import PoolTimeout
from tests.fake import Broken, FakeConn
from tests.unit._tools import (
    LATER,
    Driver,
    fails,
    make_core,
    never,
    now,
    ok,
    running,
    settle,
    slow,
    start,
    stubborn,
    timers,
    use,
    virtual_time,
)


async def wait_until_full(core: Core[FakeConn]) -> float:
    await core.readiness.wait()
    return now()


@virtual_time
async def test_a_ping_that_begins_in_the_turn_in_which_a_reset_ends_is_undisturbed() -> None:
    """The task of the reset has ended, and its end is noted while the ping runs."""
    driver = Driver(ping=slow(1.0))
    async with running(driver, 1, 1) as core:
        conn = await core.acquire(None)
        conn.clean = False
        core.release(conn)
        while not core.ledger.idle:  # noqa: ASYNC110 - each turn of the event loop counts
            await asyncio.sleep(0)
        (entry,) = core.ledger.idle
        assert await core.store.ping(entry)
        assert core.ledger.idle == [entry]
        assert len(driver.conns) == 1


def connects() -> list[asyncio.Task[object]]:
    """The tasks of the pool's that are connecting."""
    return [each for each in asyncio.all_tasks() if each.get_name() == "test: connect"]


async def fail_slowly() -> None:
    """A connect that fails after 10 ms."""
    await asyncio.sleep(0.01)
    await fails()


async def fail_in_half_a_second() -> None:
    """A connect that fails after half a second, longer than the back-off before it."""
    await asyncio.sleep(0.55)
    await fails()


class TestGrowth:
    @virtual_time
    async def test_many_requests_at_once_grow_the_pool_in_parallel(self) -> None:
        """Twenty connects of 100 ms take 100 ms, not two seconds."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 0, 20) as core:
            had_at = await asyncio.gather(*(use(core, 5.0) for _ in range(20)))
            assert max(had_at) == pytest.approx(0.1, abs=0.001)

    @virtual_time
    async def test_a_released_connection_may_serve_before_the_connect(self) -> None:
        """A request takes the first available connection, not the one opened for it."""
        async with running(Driver(open=slow(0.1)), 0, 5) as core:
            first = asyncio.create_task(use(core, 0.05))
            await asyncio.sleep(0.12)
            second = asyncio.create_task(use(core, 5.0))
            await first
            assert await second == pytest.approx(0.15, abs=0.001)

    @virtual_time
    async def test_one_connect_that_hangs_does_not_stop_growth(self) -> None:
        """The other connections serve, and the hanging one uses a single place."""
        driver = Driver(open=slow(0.1))
        driver.script["open"].append(never)
        async with running(driver, 0, 3) as core:
            began = now()
            await asyncio.gather(*(use(core, 1.0) for _ in range(4)))
            assert now() - began == pytest.approx(2.1, abs=0.01)
            assert core.ledger.opening == 1

    @virtual_time
    async def test_a_connect_that_takes_long_gets_another_one_beside_it(self) -> None:
        """This happens after `late_after`, if there is room; the slow connect continues."""
        driver = Driver(open=slow(0.1))
        driver.script["open"].append(slow(60.0))
        async with running(driver, 0, 3, late_after=1.0) as core:
            assert await use(core) == pytest.approx(1.1, abs=0.01)
            await asyncio.sleep(60.0)
            assert len(core.ledger.idle) == 2

    @virtual_time
    async def test_all_connects_share_one_timer(self) -> None:
        """Once it has expired it is set again for those under way, if there are any."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 3, 3, late_after=10.0) as core:
            await asyncio.sleep(5.0)
            assert [timer.when() for timer in timers()] == [10.0]
            driver.usual["open"] = slow(60.0)
            for conn in driver.conns[:2]:
                conn.die()
                await asyncio.sleep(2.0)
            assert (core.ledger.opening, core.ledger.late) == (2, 0)
            await asyncio.sleep(6.5)
            assert core.ledger.late == 1
            await asyncio.sleep(2.0)
            assert core.ledger.late == 2
            assert core.store.late.at == math.inf

    @virtual_time
    async def test_a_request_that_times_out_does_not_stop_the_connect(self) -> None:
        """The next request gets the connection earlier."""
        driver = Driver(open=slow(1.0))
        async with running(driver, 0, 5) as core:
            with pytest.raises(PoolTimeout):
                await core.acquire(0.9)
            assert await use(core) == pytest.approx(1.0, abs=0.001)
            assert len(driver.conns) == 1

    @virtual_time
    async def test_a_cancelled_request_does_not_stop_the_connect(self) -> None:
        """Connects run in background tasks."""
        driver = Driver(open=slow(1.0))
        async with running(driver, 0, 5) as core:
            task = start(core)
            await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.sleep(1.0)
            assert [entry.conn for entry in core.ledger.idle] == driver.conns

    @virtual_time
    async def test_no_more_connections_are_opened_than_waiters_need(self) -> None:
        """A connect under way counts for one waiter."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 0, 20) as core:
            await asyncio.gather(*(use(core, 1.0) for _ in range(3)))
            assert len(driver.conns) == 3

    @virtual_time
    async def test_there_are_never_more_sockets_than_max_size(self) -> None:
        """Connections being closed count until they are closed."""
        driver = Driver(open=slow(0.1), close=slow(1.0))
        async with running(driver, 2, 3) as core:
            for _ in range(5):
                for conn in driver.conns:
                    if not conn.closed:
                        conn.die()
                await asyncio.gather(*(use(core, 0.1) for _ in range(10)))
        assert driver.most_sockets == 3

    @virtual_time
    async def test_background_tasks_have_the_pools_name(self) -> None:
        """The name also says what the task does."""
        async with running(Driver(open=never), 1, 1) as core:
            assert core.runtime.name == "test"
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert "test: connect" in names

    @virtual_time
    async def test_durations_of_connects_are_summed(self) -> None:
        """The sum is in seconds and includes successful connects only."""
        driver = Driver(open=slow(2.0))
        async with running(driver, 0, 2) as core:
            await asyncio.sleep(10.0)
            await asyncio.gather(use(core), use(core))
            assert core.runtime.counters.connect_time == pytest.approx(2 * 2.0)

    @virtual_time
    async def test_a_cancelled_connect_is_not_retried_at_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A cancelled background task may mean that the event loop ends; it is no outage."""
        driver = Driver(open=never)
        async with running(driver, 1, 1) as core:
            (task,) = connects()
            task.cancel()
            await settle()
            assert task.cancelled()
            assert (core.ledger.size, len(driver.times("open"))) == (0, 1)
            assert not core.outages.outage
            assert "ended by CancelledError" not in caplog.text
            await asyncio.sleep(0.2)
            assert (core.ledger.size, len(driver.times("open"))) == (1, 2)
            assert "a connect was ended by CancelledError and is retried" in caplog.text

    @virtual_time
    async def test_a_waiter_for_a_cancelled_connect_gets_another(self) -> None:
        """A moment later, as often as it happens."""
        driver = Driver(open=slow(1.0))
        async with running(driver, 0, 1) as core:
            request = asyncio.create_task(use(core, 0.0))
            for _ in range(3):
                await asyncio.sleep(0.2)
                for task in connects():
                    task.cancel()
            assert await request < 2.0

    @virtual_time
    async def test_a_connect_that_is_cancelled_in_an_outage_is_tried_again(self) -> None:
        """With the pause of the outage, or the one after a cancellation."""
        driver = Driver(open=slow(0.5))
        driver.script["open"] += [fails, never]
        async with running(driver, 0, 1) as core:
            request = asyncio.create_task(use(core, 0.0))
            await asyncio.sleep(0.2)
            (task,) = connects()
            task.cancel()
            assert await request < 2.0

    @virtual_time
    async def test_the_place_of_a_connect_that_is_cancelled_is_offered_to_other_pools(self) -> None:
        """To whoever waits in one of them for the room in a budget."""
        budget = Budget(1)
        first, second = Driver(open=never), Driver()
        async with running(first, 0, 1, budget=budget) as core:
            with pytest.raises(PoolTimeout):
                await core.acquire(0.1)
            other = make_core(second, 0, 1, budget=budget)
            other.open()
            request = asyncio.create_task(use(other, 0.0))
            await settle()
            for task in connects():
                task.cancel()
            assert await request < 2.0
            await other.close(0)

    @virtual_time
    async def test_a_connect_that_is_cancelled_before_it_has_begun_keeps_no_place(self) -> None:
        """None of its code has run; whoever waits gets another."""
        driver = Driver()
        async with running(driver, 0, 1) as core:
            core.store.open_one()
            request = asyncio.create_task(use(core, 0.0))
            for task in connects():
                task.cancel()
            assert await request < 2.0
            assert len(driver.times("open")) == 1

    @virtual_time
    async def test_a_connect_that_ends_with_its_pool_is_not_tried_again(self) -> None:
        """Cancelled by the pool, it leaves no timer."""
        async with running(Driver(open=never), 1, 1):
            pass
        assert timers() == []

    @virtual_time
    async def test_a_cancelled_connect_keeps_no_references(self) -> None:
        """The driver's frames refer to the socket."""
        async with running(Driver(open=never)) as core:
            entry = core.ledger.reserve(now())
            connect = open_connection(weakref.ref(core.store), core._driver, entry)
            connect.send(None)
            with pytest.raises(asyncio.CancelledError) as caught:
                connect.throw(asyncio.CancelledError())
            assert "never" not in [each.name for each in caught.traceback]


class TestMinSize:
    @virtual_time
    async def test_min_size_is_opened_in_parallel(self) -> None:
        """Ten connects of 100 ms take 100 ms."""
        async with running(Driver(open=slow(0.1)), 10, 10) as core:
            assert await wait_until_full(core) == pytest.approx(0.1, abs=0.001)

    @virtual_time
    async def test_a_new_pool_opens_it_at_once(self) -> None:
        """The user has asked for these connections; the limit is for what nobody asked for."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 50, 60, open_at_once=20) as core:
            assert await wait_until_full(core) == pytest.approx(0.1, abs=0.001)
            assert driver.most["open"] == 50

    @virtual_time
    async def test_a_limited_number_is_opened_at_once(self) -> None:
        """The server's queue has places for all; each finished connect makes room for the next."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 50, 50, open_at_once=10, fill_at_once=20) as core:
            assert await wait_until_full(core) == pytest.approx(0.3, abs=0.001)
            assert driver.most["open"] == 20

    @virtual_time
    async def test_requests_open_no_more_at_once_than_min_size(self) -> None:
        """Beyond it, the pool grows at the usual limit, also while it is new."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 30, 200, open_at_once=20) as core:
            await asyncio.gather(*(use(core, 10.0, LATER) for _ in range(200)))
            assert driver.most["open"] == 30

    @virtual_time
    async def test_lost_connections_are_replaced_at_the_usual_limit(self) -> None:
        """Other clients of the server have lost theirs too."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 50, 50, open_at_once=20) as core:
            await wait_until_full(core)
            driver.most.clear()
            for conn in driver.conns[:]:
                conn.die()
            await asyncio.sleep(1.0)
            assert len(core.ledger.idle) == 50
            assert driver.most["open"] == 20

    @virtual_time
    async def test_after_an_outage_it_is_opened_at_the_usual_limit(self) -> None:
        """The server has just come up, and other clients connect again too."""
        driver = Driver(open=slow(0.1))
        driver.script["open"].extend([fail_slowly] * 50)
        async with running(driver, 50, 50, open_at_once=20) as core:
            await asyncio.sleep(0.02)
            assert driver.most["open"] == 50
            driver.most.clear()
            await asyncio.sleep(1.0)
            assert len(core.ledger.idle) == 50
            assert driver.most["open"] == 20

    @virtual_time
    async def test_a_resized_pool_opens_what_is_added_at_once(self) -> None:
        """The user has asked for these connections too."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 0, 50, open_at_once=20) as core:
            core.resize(50, 50)
            await asyncio.sleep(0.11)
            assert len(core.ledger.idle) == 50

    @virtual_time
    async def test_the_pool_serves_before_it_is_full(self) -> None:
        """Only `wait()` waits for `min_size`."""
        driver = Driver(open=slow(10.0))
        driver.script["open"].append(slow(0.1))
        async with running(driver, 5, 5) as core:
            assert await use(core) == pytest.approx(0.1, abs=0.001)

    @virtual_time
    async def test_a_pool_of_min_size_zero_opens_nothing_without_a_request(self) -> None:
        """The pool is full from the beginning."""
        driver = Driver()
        async with running(driver, 0, 5) as core:
            assert await core.readiness.wait()
            await asyncio.sleep(100.0)
            assert driver.calls == []

    @virtual_time
    async def test_lost_connections_are_replaced_up_to_min_size(self) -> None:
        """No request is needed."""
        driver = Driver(open=slow(0.1))
        async with running(driver, 3, 5) as core:
            await wait_until_full(core)
            for conn in driver.conns[:2]:
                conn.die()
            await asyncio.sleep(0.2)
            assert len(core.ledger.idle) == 3


class TestOutage:
    @virtual_time
    async def test_only_one_probe_is_made_at_a_time(self) -> None:
        """This holds however many requests wait."""
        driver = Driver(open=fail_slowly)
        async with running(driver, 5, 20) as core:
            users = [asyncio.create_task(use(core)) for _ in range(30)]
            await asyncio.sleep(0.02)
            driver.most.clear()
            await asyncio.sleep(10.0)
            assert driver.most["open"] == 1
            for task in users:
                task.cancel()

    @virtual_time
    async def test_a_request_that_arrives_during_a_probe_waits_for_it(self) -> None:
        """This holds long after the back-off before the probe is over."""
        driver = Driver(open=fails)
        async with running(driver, 0, 20) as core:
            users = [asyncio.create_task(use(core))]
            await asyncio.sleep(2.0)
            driver.usual["open"] = fail_in_half_a_second
            await asyncio.sleep(1.0)
            driver.most.clear()
            for _ in range(100):
                users.append(asyncio.create_task(use(core)))
                await asyncio.sleep(0.05)
            assert driver.most["open"] == 1
            for task in users:
                task.cancel()

    @virtual_time
    async def test_the_back_off_doubles_up_to_a_second(self) -> None:
        """Each delay is shortened at random by up to half."""
        driver = Driver(open=fails)
        async with running(driver, 1, 1):
            await asyncio.sleep(10.0)
            times = driver.times("open")
            delays = [later - earlier for earlier, later in pairwise(times)]
            assert len(delays) > 10
            for number, delay in enumerate(delays):
                longest = min(1.0, 0.05 * 2**number)
                assert 0.499 * longest <= delay <= 1.001 * longest

    def test_a_probe_may_be_due_sooner_than_the_loop_can_wait(self) -> None:
        """uvloop treats timers of less than half a millisecond as due; they have no `when()`."""
        uvloop = pytest.importorskip("uvloop")

        async def live() -> None:
            driver = Driver(open=fails)
            core = make_core(driver, 1, 1)
            core.open()
            runtime, clock, outage = core.runtime, core.runtime.time, core.outages.outage
            for made in range(1, 5):
                while len(driver.times("open")) < made or core.ledger.opening:
                    await settle()
                instant = now()
                runtime.time = lambda instant=instant: instant  # type: ignore[misc]
                outage.retry_at = outage.idle_retry_at = instant + 0.0004
                core.store.refill()
                assert core.outages.retry.at == instant + 0.0004
                core.store.refill()
                runtime.time = clock
            await core.close(0)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(live(), 10.0))

    @virtual_time
    async def test_when_the_server_is_back_all_are_served_at_once(self) -> None:
        """The successful probe ends the outage for all requests."""
        driver = Driver(open=fails)
        async with running(driver, 0, 10) as core:
            users = [asyncio.create_task(use(core, 0.1)) for _ in range(10)]
            await asyncio.sleep(5.0)
            driver.usual["open"] = ok
            had_at = await asyncio.gather(*users)
            assert max(had_at) <= 6.0
            assert max(had_at) - min(had_at) < 0.01
            assert not core.outages.outage

    @virtual_time
    async def test_the_probe_that_succeeds_serves_a_waiter_like_any_other(self) -> None:
        """The waiter that it serves needs no other connection."""
        driver = Driver()
        driver.script["open"].append(fails)
        async with running(driver, 0, 10) as core:
            await use(core, 0.1)
            await settle()
            assert len(driver.conns) == 1

    @virtual_time
    async def test_a_waiter_keeps_its_position_through_an_outage(self) -> None:
        """Requests are served first in, first out when the outage is over."""
        driver = Driver(open=fails)
        async with running(driver, 0, 1) as core:
            order: list[int] = []

            async def user(number: int) -> None:
                await use(core, 0.01)
                order.append(number)

            users = [asyncio.create_task(user(number)) for number in range(10)]
            await asyncio.sleep(5.0)
            driver.usual["open"] = ok
            await asyncio.gather(*users)
            assert order == list(range(10))

    @virtual_time
    async def test_no_probe_is_made_without_need(self) -> None:
        """A pool of `min_size` zero without waiters stays quiet."""
        driver = Driver(open=fails)
        async with running(driver, 0, 5) as core:
            with pytest.raises(PoolTimeout):
                await core.acquire(2.0)
            await asyncio.sleep(5.0)
            made = len(driver.times("open"))
            await asyncio.sleep(100.0)
            assert len(driver.times("open")) == made
            assert timers() == []

    @virtual_time
    async def test_a_connect_that_hangs_does_not_stop_the_probes(self) -> None:
        """The connect began before the outage and may hang for any time."""
        driver = Driver()
        driver.script["open"].extend([never, fails])
        async with running(driver, 0, 3) as core:
            users = [asyncio.create_task(use(core, timeout=20.0)) for _ in range(2)]
            had_at = await asyncio.gather(*users)
            assert max(had_at) < 1.0

    @virtual_time
    async def test_a_connect_that_the_pool_gave_up_is_replaced_at_once_without_a_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It was retired before it was cancelled, as where its address is outdated."""
        driver = Driver()
        driver.script["open"].append(never)
        async with running(driver, 0, 2) as core:
            user = asyncio.create_task(use(core, timeout=20.0))
            await settle()
            core.drain()
            for task in core.runtime.tasks.running("connect"):
                task.cancel()
            assert await user < 0.01
            assert not [each for each in caplog.records if each.levelno >= logging.WARNING]

    @virtual_time
    async def test_an_outage_is_logged_once_when_it_begins(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """There is one warning, not one for each probe."""
        async with running(Driver(open=fails), 3, 3):
            await asyncio.sleep(60.0)
            warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
            assert len(warnings) == 1
            assert "cannot connect, will retry" in warnings[0].message

    @virtual_time
    async def test_the_last_error_is_kept_with_its_instant(self) -> None:
        """The error has no traceback, because the frames hold the pool."""
        driver = Driver(open=fails)
        async with running(driver, 0, 1) as core:
            assert (core.outages.last_error, core.outages.last_error_at) == (None, 0.0)
            await asyncio.sleep(10.0)
            with pytest.raises(PoolTimeout):
                await core.acquire(0.01)
            assert isinstance(core.outages.last_error, Broken)
            assert core.outages.last_error.__traceback__ is None
            assert core.outages.last_error_at == pytest.approx(10.0, abs=0.001)
            with pytest.raises(PoolTimeout):
                await core.acquire(1.0)
            assert core.runtime.counters.connects_failed == len(driver.times("open")) > 1
            assert not core.runtime.tasks.running("connect")

    @virtual_time
    async def test_reconnect_failed_is_called_once_per_outage(self) -> None:
        """The call comes after `reconnect_timeout` seconds, and again in the next outage."""
        told: list[float] = []

        async def tell() -> None:
            told.append(now())

        driver = Driver(open=fails)
        async with running(driver, 1, 1, on_outage=tell, reconnect_timeout=30.0):
            await asyncio.sleep(100.0)
            assert told == [pytest.approx(30.5, abs=0.6)]
            driver.usual["open"] = ok
            await asyncio.sleep(2.0)
            driver.usual["open"] = fails
            driver.conns[0].die()
            ended = now()
            await asyncio.sleep(100.0)
            assert told[1:] == [pytest.approx(ended + 30.5, abs=0.6)]

    @virtual_time
    async def test_with_reconnect_timeout_zero_it_is_called_after_the_first_failure(self) -> None:
        """`reconnect_timeout=0` allows no time for an outage."""
        told: list[float] = []

        async def tell() -> None:
            told.append(now())

        async with running(Driver(open=fails), 1, 1, on_outage=tell, reconnect_timeout=0.0):
            assert told == [pytest.approx(0.0, abs=0.001)]

    @virtual_time
    async def test_a_connect_begun_before_the_outage_ends_it_if_it_succeeds(self) -> None:
        """The planned probe is dropped, and the other connections are opened at once."""
        driver = Driver(open=fails)
        driver.script["open"].append(slow(5.0))
        async with running(driver, 3, 3, late_after=60.0) as core:
            await asyncio.sleep(4.9)
            driver.usual["open"] = ok
            core.outages.retry.cancel()
            core.outages.outage.idle_retry_at = 50.0
            core.store.refill()
            await asyncio.sleep(0.1)
            assert len(core.ledger.idle) == 3
            assert core.outages.retry.at == math.inf

    @virtual_time
    async def test_a_new_request_brings_the_next_probe_forward(self) -> None:
        """The back-off is longer while no request waits; the first one is dropped."""
        driver = Driver(open=fails)
        async with running(driver, 1, 1) as core:
            await asyncio.sleep(10.0)
            core.outages.outage.retry_at, core.outages.outage.idle_retry_at = 11.0, 60.0
            core.outages.retry.cancel()
            core.store.refill()
            assert core.outages.retry.at == 60.0
            driver.usual["open"] = ok
            waiting = asyncio.create_task(use(core))
            await settle()
            assert core.outages.retry.at != 60.0
            assert await waiting == pytest.approx(11.0, abs=0.001)

    @virtual_time
    async def test_a_passed_check_ends_an_outage(self) -> None:
        """Other connections that are wanted are opened at once."""

        async def check(_: FakeConn) -> None:
            await asyncio.sleep(0.01)

        driver = Driver(open=fails)
        async with running(driver, 3, 3, check=check) as core:
            await asyncio.sleep(20.0)
            waiting = start(core)
            await settle()
            driver.usual["open"] = ok
            conn = await waiting
            await settle()
            assert not core.outages.outage
            assert core.ledger.size == 3
            core.release(conn)

    @virtual_time
    async def test_a_short_outage_does_not_call_reconnect_failed(self) -> None:
        """The outage is over before `reconnect_timeout`."""
        told: list[float] = []

        async def tell() -> None:
            told.append(now())

        driver = Driver(open=fails)
        async with running(driver, 1, 1, on_outage=tell, reconnect_timeout=30.0):
            await asyncio.sleep(20.0)
            driver.usual["open"] = ok
            await asyncio.sleep(60.0)
            assert told == []

    @virtual_time
    async def test_the_pool_keeps_trying_after_reconnect_failed(self) -> None:
        """psycopg_pool stops until there is a new request."""

        async def tell() -> None:
            """Do nothing."""

        driver = Driver(open=fails)
        async with running(driver, 1, 1, on_outage=tell, reconnect_timeout=1.0) as core:
            await asyncio.sleep(1000.0)
            driver.usual["open"] = ok
            await asyncio.sleep(1.1)
            assert len(core.ledger.idle) == 1


class TestDiscard:
    @virtual_time
    async def test_a_closing_connection_is_not_discarded_again(self) -> None:
        """This holds while it closes and afterwards."""
        driver = Driver(close=slow(1.0))
        async with running(driver, 2, 2) as core:
            assert core.runtime.counters.connects == 2
            entry = core.ledger.idle[0]
            for state in (State.CLOSING, State.CLOSING, State.CLOSED, State.CLOSED):
                core.store.discard(entry)
                await asyncio.sleep(0.4)
                assert entry.state is state
            assert len(driver.times("close")) == 1
            assert (core.ledger.size, core.ledger.closing) == (2, 0)


class TestClean:
    @pytest.mark.parametrize("closing", [False, True])
    @virtual_time
    async def test_a_reset_that_fails_logs_a_warning(
        self, closing: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing is logged while the pool closes."""
        driver = Driver()

        async def fail_later() -> None:
            await asyncio.sleep(1.0)
            await fails()

        driver.script["reset"].append(fail_later)
        async with running(driver, 1, 1) as core:
            conn = await core.acquire(None)
            conn.clean = False
            core.release(conn)
            await settle()
            if closing:
                await core.close(5.0)
            else:
                await asyncio.sleep(2.0)
                assert conn.closed
        found = [each.levelno for each in caplog.records if each.levelno >= logging.WARNING]
        assert found == ([] if closing else [logging.WARNING])

    @virtual_time
    async def test_a_cancelled_reset_discards_the_connection(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The cancellation is passed on."""
        async with running(Driver(reset=never), 1, 1) as core:
            conn = await core.acquire(None)
            conn.clean = False
            core.release(conn)
            await settle()
            (task,) = [each for each in asyncio.all_tasks() if each.get_name() == "test: reset"]
            task.cancel()
            await settle()
            assert task.cancelled()
            assert conn.closed
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


class TestDropped:
    @virtual_time
    async def test_a_connect_that_hangs_does_not_keep_a_dropped_pool_alive(self) -> None:
        """The tasks hold the pool weakly."""
        driver = Driver(open=never)
        core = make_core(driver, 2)
        core.open()
        await settle()
        dead = weakref.ref(core)
        tasks = core.runtime.tasks
        del core
        gc.collect()
        assert dead() is None
        tasks.cancel_all()
        await settle()
        assert driver.sockets == 0

    @virtual_time
    async def test_a_connection_opened_after_the_pool_was_dropped_is_closed(self) -> None:
        """Nothing else would close it."""
        driver = Driver(open=slow(1.0))
        core = make_core(driver, 2)
        core.open()
        await settle()
        del core
        gc.collect()
        await asyncio.sleep(2.0)
        assert len(driver.conns) == 2
        assert driver.sockets == 0

    @virtual_time
    async def test_a_back_off_does_not_keep_a_dropped_pool_alive(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its timer holds the pool weakly."""
        caplog.set_level(logging.CRITICAL, "asyncpool")  # a log record holds its arguments
        core = make_core(Driver(open=fails), 1)
        core.open()
        await settle()
        dead = weakref.ref(core)
        del core
        gc.collect()
        assert dead() is None
        await asyncio.sleep(2.0)
        assert timers() == []


@virtual_time
async def test_a_connection_drained_while_opening_is_replaced() -> None:
    """The connection may have been made with outdated settings."""
    driver = Driver()
    driver.script["open"].append(slow(1.0))
    async with running(driver, 1, 1) as core:
        core.drain()
        core.release(await core.acquire(5.0))
        assert [entry.conn for entry in core.ledger.idle] == [driver.conns[1]]


@virtual_time
async def test_a_resize_opens_and_closes_at_once() -> None:
    """A surplus connection that is leased is closed when it is released."""
    driver = Driver()
    async with running(driver, 1, 1) as core:
        core.resize(4, 4)
        await settle()
        assert core.ledger.size == 4
        conns = [await core.acquire(1.0) for _ in range(3)]
        core.resize(1, 1)
        await settle()
        assert core.ledger.size == 3
        for conn in conns:
            core.release(conn)
        await settle()
        assert core.ledger.size == len(core.ledger.idle) == 1


@virtual_time
async def test_a_connection_counts_until_its_socket_is_closed() -> None:
    """Otherwise there would be one backend too many."""
    driver = Driver(close=stubborn(1.5))
    async with running(driver, 1, 1) as core:
        driver.conns[0].die()
        assert await use(core) == pytest.approx(1.5, abs=0.01)
    assert driver.most_sockets == 1


class TestTimes:
    @virtual_time
    async def test_all_durations_count_however_many_were_noted_since_the_last_flush(self) -> None:
        """The kept ones represent the others."""
        async with running(Driver(open=slow(0.25)), 0, 1) as core:
            counters = core.runtime.counters
            await asyncio.gather(*(use(core, 0.0001) for _ in range(3000)))
            holder = asyncio.create_task(use(core, 10.0))
            waits = [asyncio.create_task(use(core)) for _ in range(5)]
            await settle()
            counters.use_time += 7.0
            counters.shared_time += 7.0  # shared leases are not in the histogram
            core.flush_times()
            assert counters.connect.count == 1
            assert counters.connect.sum == counters.connect_time == pytest.approx(0.25)
            assert counters.wait.count == 3000
            assert counters.wait.sum == counters.wait_time > 0
            assert counters.use.count == 3000
            assert counters.use.sum == pytest.approx(0.3)
            await asyncio.gather(holder, *waits)

    @virtual_time
    async def test_leases_count_although_nobody_waited_since_the_last_flush(self) -> None:
        """Only then does nothing else flush their durations."""
        async with running(Driver(), 1, 1) as core:
            for _ in range(3000):
                await use(core)
            core.flush_times()
            assert core.runtime.counters.use.count == 3000

    @virtual_time
    async def test_waits_count_once_where_each_request_has_a_connection_of_its_own(self) -> None:
        """A request that waits for its own connect alone is not queued."""
        driver = Driver()
        async with running(driver, 0, 3000, keeps_idle=False) as core:
            counters = core.runtime.counters
            await asyncio.gather(*(use(core) for _ in range(2000)))
            driver.usual["open"] = slow(0.1)
            late = [asyncio.create_task(use(core)) for _ in range(2)]
            await settle()
            core.flush_times()
            assert counters.wait.count == counters.requests_queued > 1500
            await asyncio.gather(*late)


USUAL = ("opened", "closing", "closed")


@virtual_time
async def test_an_outage_lapses_when_no_connect_is_due(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Expired connections are closed again."""
    caplog.set_level(logging.INFO, "asyncpool")
    async with running(Driver(open=fails), 0, 1, upkeep=True, ping_interval=1.0) as core:
        with pytest.raises(PoolTimeout):
            await core.acquire(0.1)
        await asyncio.sleep(60.0)
        assert not core.outages.outage
        assert not core.ledger.keep_expired
    kinds = [vars(each)["pool_event"] for each in caplog.records]
    assert [kind for kind in kinds if kind not in USUAL] == ["outage", "outage lapsed"]


@virtual_time
async def test_every_failure_is_recorded_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reason is in the log, in a field of the log record, and in the pool's last events."""
    caplog.set_level(logging.INFO, "asyncpool")
    driver = Driver()
    async with running(driver, 1, 1) as core:
        store = core.store

        async def replaced() -> FakeConn:
            await asyncio.sleep(10.0)
            (entry,) = core.ledger.idle
            return entry.conn

        core.release(await core.acquire(5.0), cleanup=fails)
        conn = await replaced()
        conn.clean = False
        driver.script["reset"].append(fails)
        core.release(await core.acquire(5.0))
        await replaced()
        driver.script["ping"].append(fails)
        assert not await store.ping(core.ledger.idle[0])
        driver.script["close"].append(fails)
        (await replaced()).die()
        await replaced()
        began = now()
        driver.script["ping"].append(slow(0.25))
        assert await store.ping(core.ledger.idle[0])
        assert core.runtime.counters.ping.count == 1
        assert core.runtime.counters.ping.sum == pytest.approx(now() - began)

        driver.script["open"] += [fails, fails, late, late]
        (await replaced()).die()
        outage = now()
        await replaced()
    told = [
        (vars(each)["pool_event"], each.levelno, vars(each).get("pool_error"), each.getMessage())
        for each in caplog.records
        if vars(each)["pool_event"] not in USUAL
    ]
    said, other = "Broken", "TimeoutError"
    info, warning = logging.INFO, logging.WARNING
    assert [each[:3] for each in told] == [
        ("cleaning failed", info, said),
        ("reset failed", warning, said),
        ("ping failed", info, said),
        ("closing failed", info, said),
        ("outage", warning, said),
        ("connect failed", info, other),
        ("outage over", warning, None),
    ]
    assert all(each[3].startswith("pool 'test': ") for each in told)
    assert "connected again after" in told[-1][3]
    assert [reason in text for _, _, reason, text in told if reason] == [True] * 6
    facts = vars(next(each for each in caplog.records if vars(each)["pool_event"] == "outage over"))
    assert facts["pool_failures"] == 4
    assert 0 < facts["pool_duration"] < now() - outage
    kinds = [each.kind for each in core.runtime.events.last if each.kind not in USUAL]
    assert [kind for kind in kinds if kind != "lost"] == [kind for kind, *_ in told]
    assert [n for n, kind in enumerate(kinds) if kind == "lost"] == [2, 5, 6]


async def late() -> None:
    """A connect that times out."""
    raise TimeoutError
