"""The pool's own tasks: whatever must be done to its end although the borrower is gone.

They start with an empty context, so that no request's variables live on in them, and none of them
can be reached by a borrower's cancellation, asyncio's or anyio's. A crash is logged, never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

from asyncpool._core.events import fields

T = TypeVar("T")

logger = logging.getLogger("asyncpool")


def force_close(task: asyncio.Task[Any]) -> None:
    """End one whose loop is closed where it stands, now and with no complaint of asyncio's."""
    if not task.done() and (work := task.get_coro()) is not None:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(Exception):  # it may want a loop for its clean-up
            work.close()


class BackgroundTasks:
    """The tasks of one pool."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._exempt: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    def spawn(
        self, work: Coroutine[Any, Any, T], job: str, context: Context | None = None
    ) -> asyncio.Task[T]:
        """Start a task that the pool answers for."""
        try:
            task = asyncio.get_running_loop().create_task(
                work, name=f"{self._name}: {job}", context=context or Context()
            )
        except BaseException:
            work.close()
            raise
        self._tasks.add(task)
        task.add_done_callback(self._ended, context=Context())
        return task

    def exempt(self, task: asyncio.Task[Any] | None) -> None:
        """Let it end by itself: it runs a user's callback that has called `close()`."""
        if task in self._tasks:
            self._exempt.add(task)

    def dismiss(self) -> None:
        """Cancel all, once, and wait for none."""
        for task in self._tasks - self._exempt:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nothing runs there
                task.cancel()

    def force_close(self) -> None:
        """Their loop is closed: end all."""
        for task in list(self._tasks):
            force_close(task)
        self._tasks.clear()

    async def stop(self, limit: float) -> None:
        """Cancel all until they are gone, for `limit` seconds at most.

        Once is not enough: psycopg answers the first cancellation of a query by cancelling it on
        the server, which may take as long as the server likes. What counts is the time that they
        had: a loop that was held up meanwhile asks no less often.
        """
        pause = 0.01
        while (tasks := self._tasks - self._exempt) and limit > 0:
            self.dismiss()
            await asyncio.wait(tasks, timeout=pause)
            limit -= pause
            pause *= 2

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._exempt.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            extra = fields(self._name, "task failed")
            logger.error("task %r failed", task.get_name(), exc_info=error, extra=extra)
