"""An event loop with no I/O: its clock stands still while anybody can run, and then leaps.

`turn` is asyncio's `_run_once` without a selector. Two things differ, both within what a real loop
may do. A loop that has been busy for many turns finds that time has passed: a scope of anyio's that
was cancelled calls its tasks in every turn, and would stop the clock for ever. And when nothing can
ever happen again, that is an error, not a hang.
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
"""Turns without a pause after which the next timer is due, however far away it was."""


class NothingToDo(RuntimeError):
    """Somebody waits for what can never happen."""


class NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address, so that a run can be repeated."""

    made: ClassVar[int] = 0

    def __new__(cls, *_: Any, **__: Any) -> NumberedTask:
        """Number it before anybody can ask for its hash."""
        task = super().__new__(cls)
        NumberedTask.made += 1
        task.number = NumberedTask.made
        return task

    number: int

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """A loop whose time only passes while everybody sleeps."""

    _ready: deque[Handle]
    _scheduled: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.resolution = 1e-9
        self.turns = 0
        self.held_up = 0.0
        """Seconds that passed although there was something to do: so much later may things end."""
        self.eager = False
        """Whether tasks start at once, as with `asyncio.eager_task_factory`."""
        self.complaints: list[str] = []
        """What the loop would have logged: exceptions that nobody has looked at."""
        self._busy = 0
        NumberedTask.made = 0

    def time(self) -> float:
        """The instant on the virtual clock, from 0."""
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """As in every loop: in the order in which they are registered."""
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
        """One whose number is the order of its making."""
        if self.eager and sys.version_info >= (3, 12):
            rest.setdefault("eager_start", True)
        return NumberedTask(coro, loop=self, name=name, context=context, **rest)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nothing may go wrong in a callback, and no task's end go unnoticed."""
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    def turn(self) -> None:
        """What can run runs once; if nothing can, time passes."""
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
        """Turn until nothing can run any more without a pause."""
        while self._ready:
            self.turn()

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that falls due meanwhile."""
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
        """What is called in this block finds this loop running."""
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run until this has ended; then end everything that is left, and the loop."""
        try:
            with self.at_work():
                main = self.create_task(work)
                while not main.done():
                    self.turn()
            main.result()
        finally:
            self.tear_down()

    def tear_down(self) -> None:
        """Cancel whatever is left until it has ended, or for a while; then close the loop."""
        with self.at_work():
            for _ in range(50):
                if not (tasks := asyncio.all_tasks(self)):
                    break
                for task in tasks:
                    # One that never started would leave behind what it was to await.
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
        """One turn's callbacks: first those that were registered, then the timers that are due."""
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
        """Nobody sleeps in a selector here."""
