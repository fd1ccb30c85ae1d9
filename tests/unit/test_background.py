"""The pool's own tasks: their context, their crashes, their end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from contextvars import ContextVar, copy_context

import anyio.lowlevel
import pytest

import tests.sim.loop
from asyncpool._core.background import BackgroundTasks
from tests.unit._tools import never, now, ok, settle, slow, stubborn, virtual_time

user: ContextVar[str] = ContextVar("user", default="nobody")


async def crash() -> None:
    raise ValueError("a bug")


@virtual_time
async def test_tasks_start_with_an_empty_context() -> None:
    """No request's variables live on in them."""
    tasks = BackgroundTasks("main")
    user.set("alice")

    async def who() -> str:
        return user.get()

    assert await tasks.spawn(who(), "look") == "nobody"


@virtual_time
async def test_a_context_can_be_given() -> None:
    """As for a check, which is the borrower's own code."""
    tasks = BackgroundTasks("main")
    user.set("alice")

    async def who() -> str:
        return user.get()

    assert await tasks.spawn(who(), "look", copy_context()) == "alice"


@virtual_time
async def test_a_task_is_named_for_the_pool_and_its_job() -> None:
    """So that it is recognised in a debugger and in logs."""
    tasks = BackgroundTasks("main")
    assert tasks.spawn(never(), "close").get_name() == "main: close"
    await tasks.stop(1.0)


@virtual_time
async def test_a_crash_is_logged_and_the_task_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """It is never lost, and never surfaces in somebody else's task."""
    tasks = BackgroundTasks("main")
    tasks.spawn(crash(), "reset")
    await settle()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "main: reset" in record.message
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a bug"
    assert len(tasks) == 0


@virtual_time
async def test_a_cancelled_task_is_no_crash(caplog: pytest.LogCaptureFixture) -> None:
    """It ends as it was told to."""
    tasks = BackgroundTasks("main")
    tasks.spawn(never(), "connect").cancel()
    await settle()
    assert len(tasks) == 0
    assert caplog.records == []


@virtual_time
async def test_no_cancellation_of_the_spawner_reaches_a_task() -> None:
    """Neither asyncio's nor that of an anyio scope."""
    tasks = BackgroundTasks("main")
    ended: list[str] = []

    async def work() -> None:
        await slow(1.0)()
        ended.append("work")

    async def borrower() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            tasks.spawn(work(), "reset")
            await anyio.lowlevel.checkpoint()

    task = asyncio.create_task(borrower())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(2.0)
    assert ended == ["work"]


@virtual_time
async def test_to_dismiss_cancels_all_and_waits_for_none() -> None:
    """It is a plain call, for a pool that is collected."""
    tasks = BackgroundTasks("main")
    spawned = [tasks.spawn(never(), "ping") for _ in range(3)]
    await settle()
    tasks.cancel_all()
    await settle()
    assert all(task.cancelled() for task in spawned)


@virtual_time
async def test_to_stop_waits_until_all_are_gone() -> None:
    """And no longer."""
    tasks = BackgroundTasks("main")
    tasks.spawn(never(), "ping")
    tasks.spawn(stubborn(0.3)(), "reset")  # type: ignore[arg-type]
    await settle()
    await tasks.stop(5.0)
    assert len(tasks) == 0
    assert now() < 0.7


@virtual_time
async def test_to_stop_cancels_again_what_obeys_no_first_time() -> None:
    """psycopg answers the first cancellation by cancelling the query on the server."""
    tasks = BackgroundTasks("main")
    cancelled = 0

    async def twice() -> None:
        nonlocal cancelled
        while cancelled < 3:
            try:
                await never()
            except asyncio.CancelledError:
                cancelled += 1

    tasks.spawn(twice(), "reset")
    await settle()
    await tasks.stop(5.0)
    assert (cancelled, len(tasks)) == (3, 0)


def test_a_loop_that_is_held_up_stops_as_patiently() -> None:
    """Time in which nobody could run does not count: all are asked as often as ever."""
    loop = tests.sim.loop.VirtualLoop()

    async def obey_the_third() -> None:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await never()
            loop.now += 1.0
        await never()

    async def stop() -> None:
        tasks = BackgroundTasks("main")
        tasks.spawn(obey_the_third(), "close")
        await asyncio.sleep(0)
        await tasks.stop(0.5)
        assert len(tasks) == 0

    loop.finish(stop())


@virtual_time
async def test_to_stop_ends_at_its_limit() -> None:
    """Whatever the stubborn ones do."""
    tasks = BackgroundTasks("main")
    tasks.spawn(stubborn(60.0)(), "reset")  # type: ignore[arg-type]
    await settle()
    await tasks.stop(0.5)
    assert len(tasks) == 1
    assert now() < 1.0


@virtual_time
async def test_to_stop_an_empty_crew_does_not_wait() -> None:
    """There is nothing to wait for."""
    await BackgroundTasks("main").stop(5.0)
    assert now() == 0.0


def test_tasks_of_a_closed_loop_are_ended_where_they_stand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their clean-up is run, whatever it lacks without a loop, and asyncio does not complain."""
    tasks = BackgroundTasks("main")
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await never()
        finally:
            ended.append(name)
            asyncio.get_running_loop()

    async def start() -> None:
        for name in ("one", "two"):
            tasks.spawn(work(name), name)
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    tasks.cancel_all()  # nobody hears of it
    tasks.force_close()
    assert sorted(ended) == ["one", "two"]
    assert not len(tasks)
    gc.collect()
    assert not caplog.records


@virtual_time
async def test_the_stubborn_are_asked_ever_less_often() -> None:
    """Each cancellation may be work for the server."""
    tasks = BackgroundTasks("main")
    asked: list[float] = []

    async def refuse() -> None:
        while len(asked) < 100:
            try:
                await never()
            except asyncio.CancelledError:
                asked.append(now())

    task = tasks.spawn(refuse(), "reset")
    await settle()
    await tasks.stop(0.5)
    assert len(asked) == 6
    asked += [0.0] * 100
    task.cancel()
    await settle()


@virtual_time
async def test_one_that_was_spared_is_forgotten_at_its_end() -> None:
    """As all are."""
    tasks = BackgroundTasks("main")
    task = tasks.spawn(ok(), "reconnect_failed")
    tasks.exempt(task)
    await tasks.stop(5.0)
    assert not task.done()
    await task
    await settle()
    assert not tasks._exempt
    assert len(tasks) == 0
