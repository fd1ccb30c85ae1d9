"""Outages: which requests wait or fail at once, how often connecting is tried, what is kept."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from itertools import pairwise

import psycopg
import pytest

from asyncpool._core.entry import RETIRED
from asyncpool._core.outage import GRACE
from asyncpool.errors import PoolTimeout, PoolUnavailable
from asyncpool.faults import Fault, classify
from tests._tools import acquire_now
from tests.unit._tools import (
    Driver,
    fails,
    never,
    now,
    ok,
    running,
    settle,
    slow,
    use,
    virtual_time,
)

WRONG = 'FATAL:  password authentication failed for user "a"'
FULL = "FATAL:  sorry, too many clients already"


async def refused(said: str) -> None:
    """A connect that the server refuses after 10 ms."""
    await asyncio.sleep(0.01)
    raise psycopg.OperationalError(said)


async def failure(work: object) -> BaseException:
    """Return the exception that the work raises."""
    (error,) = await asyncio.gather(work, return_exceptions=True)  # type: ignore[call-overload]
    assert isinstance(error, BaseException)
    return error


class TestAccess:
    @virtual_time
    async def test_refused_access_fails_waiting_requests_at_once(self) -> None:
        """The requests do not wait for their timeout; the cause is the server's error."""
        driver = Driver(open=partial(refused, WRONG))
        async with running(driver, 0, 4) as core:
            found = await asyncio.gather(*(failure(use(core)) for _ in range(5)))
            assert now() == pytest.approx(0.01, abs=0.001)
            for error in found:
                assert isinstance(error, PoolUnavailable)
                assert str(error.__cause__) == WRONG
                assert "access has been refused" in str(error)
            assert (found[0].failures, core.ledger.queue.length) == (1, 0)  # type: ignore[attr-defined]
            assert core.runtime.counters.requests_failed == 5

    @virtual_time
    async def test_refused_access_is_tolerated_for_a_while_if_it_worked_before(self) -> None:
        """A new password does not reach the server and its clients at the same time."""
        driver = Driver()
        async with running(driver, 0, 4) as core:
            conn = await core.acquire(None)
            driver.usual["open"] = partial(refused, WRONG)
            conn.alive = False
            core.release(conn)
            waiting = asyncio.create_task(use(core))
            await asyncio.sleep(3.0)
            driver.usual["open"] = ok
            assert await waiting < 4.1
            driver.usual["open"] = partial(refused, WRONG)
            core.drain()
            assert isinstance(await failure(use(core)), PoolUnavailable)
            assert 3.0 + GRACE < now() < 5.2 + GRACE

    @virtual_time
    async def test_attempts_are_a_second_apart_however_many_requests_wait(self) -> None:
        """More attempts might lock an account and would fill a log."""
        driver = Driver(open=partial(refused, WRONG))
        async with running(driver, 0, 4) as core:
            while now() < 30.0:
                assert isinstance(await failure(use(core)), PoolUnavailable)
                await asyncio.sleep(0.02)
            times = driver.times("open")
            assert 25 < len(times[4:]) < 62
            assert min(late - early for early, late in pairwise(times[4:])) >= 0.5

    @virtual_time
    async def test_attempts_become_rare_while_no_request_waits(self) -> None:
        """`min_size` alone is not urgent."""
        driver = Driver(open=partial(refused, WRONG))
        async with running(driver, 1, 4):
            await asyncio.sleep(3600.0)
            times = driver.times("open")
            assert 60 <= 3600.0 / (times[-1] - times[-2]) <= 240
            assert len(times) < 260

    @virtual_time
    async def test_the_first_request_after_a_pause_waits_for_an_attempt(self) -> None:
        """No request fails when access has been restored."""
        driver = Driver(open=partial(refused, WRONG))
        async with running(driver, 0, 4) as core:
            assert isinstance(await failure(use(core)), PoolUnavailable)
            driver.usual["open"] = ok
            assert isinstance(await failure(use(core)), PoolUnavailable)
            await asyncio.sleep(1.1)
            assert await use(core) == pytest.approx(now())
            assert not core.outages.outage

    @virtual_time
    async def test_no_request_fails_while_a_leased_connection_may_come_back(self) -> None:
        """A leased connection still works and will serve the next request."""
        driver = Driver()
        driver.script["open"].append(ok)
        async with running(driver, 0, 2) as core:
            conn = await core.acquire(None)
            driver.usual["open"] = partial(refused, WRONG)
            waiting = asyncio.create_task(use(core))
            await asyncio.sleep(5.0)
            assert not waiting.done()
            core.release(conn)
            await waiting

    @virtual_time
    async def test_a_wait_for_min_size_waits_again_after_a_loss(self) -> None:
        """Connections that were open once do not count."""
        driver = Driver(open=slow(1.0))
        async with running(driver, 2, 2) as core:
            assert await core.readiness.wait()
            for entry in list(core.ledger.entries):
                core.store.discard_lost(entry)
            before = now()
            assert await core.readiness.wait()
            assert now() == pytest.approx(before + 1.0)
            assert core.ledger.size == 2

    @virtual_time
    async def test_a_wait_for_min_size_fails_too(self) -> None:
        """Each wait looks anew, whatever the last one has found."""
        driver = Driver(open=partial(refused, WRONG))
        async with running(driver, 2, 2) as core:
            assert not await core.readiness.wait()
            assert core.outages.is_unavailable()
            driver.usual["open"] = ok
            await asyncio.sleep(1.0)
            assert await core.readiness.wait()
            assert not core.outages.is_unavailable()
            driver.usual["open"] = fails
            core.drain()
            filling = asyncio.create_task(core.readiness.wait())
            await asyncio.sleep(10.0)
            assert not filling.done()
            driver.usual["open"] = ok
            assert await filling

    @virtual_time
    async def test_a_wait_for_min_size_shortens_the_back_off(self) -> None:
        """The effect is that of a waiting request, even after a long pause."""
        driver = Driver(open=partial(refused, WRONG))
        async with running(driver, 1, 1) as core:
            await asyncio.sleep(300.0)
            driver.usual["open"] = ok
            assert await core.readiness.wait()
            assert now() < 301.0

    @virtual_time
    async def test_the_back_off_is_short_while_any_wait_for_min_size_continues(self) -> None:
        """Afterwards attempts are half as frequent."""
        driver = Driver(open=fails)
        async with running(driver, 1, 1, fail_fast_after=math.inf) as core:
            filling = [asyncio.create_task(core.readiness.wait()) for _ in range(3)]
            found = []
            await asyncio.sleep(10.0)
            for left in ([], filling[:2], filling[2:]):
                for task in left:
                    task.cancel()
                await settle()
                before = len(driver.times("open"))
                await asyncio.sleep(60.0)
                found.append(len(driver.times("open")) - before)
            assert found[0] > 120
            assert found[1] > 120
            assert found[2] < 110

    @virtual_time
    async def test_a_connect_that_succeeds_beside_a_refusal_does_not_fill_the_pool(self) -> None:
        """Both end in the same tick."""
        driver = Driver(open=never)
        driver.script["open"] += [partial(refused, WRONG), partial(asyncio.sleep, 0.01)]
        async with running(driver, 2, 4) as core:
            filling = asyncio.create_task(core.readiness.wait())
            await asyncio.sleep(3.0)
            assert not filling.done()
            filling.cancel()


class TestLongOutage:
    @virtual_time
    async def test_requests_wait_until_the_outage_is_long_and_then_fail_at_once(self) -> None:
        """Requests that still wait at that moment fail too."""
        driver = Driver(open=fails)
        async with running(driver, 0, 4, timeout=30.0, fail_fast_after=10.0) as core:
            assert isinstance(await failure(use(core, timeout=5.0)), PoolTimeout)
            assert now() == pytest.approx(5.0)
            error = await failure(use(core))
            assert isinstance(error, PoolUnavailable)
            assert 10.0 <= now() <= 11.1
            assert error.lasts >= 10.0
            started = now()
            assert isinstance(await failure(use(core)), PoolUnavailable)
            assert (now(), core.ledger.queue.length) == (started, 0)

    @virtual_time
    async def test_an_outage_ends_within_a_second_of_the_servers_return(self) -> None:
        """No request is needed: the pool retries on its own for `min_size`."""
        driver = Driver(open=fails)
        async with running(driver, 2, 4, fail_fast_after=10.0) as core:
            await asyncio.sleep(100.0)
            driver.usual["open"] = ok
            await asyncio.sleep(1.0)
            await settle()
            assert len(core.ledger.idle) == 2
            await use(core, timeout=0)

    @virtual_time
    async def test_requests_wait_for_a_connect_under_way(self) -> None:
        """The connect may succeed; one that is late does not count."""
        driver = Driver(open=fails)
        async with running(driver, 0, 4, timeout=30.0, fail_fast_after=10.0) as core:
            assert isinstance(await failure(use(core)), PoolUnavailable)
            await asyncio.sleep(2.0)
            driver.script["open"].append(never)
            hung = asyncio.create_task(use(core))
            await asyncio.sleep(0.5)
            driver.usual["open"] = ok
            assert not hung.done()
            await asyncio.sleep(1.5)
            assert await hung < now()


class TestKeeping:
    @pytest.mark.parametrize("blip", [False, True])
    @virtual_time
    async def test_an_old_failure_does_not_make_requests_fail_during_a_restart(
        self, blip: bool
    ) -> None:
        """The failure was the only one, because no other connection was needed until now."""
        told: list[float] = []

        async def alarm() -> None:
            told.append(now())

        driver = Driver()
        async with running(driver, 4, 8, upkeep=True, ping_interval=30.0, on_outage=alarm) as core:
            held = [await core.acquire(None) for _ in range(4)]
            if blip:
                driver.script["open"].append(partial(refused, FULL))
            waiting = asyncio.create_task(use(core))
            await settle()
            for conn in held:
                core.release(conn)
            await waiting
            await asyncio.sleep(8 * 3600.0)
            driver.usual["open"] = fails
            for entry in list(core.ledger.idle):
                entry.conn.die()
            asyncio.get_running_loop().call_later(2.0, driver.usual.update, {"open": ok})
            await asyncio.gather(*(use(core) for _ in range(20)))
            assert told == []

    @virtual_time
    async def test_a_check_of_an_old_connection_ends_no_outage(self) -> None:
        """The check says nothing about new connects, which stay rare."""

        async def passes(_: object) -> None:
            """Pass."""

        driver = Driver()
        async with running(driver, 0, 8, timeout=60.0, check=passes) as core:
            core.release(await core.acquire(None))
            driver.usual["open"] = partial(refused, FULL)
            before = len(driver.times("open"))

            async def work() -> None:
                while now() < 10.0:
                    await use(core, 0.01)

            await asyncio.gather(*(work() for _ in range(10)))
            assert len(driver.times("open")) - before < 40

    @virtual_time
    async def test_one_refusal_does_not_fail_requests_that_other_connects_may_serve(self) -> None:
        """The parallel connects may succeed, and do."""
        driver = Driver(open=partial(asyncio.sleep, 0.02))
        driver.script["open"].append(partial(refused, WRONG))
        async with running(driver, 0, 4) as core:
            await asyncio.gather(*(use(core) for _ in range(4)))

    @virtual_time
    async def test_a_new_request_does_not_wait_for_a_connect_that_hangs(self) -> None:
        """This holds even if there is no room for another connect."""
        driver = Driver(open=fails)
        async with running(driver, 0, 1, timeout=30.0, fail_fast_after=5.0) as core:
            assert isinstance(await failure(use(core)), PoolUnavailable)
            await asyncio.sleep(1.1)
            driver.usual["open"] = never
            waiting = asyncio.create_task(use(core, timeout=10.0))
            await asyncio.sleep(2.0)
            started = now()
            assert isinstance(await failure(use(core)), PoolUnavailable)
            assert now() == started
            assert core.ledger.queue.length == 1
            assert isinstance(await failure(waiting), PoolTimeout)

    @virtual_time
    async def test_in_an_outage_no_connection_is_closed_for_its_age(self) -> None:
        """`max_lifetime` and `max_idle` apply again afterwards."""
        driver = Driver()
        limits = {"max_lifetime": 50.0, "max_idle": 20.0, "ping_interval": 1000.0}
        async with running(driver, 1, 3, upkeep=True, **limits) as core:
            conns = [await core.acquire(None) for _ in range(2)]
            driver.usual["open"] = partial(refused, FULL)
            waiting = asyncio.create_task(use(core, timeout=10.0))
            assert isinstance(await failure(waiting), PoolTimeout)
            waiting = asyncio.create_task(use(core, timeout=100.0))
            await asyncio.sleep(80.0)
            for conn in conns:
                core.release(conn)
            await waiting
            # Both are kept although they have expired; no request needs another one now.
            assert {each.conn for each in core.ledger.idle} == set(conns)
            driver.usual["open"] = ok
            await asyncio.sleep(60.0)
            assert len(core.ledger.idle) == 1
            assert not {each.conn for each in core.ledger.idle} & set(conns)
            assert not core.outages.outage

    @virtual_time
    async def test_a_server_without_room_is_tried_once_a_second(self) -> None:
        """There is one connect at a time, and no request fails."""
        driver = Driver(open=partial(refused, FULL))
        async with running(driver, 0, 8, timeout=40.0) as core:
            waiting = [asyncio.create_task(use(core)) for _ in range(20)]
            await asyncio.sleep(30.0)
            assert not any(each.done() for each in waiting)
            assert 30 <= len(driver.times("open")[8:]) <= 65
            driver.usual["open"] = ok
            await asyncio.gather(*waiting)


class TestFailures:
    @staticmethod
    def tell(conn: object, state: type[psycopg.Error] | None, *, lost: bool) -> None:
        conn.lose(state("said") if state else None, lost=lost)  # type: ignore[attr-defined]

    @virtual_time
    async def test_after_a_failover_all_older_connections_are_closed(self) -> None:
        """Leased ones are closed when released; newer ones stay. The error is logged."""
        async with running(Driver(), 3, 4) as core:
            old = {entry.conn for entry in core.ledger.entries}
            lent = await core.acquire(None)
            self.tell(lent, psycopg.errors.ReadOnlySqlTransaction, lost=False)
            await settle()
            (event,) = [each for each in core.runtime.events.last if each.kind == "failover"]
            said = "replacing all connections: ReadOnlySqlTransaction: said"
            assert (event.text, event.level) == (said, logging.WARNING)
            assert {entry.conn for entry in core.ledger.entries} & old == {lent}
            core.release(lent)
            await settle()
            assert not {entry.conn for entry in core.ledger.entries} & old
            # No effect: the connection is retired already.
            self.tell(lent, psycopg.errors.ReadOnlySqlTransaction, lost=False)
            await settle()
            assert len(core.ledger.idle) == 3
            assert len(core.runtime.tasks) == 0

    @virtual_time
    async def test_one_that_was_terminated_alone_is_replaced_alone(self) -> None:
        """The others were pinged and answered."""
        driver = Driver()
        async with running(driver, 3, 4) as core:
            first, *others = [entry.conn for entry in core.ledger.idle]
            first.alive = False
            self.tell(first, psycopg.errors.AdminShutdown, lost=True)
            await settle()
            assert set(others) < {entry.conn for entry in core.ledger.idle}
            assert len(core.ledger.idle) == 3
            assert (len(driver.times("ping")), core.runtime.counters.lost) == (2, 1)

    @virtual_time
    async def test_no_connection_is_leased_before_it_was_pinged(self) -> None:
        """During the pings a request waits for a moment."""
        driver = Driver(ping=partial(asyncio.sleep, 0.01))
        async with running(driver, 2, 2) as core:
            first, second = [entry.conn for entry in core.ledger.idle]
            first.alive = False
            self.tell(first, psycopg.errors.AdminShutdown, lost=True)
            assert acquire_now(core) is None
            conn = await core.acquire(None)
            assert conn in {second, *driver.conns[2:]}
            assert conn.alive
            core.release(conn)

    @pytest.mark.parametrize("state", [psycopg.errors.AdminShutdown, None])
    @virtual_time
    async def test_when_a_ping_fails_all_older_connections_are_closed(
        self, state: type[psycopg.Error] | None
    ) -> None:
        """This includes leased connections and one that is being opened. It is logged."""
        driver = Driver()
        async with running(driver, 6, 8) as core:
            conns = [entry.conn for entry in core.ledger.idle]
            lent = await core.acquire(None)
            driver.script["ping"].append(fails)
            for conn in conns[:3]:  # three at once, without an error from the server
                conn.alive = False
                self.tell(conn, state, lost=True)
                if state is not None:
                    break
            driver.script["open"].append(partial(asyncio.sleep, 0.5))
            await asyncio.sleep(1.0)
            events = [each for each in core.runtime.events.last if each.kind == "server leaving"]
            said = "the server is shutting down or has failed: replacing all connections"
            assert [(each.text, each.level) for each in events] == [(said, logging.WARNING)]
            assert {entry.conn for entry in core.ledger.entries} & set(conns) == {lent}
            core.release(lent)
            await settle()
            assert not {entry.conn for entry in core.ledger.entries} & set(conns)

    @virtual_time
    async def test_after_a_loss_in_use_the_others_are_pinged(self) -> None:
        """The pings start at once, so that the next user does not meet the same failure."""
        driver = Driver()
        async with running(driver, 3, 4) as core:
            conn = await core.acquire(None)
            for entry in core.ledger.idle:
                entry.watched, entry.conn.alive = True, False  # only a write would notice this
            conn.alive = False
            self.tell(conn, None, lost=True)
            core.release(conn)
            assert (await core.acquire(None)).alive
            assert len(driver.times("ping")) == 2
            for lent in list(core.ledger.leased):
                core.release(lent)

    @pytest.mark.parametrize("quick", [0, 1])
    @virtual_time
    async def test_all_connections_lost_with_their_server_are_counted(self, quick: int) -> None:
        """This includes one that answered, before or after another failed."""

        async def fails_later() -> None:
            await asyncio.sleep(0.2)
            await fails()

        answers = partial(asyncio.sleep, 0.1 if quick else 0.3)
        driver = Driver(ping=answers, close=partial(asyncio.sleep, 0.01))
        async with running(driver, 3, 3) as core:
            old = {entry.conn for entry in core.ledger.entries}
            first, *_ = [entry.conn for entry in core.ledger.idle]
            driver.script["ping"].append(fails_later)
            first.alive = False
            self.tell(first, psycopg.errors.AdminShutdown, lost=True)
            await asyncio.sleep(1.0)
            assert not {entry.conn for entry in core.ledger.entries} & old
            assert core.runtime.counters.lost == 3
            assert len(core.ledger.idle) == 3

    @virtual_time
    async def test_losses_far_apart_are_no_burst(self) -> None:
        """Each connection is replaced alone, and none is pinged."""
        driver = Driver()
        async with running(driver, 6, 8) as core:
            for entry in list(core.ledger.idle)[:4]:
                entry.conn.alive = False
                self.tell(entry.conn, None, lost=True)
                await asyncio.sleep(0.2)
            assert not driver.times("ping")
            for entry in list(core.ledger.idle)[:3]:
                entry.conn.alive = False
                self.tell(entry.conn, None, lost=True)
            await settle()
            assert driver.times("ping")  # whatever came before

    @virtual_time
    async def test_a_burst_is_three_losses_within_a_tenth_of_a_second(self) -> None:
        """The next loss alone is not a burst."""
        driver = Driver()
        async with running(driver, 12, 12) as core:
            conns = [entry.conn for entry in core.ledger.idle]
            for pause in (1.0, 0.08, 0.08):
                await asyncio.sleep(pause)
                conns.pop().die()
            await settle()
            assert not driver.times("ping")
            await asyncio.sleep(1.0)
            for _ in range(3):
                conns.pop().die()
            await settle()
            asked = len(driver.times("ping"))
            assert asked > 0
            conns.pop().die()
            await settle()
            assert len(driver.times("ping")) == asked

    @virtual_time
    async def test_connections_opened_since_do_not_vouch_for_older_ones(self) -> None:
        """One failed ping is enough; the newer connection stays."""

        async def fail_late() -> None:
            await asyncio.sleep(1.0)
            await fails()

        driver = Driver(ping=fail_late)
        async with running(driver, 3, 4) as core:
            await asyncio.sleep(10.0)
            driver.usual["open"] = partial(asyncio.sleep, 0.1)
            lost, kept = await core.acquire(None), await core.acquire(None)
            lost.alive = False
            self.tell(lost, None, lost=True)
            core.release(lost)
            younger = await core.acquire(None)
            await asyncio.sleep(2.0)
            ends = [core.ledger.leased[conn].expires_at == RETIRED for conn in (kept, younger)]
            assert ends == [True, False]
            core.release(kept)
            core.release(younger)

    @virtual_time
    async def test_a_repeated_failover_error_of_an_old_connection_has_no_effect(self) -> None:
        """Connections opened since the first error are not replaced again."""
        async with running(Driver(), 0, 4) as core:
            first, second = await core.acquire(None), await core.acquire(None)
            self.tell(first, psycopg.errors.ReadOnlySqlTransaction, lost=False)
            new = await core.acquire(None)
            core.release(new)
            self.tell(second, psycopg.errors.ReadOnlySqlTransaction, lost=False)
            await settle()
            assert [entry.conn for entry in core.ledger.idle] == [new]
            core.release(first)
            core.release(second)

    @virtual_time
    async def test_classify_is_not_called_without_an_error(self) -> None:
        """A loss without an error is judged by the state of the connection."""
        asked: list[BaseException] = []

        async with running(Driver(), 2, 2, classify=asked.append) as core:
            core.ledger.idle[0].conn.die()
            await settle()
            assert asked == []
            assert len(core.ledger.idle) == 2

    @virtual_time
    async def test_connections_that_the_pool_closes_do_not_count_as_lost(self) -> None:
        """Any number may close at once; an error of a single connection does not count either."""
        driver = Driver()
        async with running(driver, 0, 8) as core:
            conns = [await core.acquire(None) for _ in range(8)]
            for conn in conns:
                core.release(conn)
            core.resize(0, 5)
            for conn in conns[:3]:
                self.tell(conn, None, lost=True)
            for conn in conns[3:7]:
                conn.alive = False
                self.tell(conn, psycopg.errors.IdleSessionTimeout, lost=True)
            await settle()
            assert not driver.times("ping")
            assert [each.conn for each in core.ledger.idle] == conns[7:]

    @virtual_time
    async def test_a_failover_is_handled_once_a_second(self) -> None:
        """Not every failing statement replaces the connections."""
        driver = Driver()
        async with running(driver, 2, 2) as core:
            while now() < 9.9:
                conn = await core.acquire(None)
                self.tell(conn, psycopg.errors.ReadOnlySqlTransaction, lost=False)
                core.release(conn)
                await asyncio.sleep(0.01)
            assert 16 <= len(driver.times("open")) <= 24

    @virtual_time
    async def test_a_users_classify_decides(self) -> None:
        """If it fails, the failure is logged and the error is ignored."""

        def mine(error: BaseException) -> Fault | None:
            if isinstance(error, psycopg.errors.DiskFull):
                return Fault.CONNECTION
            if isinstance(error, psycopg.errors.DataError):
                raise ZeroDivisionError
            return classify(error)

        async with running(Driver(), 2, 2, classify=mine) as core:
            conns = {entry.conn for entry in core.ledger.idle}
            first = await core.acquire(None)
            self.tell(first, psycopg.errors.DiskFull, lost=False)
            core.release(first)
            await settle()
            assert {entry.conn for entry in core.ledger.idle} & conns == conns - {first}
            idle = core.ledger.idle[0].conn
            self.tell(idle, psycopg.errors.DiskFull, lost=False)
            assert idle.closed or idle not in {entry.conn for entry in core.ledger.idle}
            await settle()
            second = await core.acquire(None)
            self.tell(second, psycopg.errors.DataError, lost=False)
            core.release(second)
            await settle()
            assert second in {entry.conn for entry in core.ledger.idle}


@virtual_time
async def test_a_failing_classify_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the traceback; the pool continues."""

    def mine(_: BaseException) -> Fault | None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        async with running(Driver(open=fails), 0, 2, classify=mine) as core:
            assert isinstance(await failure(use(core, timeout=1.0)), PoolTimeout)
    assert "classify failed for" in caplog.text
