"""A future whose task goes on within the callback that completes it.

An ordinary future wakes its task in the next turn of the event loop. That costs a handle, a pass
through the loop and a system call for each statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any


class DirectFuture(asyncio.Future[Any]):
    """A future for one task, which awaits it at once.

    Only `complete` and `step` are direct: any other way to end it wakes the task as usual.
    """

    _wake: Callable[..., object] | None = None
    """Runs the next step of the task that awaits this; None: no task does."""
    _context: Context | None = None
    """The context of that task."""

    def add_done_callback(
        self, fn: Callable[[Any], object], /, *, context: Context | None = None
    ) -> None:
        """See `asyncio.Future`. A task passes its context, as other callers here do not."""
        if context is None or self._wake is not None or self.done():
            super().add_done_callback(fn, context=context)
        else:
            self._wake, self._context = fn, context

    def complete(self, result: Any) -> None:
        """Set the result; the caller calls `step` when its own work is done."""
        super().set_result(result)

    def step(self) -> None:
        """Run the task now, if it waits; only a callback of the event loop may call this."""
        wake, context, self._wake = self._wake, self._context, None
        if wake is not None and context is not None:
            context.run(wake, self)

    def set_result(self, result: Any, /) -> None:
        """See `asyncio.Future`."""
        self._step_later()
        super().set_result(result)

    def set_exception(self, exception: type | BaseException, /) -> None:
        """See `asyncio.Future`."""
        self._step_later()
        super().set_exception(exception)

    def cancel(self, msg: Any | None = None) -> bool:
        """See `asyncio.Future`."""
        self._step_later()
        return super().cancel(msg)

    def _step_later(self) -> None:
        """Have the end of this future wake its task in the next turn of the loop."""
        wake, self._wake = self._wake, None
        if wake is not None:
            super().add_done_callback(wake, context=self._context)


def step_all(futures: Sequence[DirectFuture]) -> None:
    """Run the tasks of completed futures, one after the other.

    If one ends the event loop, as by SystemExit, the others go on in a later turn, if there is one.
    """
    for number, future in enumerate(futures, 1):
        try:
            future.step()
        except BaseException:
            for other in futures[number:]:
                other._step_later()
            raise
