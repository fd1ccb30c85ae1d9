"""`pool.turn(key)`: one task per key goes on, before it borrows a connection.

Many tasks that update the same row would each hold a connection while they wait for its lock. With
a turn they wait in a queue of their own, which is a `WaitQueue` like the pool's: first in, first
out, with the same deadlines, priorities, flows and refusals.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, current_task
from collections.abc import Callable, Hashable
from typing import Any, Self

from asyncpool._blocks.supports import Exc
from asyncpool._core.admission import Refusal
from asyncpool._core.pool import Core
from asyncpool._core.settings import duration
from asyncpool._core.wait_queue import WaitQueue
from asyncpool._core.waiter import Waiter
from asyncpool._core.within import apply_limits
from asyncpool.errors import TooManyRequests


class Turns:
    """The turns of one pool.

    Args:
        core: the pool.
    """

    def __init__(self, core: Core[Any]) -> None:
        self.core = core
        self.lines: dict[Hashable, TurnLine] = {}
        """The keys whose turn a task has."""

    def close(self) -> None:
        """Fail all waiters with PoolClosed."""
        for line in self.lines.values():
            line.queue.fail_all(self.core.errors.closed)


class TurnLine:
    """The task that has the turn of a key, and those that wait for it."""

    def __init__(self, turns: Turns, key: Hashable) -> None:
        self.key = key
        self.holder = current_task()
        self.queue: WaitQueue[TurnLine] = WaitQueue(self._overdue, turns.core.runtime.now)
        self._turns = turns

    async def wait(self, timeout: float | None) -> Waiter[TurnLine]:
        """Wait for the turn; the running task has it afterwards. Return its wait, which is over."""
        core, queue = self._turns.core, self.queue
        limit = core.settings.timeout if timeout is None else duration("timeout", timeout)
        now = core.runtime.now()
        waiter: Waiter[TurnLine] = Waiter(queue.ticket(), now, now + limit)
        waiter.task = current_task()
        apply_limits(waiter, queue.line)
        try:
            if waiter.deadline <= now:
                raise core.no_time_left(waiter, limit, f"no turn of the key {self.key!r}")
            self._require_room(waiter)
            queue.admit(waiter)
        except TooManyRequests as error:
            waiter.error = error
            await core.refuse(waiter)
        except BaseException as error:
            waiter.task = None
            core.count_failure(error)
            raise
        try:
            while waiter.waiting:
                await waiter.wait()
            if waiter.error is not None:
                raise waiter.error
        except BaseException as error:
            if isinstance(error, CancelledError):
                self.note_cancelled(waiter)
            if queue.leave(waiter) is not None:
                self.pass_on()
            core.count_failure(error)
            raise
        self.holder, waiter.task, waiter.served = waiter.task, None, None
        return waiter

    def note_cancelled(self, waiter: Waiter[TurnLine]) -> None:
        """Note that a task which had to wait was cancelled, in the queue or in its turn."""
        self._turns.core.note_cancelled(self.queue, waiter.line, waiter.joined_at, 1)

    def pass_on(self) -> None:
        """Give the turn to the next waiter; without one, forget the key."""
        self.holder = None
        if not self.queue.serve(self):
            self.queue.stop()
            del self._turns.lines[self.key]

    def _require_room(self, waiter: Waiter[TurnLine]) -> None:
        """Raise TooManyRequests if the turn could not be had in time."""
        queue, core, now = self.queue, self._turns.core, waiter.joined_at
        queue.judges = core.settings.overload is not None
        flow, ahead = queue.place_for(waiter)
        if not ahead or not queue.judges:
            return
        flow.line.patience.expire(now)
        verdict, left = core.verdict(queue, waiter, flow, ahead, 1, 0)
        if isinstance(verdict, Refusal):
            raise self._refused(verdict, left)

    def _overdue(self, waiter: Waiter[TurnLine], is_late: bool) -> BaseException:
        core = self._turns.core
        if is_late:
            refusal, left = core.late_refusal(waiter, self.queue.length, 1)
            return self._refused(refusal, left)
        return self._timed_out(waiter.deadline - waiter.joined_at)

    def _refused(self, refusal: Refusal, left: float) -> TooManyRequests:
        what, waiting = f"too many wait for the turn of {self.key!r}", self.queue.length
        return self._turns.core.errors.refused(refusal, left, what, waiting, 1)

    def _timed_out(self, limit: float) -> BaseException:
        why = f"{self.queue.length} tasks wait for it"
        what = f"no turn of the key {self.key!r}"
        return self._turns.core.errors.timed_out(round(limit, 3), why, what)


class Turn:
    """`pool.turn(key)`: a block that one task per key is in at a time."""

    def __init__(self, turns: Callable[[], Turns], key: Hashable, timeout: float | None) -> None:
        try:
            hash(key)
        except TypeError:
            msg = f"key must be hashable, not {key!r}"
            raise TypeError(msg) from None
        self._find = turns
        self._key = key
        self._timeout = timeout
        self._line: TurnLine | None = None
        self._waiter: Waiter[TurnLine] | None = None
        """Its wait, if it had to wait."""

    async def __aenter__(self) -> Self:
        if self._line is not None:
            msg = "this block is in use: call turn() again"
            raise RuntimeError(msg)
        turns, key, task = self._find(), self._key, current_task()
        _require_no_connection(turns.core, key, task)
        line = turns.lines.get(key)
        if line is None:
            line = turns.lines[key] = TurnLine(turns, key)
        elif line.holder is task:
            msg = f"this task has the turn of the key {key!r} already: it would wait for itself"
            raise RuntimeError(msg)
        else:
            self._waiter = await line.wait(self._timeout)
        self._line = line
        return self

    async def __aexit__(self, kind: Exc, error: BaseException | None, tb: object) -> None:
        line, self._line = self._line, None
        waiter, self._waiter = self._waiter, None
        if line is not None:
            if waiter is not None and kind is not None and issubclass(kind, CancelledError):
                line.note_cancelled(waiter)
            line.pass_on()


def _require_no_connection(core: Core[Any], key: Hashable, task: asyncio.Task[Any] | None) -> None:
    """Raise RuntimeError if a task has a connection: all could then wait for each other."""
    if any(entry.lease.holder is task for entry in core.ledger.leased.values()):
        msg = (
            f"this task has a connection of pool {core.settings.name!r}: take the turn of the key"
            f" {key!r} before you borrow, or tasks wait for each other for ever"
        )
        raise RuntimeError(msg)
