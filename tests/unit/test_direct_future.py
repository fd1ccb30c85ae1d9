"""A future whose task goes on within the callback that completes it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from asyncpool._psycopg.direct_future import DirectFuture, step_all

variable: ContextVar[str] = ContextVar("variable", default="none")


async def waiting(future: DirectFuture, seen: list[Any]) -> None:
    """Note what the future gives, in which task and context."""
    variable.set("of the task")
    try:
        result = await future
    except BaseException as error:
        seen.append(type(error))
        raise
    seen.append((result, asyncio.current_task(), variable.get()))


async def started() -> tuple[DirectFuture, asyncio.Task[None], list[Any]]:
    """A task that waits for a future."""
    future = DirectFuture(loop=asyncio.get_running_loop())
    seen: list[Any] = []
    task = asyncio.create_task(waiting(future, seen))
    await asyncio.sleep(0)
    return future, task, seen


async def test_the_task_goes_on_in_the_callback() -> None:
    """It runs as itself, in its own context, before the callback returns."""
    future, task, seen = await started()

    def callback() -> None:
        future.complete(7)
        assert not seen
        future.step()
        assert seen == [(7, task, "of the task")]

    asyncio.get_running_loop().call_soon(callback)
    await task


async def test_a_task_that_comes_late_does_not_wait() -> None:
    """A step before anybody waits does nothing."""
    future = DirectFuture(loop=asyncio.get_running_loop())
    future.complete(7)
    future.step()
    assert await future == 7


@pytest.mark.parametrize("end", ["result", "error", "cancel", "task"])
async def test_any_other_end_wakes_the_task_in_a_later_turn(end: str) -> None:
    """As with any future, also by a cancellation of the task."""
    future, task, seen = await started()
    if end == "result":
        future.set_result(7)
    elif end == "error":
        future.set_exception(ValueError())
    elif end == "cancel":
        future.cancel()
    else:
        task.cancel()
    assert not seen
    await asyncio.wait({task})
    expected = {"result": (7, task, "of the task"), "error": ValueError}
    assert seen == [expected.get(end, asyncio.CancelledError)]
    assert future.done()


async def test_a_cancellation_after_the_result_is_not_lost() -> None:
    """The task is cancelled at its next await, as with any future."""
    future, task, _seen = await started()
    future.complete(7)
    task.cancel()
    future.step()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_others_that_wait_are_called_in_a_later_turn() -> None:
    """Only the task itself goes on at once."""
    future, task, seen = await started()
    ended = asyncio.Event()
    future.add_done_callback(lambda _: ended.set())
    future.complete(7)
    asyncio.get_running_loop().call_soon(future.step)
    await asyncio.wait_for(ended.wait(), 5)
    await task
    assert seen


def test_a_task_that_ends_the_loop_does_not_hold_up_the_others() -> None:
    """The others go on when the loop runs again."""
    loop = asyncio.new_event_loop()
    seen: list[Any] = []

    async def leave(future: DirectFuture) -> None:
        await future
        raise SystemExit

    async def prepare() -> tuple[list[DirectFuture], asyncio.Task[None]]:
        futures = [DirectFuture(loop=loop) for _ in range(2)]
        leaving.append(asyncio.create_task(leave(futures[0])))
        task = asyncio.create_task(waiting(futures[1], seen))
        await asyncio.sleep(0)
        return futures, task

    leaving: list[asyncio.Task[None]] = []
    futures, task = loop.run_until_complete(prepare())
    for future in futures:
        future.complete(7)
    loop.call_soon(step_all, futures)
    with pytest.raises(SystemExit):
        loop.run_forever()
    loop.run_until_complete(task)
    assert seen == [(7, task, "of the task")]
    assert isinstance(leaving[0].exception(), SystemExit)
    loop.close()
