"""A loop that runs ready work in its own order, and cancels tasks at a chosen await.

It keeps what a real loop guarantees: callbacks run in the order of `call_soon`, timers in the order
of their instants, and no callback waits for a task. The order of two tasks is not guaranteed. It
depends on which socket was read first, on eager starts, and on what lies between a future and its
task: `wait_for`, `shield` and task groups each add one turn or more. So, by the seed, ready tasks
change places, a task's step is delayed for some turns, timers of one instant fire in any order, and
the loop is sometimes held up, so that much falls due at once. Other work may overtake a delayed
step, but the step overtakes no callback. Some of the seeds use asyncio's own order.
"""

from __future__ import annotations

import asyncio
import itertools
from asyncio import Handle, Task
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.sim.loop import VirtualLoop


@dataclass(frozen=True)
class Order:
    """How a loop deviates from asyncio's order."""

    shuffle: bool = False
    """Whether ready tasks, and timers of one instant, change places."""
    delay: float = 0.0
    """The probability that a step is delayed for a turn; drawn anew each turn."""
    hold_up: float = 0.0
    """The probability that time passes in a turn although work is ready."""


ORDERS = [
    Order(),
    Order(shuffle=True),
    Order(shuffle=True, delay=0.2),
    Order(shuffle=True, delay=0.6),
    Order(shuffle=True, delay=0.2, hold_up=0.03),
]


@dataclass
class Strike:
    """A cancellation of one task at one of its awaits."""

    after: int
    """The number of its steps that run before."""
    cancel: Callable[[], object]
    """The `cancel` method of a task or a scope."""
    waking: bool = False
    """Whether to cancel in the tick of its wake-up, before the next step; else at its await."""
    again: int = 0
    """The number of following awaits at which it is called again; -1 means all."""


class SeededLoop(VirtualLoop):
    """A virtual loop whose schedule is drawn from a seed."""

    def __init__(self, random: Random, order: Order) -> None:
        super().__init__()
        self.random = random
        self.order = order
        self._strikes: dict[Task[Any], Strike] = {}

    def plan(self, task: Task[Any], strike: Strike) -> None:
        """Cancel a task at one of its next awaits."""
        if not task.done():
            self._strikes[task] = strike
            task.add_done_callback(lambda task: self._strikes.pop(task, None))

    def turn(self) -> None:
        """Run a turn, with a hold-up now and then."""
        if self.order.hold_up and self._scheduled and self.random.random() < self.order.hold_up:
            pause = self.random.choice([0.001, 0.05, 1.0])
            self.held_up += pause
            self.now += pause
        super().turn()

    def _run(self, due: list[Any]) -> None:
        order, ready = self.order, self._ready
        put_off: list[Handle] = []
        if order.shuffle:
            if len(due) > 1:
                due.sort(key=lambda timer: (timer._when, self.random.random()))
            if len(ready) > 1:
                put_off = self._mix()
        ready.extend(due)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if self._strikes and (task := _task_of(handle)) in self._strikes:
                self._step(handle, task)
            else:
                handle._run()
            # As in asyncio: an error that a pool keeps has this frame, and would keep the task.
            del handle
            task = None
        ready.extend(put_off)

    def _mix(self) -> list[Handle]:
        """Reorder ready work; return the steps that are delayed for a turn."""
        random, delay = self.random, self.order.delay
        batch, put_off = list(self._ready), []
        self._ready.clear()
        for is_step, handles in itertools.groupby(
            batch, key=lambda each: _task_of(each) is not None
        ):
            chosen = list(handles)
            if is_step:
                if delay:
                    drawn = [(each, random.random() < delay) for each in chosen]
                    put_off += [each for each, late in drawn if late]
                    chosen = [each for each, late in drawn if not late]
                random.shuffle(chosen)
            self._ready.extend(chosen)
        return put_off

    def _step(self, handle: Handle, task: Task[Any]) -> None:
        strike = self._strikes[task]
        strike.after -= 1
        if strike.waking and strike.after < 0:
            self._hit(task, strike)
        handle._run()
        if not strike.waking and strike.after <= 0 and not task.done():
            self._hit(task, strike)

    def _hit(self, task: Task[Any], strike: Strike) -> None:
        strike.cancel()
        if strike.again == 0:
            self._strikes.pop(task, None)
        strike.again -= 1


def _task_of(handle: Handle) -> Any:
    """Return the task whose step a handle is; None for another callback."""
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner if isinstance(owner, asyncio.Task) else None
