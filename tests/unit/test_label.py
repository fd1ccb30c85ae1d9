"""The label of a task: what the application says, and who sees it."""

from __future__ import annotations

import asyncio

from asyncpool import label
from asyncpool._core.label import label_of, named


def own() -> str:
    task = asyncio.current_task()
    assert task is not None
    return label_of(task)


async def test_a_label_lasts_until_the_end_of_its_block() -> None:
    """And then the one before it is there again."""
    assert own() == ""
    with label("outer"):
        with label(lambda: "inner"):
            assert own() == "inner"
        assert own() == "outer"
    assert own() == ""


async def test_a_label_without_a_block_lasts_for_the_rest_of_the_task() -> None:
    """It is that task's alone."""

    async def work() -> str:
        label("work")
        await asyncio.sleep(0)
        return own()

    assert await asyncio.create_task(work()) == "work"
    assert own() == ""


async def test_a_default_label_does_not_replace_another_one() -> None:
    """Nor does its end remove it."""
    with label("first"):
        with label("second", default=True):
            assert own() == "first"
        assert own() == "first"
    assert own() == ""


async def test_a_default_label_replaces_another_default() -> None:
    """That of the request before, which was served by the same task."""
    label("first", default=True)
    with label("second", default=True):
        assert own() == "second"
    assert own() == "first"


async def test_tasks_inherit_the_label() -> None:
    """A middleware may run the handler in another task."""

    async def work() -> str:
        return own()

    with label("outer"):
        task = asyncio.create_task(work())
    assert await task == "outer"


async def test_a_task_is_named_by_its_own_label_in_a_callback() -> None:
    """Not by the label of whoever waits for it, whose context its callback has."""

    async def work() -> None:
        label("work")
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    with label("watcher"):
        task.add_done_callback(lambda task: None)
        assert label_of(task) == "work"
        task.cancel()
        await asyncio.wait({task})
    assert label_of(task) == "work"


async def test_a_task_that_has_ended_has_the_last_label_of_its_blocks() -> None:
    """While it runs, a label that has ended says nothing of what it does."""
    goes_on, ends = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        with label("first"), label("second"):
            pass
        goes_on.set()
        await ends.wait()

    task = asyncio.create_task(work())
    await goes_on.wait()
    assert label_of(task) == ""
    ends.set()
    await task
    assert label_of(task) == "first"


async def test_a_label_that_raises_is_no_label() -> None:
    """An explanation must not fail for it."""

    def broken() -> str:
        raise LookupError

    with label(broken):
        task = asyncio.current_task()
        assert task is not None
        assert named(task) == task.get_name()


def test_a_label_without_an_event_loop_does_no_harm() -> None:
    """It is of no use there."""
    with label("nothing"):
        pass


async def test_a_label_cannot_forge_lines_of_a_log() -> None:
    """It has no control characters, and a limit."""
    task = asyncio.current_task()
    assert task is not None
    with label("GET /a\nWARNING\x1b[31m"):
        assert label_of(task) == "GET /a\ufffdWARNING\ufffd[31m"
    with label(lambda: "x" * 5000):
        assert label_of(task) == "x" * 200 + "..."
