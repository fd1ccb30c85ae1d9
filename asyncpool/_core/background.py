"""The pool's background tasks: work that must finish even if the caller is cancelled.

A task starts with an empty context, so that it does not keep a request's context variables alive.
Neither asyncio nor anyio cancellation of a caller reaches it. If it fails, the error is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from asyncpool._core.events import fields

T = TypeVar("T")

logger = logging.getLogger("asyncpool")


async def outcome(work: Callable[[], Awaitable[object]]) -> Exception | None:
    """Await the work; return the exception that it raised, or None."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - returned to the caller
        return error
    return None


def force_close(task: asyncio.Task[Any]) -> None:
    """End a task whose event loop is closed, without asyncio's warning about pending tasks."""
    if not task.done() and (work := task.get_coro()) is not None:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(Exception):  # its clean-up may need the event loop
            work.close()


class BackgroundTasks:
    """The background tasks of one pool."""

    def __init__(self, name: str) -> None:
        self.name = name
        """The name of the pool."""
        self._tasks: dict[asyncio.Task[Any], tuple[str, Callable[[], object] | None]] = {}
        """The job of each task, and what is called when it has ended."""
        self._exempt: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    def spawn(
        self,
        work: Coroutine[Any, Any, T],
        job: str,
        context: Context | None = None,
        *,
        ended: Callable[[], object] | None = None,
    ) -> asyncio.Task[T]:
        """Start a background task.

        Args:
            work: what it does; nothing, if it is cancelled before its first step.
            job: its name, after the pool's.
            context: its context; None: an empty one.
            ended: called when it has ended, however that was, unless its event loop was closed.
        """
        try:
            task = asyncio.get_running_loop().create_task(
                work, name=f"{self.name}: {job}", context=context or Context()
            )
        except BaseException:
            work.close()
            raise
        self._tasks[task] = job, ended
        task.add_done_callback(self._ended, context=Context())
        return task

    def running(self, job: str) -> set[asyncio.Task[Any]]:
        """Return the tasks that do a job now."""
        return {task for task, (its_job, _) in self._tasks.items() if its_job == job}

    def exempt(self, task: asyncio.Task[Any] | None) -> None:
        """Do not cancel this task with the others: it runs a callback that has called `close()`."""
        if task in self._tasks:
            self._exempt.add(task)

    def cancel_all(self) -> None:
        """Cancel all tasks once, without waiting for them."""
        for task in self._tasks.keys() - self._exempt:
            with contextlib.suppress(RuntimeError):  # the task's event loop is closed
                task.cancel()

    def force_close(self) -> None:
        """End all tasks; their event loop is closed."""
        for task in list(self._tasks):
            force_close(task)
        self._tasks.clear()

    async def stop(self, limit: float) -> None:
        """Cancel all tasks repeatedly until they have ended, for at most `limit` seconds.

        One cancellation is not enough: psycopg reacts to the first one by cancelling the query on
        the server, which may take any time. Only time spent waiting counts, so a blocked event loop
        does not reduce the number of attempts.
        """
        pause = 0.01
        while (tasks := self._tasks.keys() - self._exempt) and limit > 0:
            self.cancel_all()
            await asyncio.wait(tasks, timeout=pause)
            limit -= pause
            pause *= 2

    def _ended(self, task: asyncio.Task[Any]) -> None:
        _, ended = self._tasks.pop(task, (None, None))
        self._exempt.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            extra = fields(self.name, "task failed")
            logger.error("task %r failed", task.get_name(), exc_info=error, extra=extra)
        if ended is not None:
            ended()
