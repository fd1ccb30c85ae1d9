"""Spreads the work of many connects and closes over turns of the event loop.

libpq works out a password's hash in a single call of some milliseconds, so fifty connections whose
servers answer at the same moment would hold up all other tasks for a tenth of a second. Such work
has a share of each turn of the loop. What does not fit into it waits for a later turn, first come,
first served. All pools on the loop have one share together.
"""

from __future__ import annotations

import asyncio
import math
import threading
import weakref
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from time import perf_counter
from types import coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SHARE = 0.002
"""Seconds of one turn after which no further step starts; a step cannot be interrupted."""
WOKEN = 8
"""Steps woken at once, for a share that fits several short ones; the others wait again."""

LEAVING = 4
"""Sessions that may be ended within `MOMENT`. Each wakes a process of the server, which needs a CPU
to exit: on a busy machine this one's."""
MOMENT = 0.005
"""Seconds."""


class LoopPace:
    """The share of one event loop, and the steps that wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)
        self.leaving: deque[float] = deque([-math.inf] * LEAVING, LEAVING)
        """The instants of the last sessions' ends, also of those that are still to come."""
        self._used = 0.0
        """Seconds of the share that are used up in this turn, or in several that did not use it up:
        to renew it after each short step would cost a turn of the loop."""
        self._queue: deque[asyncio.Future[None]] = deque()
        """The steps that wait, also those that were cancelled; the first is next."""
        self._returned: list[asyncio.Future[None]] = []
        """Steps that were woken in this turn, when the share was already used up."""
        self.under_way = 0
        """Works that have begun and not ended; a single one need not share the turns."""
        self._renewing = False
        """Whether `_renew` is scheduled; it is while a share is used up or a step waits for one."""

    def turn(self) -> Generator[Any, Any, None]:
        """Wait until a step may start; does not suspend if one may start now."""
        line: deque[asyncio.Future[None]] | list[asyncio.Future[None]] = self._queue
        while self._used >= SHARE or (line is self._queue and (self._queue or self._returned)):
            future: asyncio.Future[None] = get_running_loop().create_future()
            line.append(future)
            yield from future
            line = self._returned

    def use(self, seconds: float) -> None:
        """Record the duration of a step; short ones add up until the share is used up."""
        self._used += seconds
        if self._used >= SHARE:
            self._renew_later()

    def _renew_later(self) -> None:
        if not self._renewing:
            self._renewing = True
            get_running_loop().call_soon(self._renew, context=Context())

    def _renew(self) -> None:
        """Begin the share of a new turn; the first steps that wait may start in the next one."""
        self._used, self._renewing = 0.0, False
        while self._returned:
            self._queue.appendleft(self._returned.pop())
        woken = 0
        while self._queue and woken < WOKEN:
            if not (first := self._queue.popleft()).done():
                first.set_result(None)
                woken += 1
        if self._queue:
            self._renew_later()


class Paced(Generic[T]):
    """An awaitable that runs a coroutine, each step of which waits until it may start.

    The first step does not wait, so that work begins even if it is cancelled: await `turn()` before
    it. An exception that is thrown into the work does not wait either.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, Any, T]:
        pace, steps = _pace(), self._work.__await__()
        proceed: Callable[[], Any] = partial(next, steps)
        step, began = proceed, 0.0
        pace.under_way += 1
        try:
            while True:
                if shares := pace.under_way > 1:
                    began = perf_counter()
                try:
                    awaited = step()
                except StopIteration as end:
                    result: T = end.value
                    return result
                finally:
                    step = proceed  # an exception that was thrown in is not kept
                    if shares:
                        pace.use(perf_counter() - began)
                try:
                    yield awaited
                    if pace.under_way > 1:
                        yield from pace.turn()
                except GeneratorExit:
                    steps.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown into the work
                    step = partial(steps.throw, error)
        finally:
            pace.under_way -= 1


@coroutine
def turn() -> Generator[Any, Any, None]:
    """Wait until the next step of connecting or closing may start on this event loop."""
    yield from _pace().turn()


async def turn_to_leave() -> None:
    """Wait until a session may be ended."""
    leaving, now = _pace().leaving, get_running_loop().time()
    at = max(now, leaving[0] + MOMENT)
    leaving.append(at)
    try:
        if at > now:
            await asyncio.sleep(at - now)
    except BaseException:
        if at in leaving:  # its caller ends the session now, so nobody need wait behind it
            leaving.remove(at)
            leaving.appendleft(now)
        raise
    await turn()


class _Current(threading.local):
    pace: LoopPace | None = None


_current = _Current()


def _pace() -> LoopPace:
    """Return the pace of the running loop; a thread runs one loop at a time."""
    loop, pace = get_running_loop(), _current.pace
    if pace is None or pace.loop() is not loop:
        pace = _current.pace = LoopPace(loop)
    return pace
