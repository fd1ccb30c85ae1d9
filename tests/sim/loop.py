"""An event loop without I/O: its clock stands still while work is ready, then jumps to the next.

`turn` is asyncio's `_run_once` without a selector. Two things differ, within what a real loop may
do. After many busy turns, time passes: a cancelled anyio scope calls its tasks in every turn and
would otherwise stop the clock for ever. And if nothing can ever happen again, that is an error
instead of a hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import sys
from asyncio import Handle
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, ClassVar

BUSY = 60
"""The number of turns without a pause after which the next timer is due."""


class NothingToDo(RuntimeError):
    """A task waits for something that can never happen."""


class NumberedTask(asyncio.Task[Any]):
    """A task whose hash does not depend on its address, so that a run can be repeated."""

    made: ClassVar[int] = 0

    def __new__(cls, *_: Any, **__: Any) -> NumberedTask:
        """Number the task before its hash is needed."""
        task = super().__new__(cls)
        NumberedTask.made += 1
        task.number = NumberedTask.made
        return task

    number: int

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """A loop whose time passes only while no work is ready."""

    _ready: deque[Handle]
    _scheduled: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.resolution = 1e-9
        self.turns = 0
        self.held_up = 0.0
        """Seconds that passed while work was ready; deadlines may be missed by this much."""
        self.eager = False
        """Whether tasks start at once, as with `asyncio.eager_task_factory`."""
        self.complaints: list[str] = []
        """Messages that the loop would have logged, such as exceptions never retrieved."""
        self._busy = 0
        NumberedTask.made = 0

    def time(self) -> float:
        """Return the instant on the virtual clock, from 0."""
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Schedule a callback; callbacks run in order of registration, as on every loop."""
        handle = Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def create_task(  # type: ignore[override]
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: Context | None = None,
        **rest: Any,
    ) -> asyncio.Task[Any]:
        """Create a task, numbered in order of creation."""
        if self.eager and sys.version_info >= (3, 12):
            rest.setdefault("eager_start", True)
        return NumberedTask(coro, loop=self, name=name, context=context, **rest)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep the message; no callback or task may fail unnoticed."""
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    def turn(self) -> None:
        """Run ready callbacks once; if there are none, let time pass."""
        ready, scheduled = self._ready, self._scheduled
        self._forget_cancelled_timers()
        if ready and self._busy < BUSY:
            self._busy += 1
        elif scheduled:
            leap = max(0.0, scheduled[0]._when - self.now)
            self.now += leap
            self.held_up += leap if ready else 0.0
            self._busy = 0
        elif not ready:
            msg = "nothing can ever happen again"
            raise NothingToDo(msg)
        due: list[Any] = []
        while scheduled and scheduled[0]._when < self.now + self.resolution:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                due.append(handle)
        self.turns += 1
        self._run(due)

    def settle(self) -> None:
        """Run turns until nothing is ready."""
        while self._ready:
            self.turn()

    def advance(self, seconds: float) -> None:
        """Let time pass and run everything that falls due."""
        end = self.now + seconds
        self.settle()
        self._forget_cancelled_timers()
        while self._scheduled and self._scheduled[0]._when <= end:
            self.turn()
            self.settle()
            self._forget_cancelled_timers()
        self.now = max(self.now, end)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Make this the running loop inside the block."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run until the work has ended; then end all remaining tasks and the loop."""
        try:
            with self.at_work():
                main = self.create_task(work)
                while not main.done():
                    self.turn()
            main.result()
        finally:
            self.tear_down()

    def tear_down(self) -> None:
        """Cancel the remaining tasks until they have ended, or for a while; close the loop."""
        with self.at_work():
            for _ in range(50):
                if not (tasks := asyncio.all_tasks(self)):
                    break
                for task in tasks:
                    # A task that never started would leave a coroutine that was never awaited.
                    if getcoroutinestate(task.get_coro()) != CORO_CREATED:  # type: ignore[arg-type]
                        task.cancel()
                ready = [*self._ready, *self._scheduled]
                self._ready.clear()
                self._scheduled.clear()
                for handle in ready:
                    if not handle._cancelled:
                        handle._run()
            for task in asyncio.all_tasks(self):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if getcoroutinestate(task.get_coro()) == CORO_CREATED:  # type: ignore[arg-type]
                    task.get_coro().close()  # type: ignore[union-attr]
        self.close()

    def _run(self, due: list[Any]) -> None:
        """Run one turn's callbacks: first those registered, then the timers that are due."""
        ready = self._ready
        ready.extend(due)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _forget_cancelled_timers(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False

    def _write_to_self(self) -> None:
        """Do nothing: there is no selector to wake."""
