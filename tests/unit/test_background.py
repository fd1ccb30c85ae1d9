"""Background tasks: their context, their failures, their end."""

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
from tests.unit._tools import (
    Driver,
    never,
    now,
    ok,
    running,
    settle,
    slow,
    stubborn,
    virtual_time,
)

user: ContextVar[str] = ContextVar("user", default="nobody")


async def crash() -> None:
    raise ValueError("a bug")


@virtual_time
async def test_tasks_start_with_an_empty_context() -> None:
    """The tasks keep no request's context variables."""
    tasks = BackgroundTasks("main")
    user.set("alice")

    async def who() -> str:
        return user.get()

    assert await tasks.spawn(who(), "look") == "nobody"


@virtual_time
async def test_a_context_can_be_given() -> None:
    """A check needs it, because it is the user's own code."""
    tasks = BackgroundTasks("main")
    user.set("alice")

    async def who() -> str:
        return user.get()

    assert await tasks.spawn(who(), "look", copy_context()) == "alice"


@virtual_time
async def test_a_task_is_named_for_the_pool_and_its_job() -> None:
    """The name identifies the task in a debugger and in logs."""
    tasks = BackgroundTasks("main")
    assert tasks.spawn(never(), "close").get_name() == "main: close"
    await tasks.stop(1.0)


@virtual_time
async def test_a_task_has_the_pools_present_name(caplog: pytest.LogCaptureFixture) -> None:
    """A pool may be renamed, and its logs are searched by its name."""
    async with running(Driver(), 0, 1) as core:
        core.change(name="renamed")
        task = core.runtime.tasks.spawn(crash(), "close")
        await settle()
        assert task.get_name() == "renamed: close"
        assert [vars(each)["pool"] for each in caplog.records][-1] == "renamed"


@virtual_time
async def test_a_failed_task_is_logged_and_removed(caplog: pytest.LogCaptureFixture) -> None:
    """The error is not lost and is not raised in another task."""
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
async def test_a_cancelled_task_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Cancellation is no failure."""
    tasks = BackgroundTasks("main")
    tasks.spawn(never(), "connect").cancel()
    await settle()
    assert len(tasks) == 0
    assert caplog.records == []


@virtual_time
async def test_cancelling_the_caller_does_not_reach_a_task() -> None:
    """This holds for asyncio and for anyio scopes."""
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
async def test_cancel_all_cancels_all_tasks_and_waits_for_none() -> None:
    """The method is a plain call, for a pool that is garbage."""
    tasks = BackgroundTasks("main")
    spawned = [tasks.spawn(never(), "ping") for _ in range(3)]
    await settle()
    tasks.cancel_all()
    await settle()
    assert all(task.cancelled() for task in spawned)


@virtual_time
async def test_stop_waits_until_all_tasks_have_ended() -> None:
    """The wait is no longer than that."""
    tasks = BackgroundTasks("main")
    tasks.spawn(never(), "ping")
    tasks.spawn(stubborn(0.3)(), "reset")  # type: ignore[arg-type]
    await settle()
    await tasks.stop(5.0)
    assert len(tasks) == 0
    assert now() < 0.7


@virtual_time
async def test_stop_cancels_again_if_a_task_ignores_the_first_time() -> None:
    """psycopg reacts to the first cancellation by cancelling the query on the server."""
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


def test_stop_makes_as_many_attempts_on_a_blocked_loop() -> None:
    """Time in which no task could run does not count."""
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
async def test_stop_ends_at_its_limit() -> None:
    """Tasks may ignore cancellation for longer."""
    tasks = BackgroundTasks("main")
    tasks.spawn(stubborn(60.0)(), "reset")  # type: ignore[arg-type]
    await settle()
    await tasks.stop(0.5)
    assert len(tasks) == 1
    assert now() < 1.0


@virtual_time
async def test_stop_without_tasks_does_not_wait() -> None:
    """There is nothing to wait for."""
    await BackgroundTasks("main").stop(5.0)
    assert now() == 0.0


def test_tasks_of_a_closed_loop_are_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Their `finally` blocks run as far as they can without a loop, and asyncio logs nothing."""
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
    tasks.cancel_all()  # has no effect
    tasks.force_close()
    assert sorted(ended) == ["one", "two"]
    assert not len(tasks)
    gc.collect()
    assert not caplog.records


@virtual_time
async def test_stop_cancels_less_and_less_often() -> None:
    """Each cancellation may cause work on the server."""
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
async def test_an_exempt_task_is_removed_at_its_end() -> None:
    """Every task is."""
    tasks = BackgroundTasks("main")
    task = tasks.spawn(ok(), "reconnect_failed")
    tasks.exempt(task)
    await tasks.stop(5.0)
    assert not task.done()
    await task
    await settle()
    assert not tasks._exempt
    assert len(tasks) == 0
