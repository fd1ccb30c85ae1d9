"""The explanation in each state of the pool, on a virtual clock."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from asyncpool._diagnostics.explain import MAX_WAITERS, explain
from asyncpool.errors import PoolClosed, PoolTimeout
from tests.unit._tools import (
    Driver,
    fails,
    make_core,
    running,
    settle,
    slow,
    start,
    use,
    virtual_time,
)


@virtual_time
async def test_each_connection_has_its_state_and_the_time_in_it() -> None:
    """A connection keeps its number."""
    async with running(Driver(close=slow(9.0)), 1, 3) as core:
        await asyncio.sleep(2.0)
        conn = await core.acquire(None)
        asyncio.create_task(use(core, 1.0), name="second")  # noqa: RUF006
        await asyncio.sleep(3.0)
        first, second = explain(core).connections
        assert (first.number, first.state, first.since, first.uses) == (1, "leased", 3.0, 1)
        assert first.lease is not None
        assert first.lease == explain(core).leases[0]
        assert (second.number, second.state, second.lease) == (2, "idle", None)
        assert second.since == pytest.approx(2.0, abs=0.001)
        assert first.age == pytest.approx(5.0, abs=0.001)
        core.discard(conn)
        await asyncio.sleep(1.0)
        first, *_ = explain(core).connections
        assert (first.state, first.since) == ("closing", 1.0)


@virtual_time
async def test_opening_and_cleaning_connections_are_reported() -> None:
    """Each has the seconds in its state."""
    driver = Driver(open=slow(4.0), ping=slow(3.0))
    async with running(driver, 1, 1) as core:
        await asyncio.sleep(0.5)
        (opening,) = explain(core).connections
        assert (opening.state, opening.age) == ("opening", 0.0)
        assert opening.since == pytest.approx(0.5, abs=0.001)
        assert explain(core).doing == ("opening 1",)
        await asyncio.sleep(9.0)
        core.runtime.tasks.spawn(core.store.ping(core.ledger.idle[0]), "ping")
        await asyncio.sleep(2.0)
        (cleaning,) = explain(core).connections
        assert (cleaning.state, cleaning.since) == ("cleaning", 2.0)
        assert explain(core).doing == ("cleaning or pinging 1",)


@virtual_time
async def test_the_first_waiters_are_listed_in_order() -> None:
    """The first hundred are listed; the text has ten and counts the others."""
    async with running(Driver(), 1, 1) as core:
        conn = await core.acquire(None)
        waiting = []
        for number in range(MAX_WAITERS + 5):
            waiting.append(start(core))
            waiting[-1].set_name(f"w{number}")
            await asyncio.sleep(0.1)
        found = explain(core)
        assert [each.task for each in found.waiters] == [
            f"w{number}" for number in range(MAX_WAITERS)
        ]
        assert found.waiters[0].age > found.waiters[1].age
        assert found.stats.waiting == MAX_WAITERS + 5
        assert "and 95 more" in str(found)
        for task in waiting:
            task.cancel()
        await settle()
        core.release(conn)


@virtual_time
async def test_an_outage_is_reported_while_it_lasts_and_afterwards() -> None:
    """The error, the pool's next step, and the duration of the outage."""
    driver = Driver(open=fails)
    async with running(driver, 1, 1) as core:
        await asyncio.sleep(3.0)
        found = explain(core)
        assert "the next connect in" in found.doing[0]
        assert found.last_error is not None
        assert "connecting fails" in found.advice[0]
        assert [each.kind for each in found.events] == ["outage", "opened"]
        driver.usual["open"] = slow(0.0)
        await asyncio.sleep(3.0)
        found = explain(core)
        assert found.doing == ()
        over, begun, _ = found.events
        assert (over.kind, begun.kind) == ("outage over", "outage")
        assert (over.level, begun.level) == ("warning", "warning")


@virtual_time
async def test_draining_and_shrinking_are_reported_until_they_are_done() -> None:
    """They last until the leased connections are returned."""
    async with running(Driver(), 2, 2) as core:
        leased = [await core.acquire(None), await core.acquire(None)]
        core.drain()
        core.resize(1, 1)
        found = explain(core)
        assert found.doing == (
            "draining: 2 will be replaced when returned",
            "shrinking: 1 will be closed when returned",
        )
        assert [each.kind for each in found.events] == ["resized", "drained", "opened"]
        for conn in leased:
            core.release(conn)
        await settle()
        assert explain(core).doing == ()


@virtual_time
async def test_each_step_of_a_pools_life_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and kept with its numbers."""
    caplog.set_level(logging.INFO)
    async with running(Driver(), 1, 2) as core:
        core.resize(0, 3)
        core.drain()
        await core.acquire(None)
        await core.close(1.0)
        texts = [
            "open, with 1 to 2",
            "resized: min_size=0, max_size=3",
            "drained: all connections are being replaced",
            "closing, with 1 connections in use",
            "closed while in use: <conn 2>",
        ]
        assert [each.text for each in reversed(explain(core).events)] == texts
        assert caplog.messages == [f"pool 'test': {text}" for text in texts]


async def test_an_event_before_the_opening_has_its_age() -> None:
    """A pool that was left open on an event loop that has ended has such an event."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    core = make_core(Driver())
    core.runtime.record("left behind", "was not closed")
    core.open()
    age = explain(core).events[-1].age
    await core.close(0)
    assert 0 <= age <= loop.time() - began


@virtual_time
async def test_a_connection_closed_in_use_is_logged_with_its_holder_and_age(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are fields of the record, which is a warning."""
    async with running(Driver(), 1, 1) as core:
        await asyncio.sleep(10.0)
        await asyncio.create_task(core.acquire(None), name="hoarder")
        await asyncio.sleep(3.0)
        await core.close(2.0)
    (record,) = caplog.records
    found = vars(record)
    assert (record.levelname, found["pool_event"]) == ("WARNING", "closed while in use")
    assert found["pool_task"] == "hoarder"
    assert found["pool_age"] == pytest.approx(5.0, abs=0.001)


@virtual_time
async def test_a_renamed_pool_logs_under_its_new_name(caplog: pytest.LogCaptureFixture) -> None:
    """Its errors have that name too."""
    async with running(Driver(), 1, 1) as core:
        await core.acquire(None)
        core.change(name="orders")
        await core.close(0)
        with pytest.raises(PoolClosed, match="pool 'orders'"):
            await core.acquire(None)
    assert caplog.messages == ["pool 'orders': closed while in use: <conn 1>"]


@virtual_time
async def test_the_explanation_is_json() -> None:
    """Infinite bounds and durations become JSON too."""
    async with running(Driver(open=slow(1.0)), 1, 2, leak_timeout=float("inf")) as core:
        asyncio.create_task(use(core, 9.0), name="holder")  # noqa: RUF006
        await asyncio.sleep(2.0)
        found = explain(core).as_dict()
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        (lease,) = found["leases"]
        assert lease["holder"] == "holder"
        assert found["stats"]["use"]["buckets"][-1][0] is None
        await asyncio.sleep(9.0)


@virtual_time
async def test_a_timeout_is_counted_apart_from_other_failures() -> None:
    """Timeouts are a part of the failed requests."""
    async with running(Driver(), 1, 1, max_waiting=1) as core:
        await core.acquire(None)
        waiting = start(core, 5.0)
        await settle()
        with pytest.raises(Exception, match="already waiting"):
            await core.acquire(5.0)
        with pytest.raises(PoolTimeout):
            await waiting
        stats = explain(core).stats
        assert (stats.requests_failed, stats.requests_timed_out) == (2, 1)
        assert (stats.wait.count, stats.wait.max) == (1, 5.0)
        assert stats.connect.count == 1


@virtual_time
async def test_leases_name_their_holders_with_the_longest_first() -> None:
    """Each lease has its task and its age."""
    async with running(Driver(), 2, 2) as core:
        for name in ("first", "second"):
            asyncio.create_task(use(core, 5.0), name=name)  # noqa: RUF006
            await asyncio.sleep(1.0)
        found = explain(core).leases
        assert [lease.holder for lease in found] == ["first", "second"]
        assert found[0].age == pytest.approx(2.0, abs=0.001)
        await asyncio.sleep(5.0)
        assert explain(core).leases == ()


@virtual_time
async def test_the_explanation_has_numbers_holders_and_advice() -> None:
    """The text is for a person to read."""
    async with running(Driver(), 1, 1) as core:
        asyncio.create_task(use(core, 40.0), name="hoarder")  # noqa: RUF006
        await settle()
        waiting = start(core, 60.0)
        await asyncio.sleep(35.0)
        text = str(explain(core))
        assert "size 1 of 1 to 1: 0 idle, 1 leased" in text
        assert "leased for 35.000 s by hoarder\n" in text
        assert "1 waiting\n  the first for 35.000 s" in text
        assert "raise max_size" in text
        assert "is it ever returned?" in text
        core.release(await waiting)
