"""Bugs that a change might introduce, each in one method, for the simulator to find."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest

import asyncpool._core.store
from asyncpool._core.background import BackgroundTasks
from asyncpool._core.budget import Budget
from asyncpool._core.check import Check
from asyncpool._core.entry import Entry, State
from asyncpool._core.ledger import Ledger
from asyncpool._core.lines import Flow, Line, Order
from asyncpool._core.outage_controller import OutageController
from asyncpool._core.pool import Core
from asyncpool._core.store import ConnectionStore
from asyncpool._core.timer import Timer
from asyncpool._core.wait_queue import WaitQueue
from asyncpool._core.waiter import Waiter
from tests.fake import FakeConn

Plant = Callable[[pytest.MonkeyPatch], None]


def drop_the_notification(patch: pytest.MonkeyPatch) -> None:
    """A lost wake-up: a hand-over is recorded, and its waiter is not notified."""
    patch.setattr(Waiter, "notify", lambda _: None)


def notify_whoever_comes_first(patch: pytest.MonkeyPatch) -> None:
    """A lost wake-up: one Condition for the whole queue may notify another task."""

    shared: deque[asyncio.Future[bool]] = deque()

    def wait(self: Waiter[Any]) -> asyncio.Future[bool]:
        shared.append(asyncio.get_running_loop().create_future())
        return shared[-1]

    def notify(_: Waiter[Any]) -> None:
        while shared:
            if not (future := shared.popleft()).done():
                future.set_result(True)
                break

    patch.setattr(Waiter, "wait", wait)
    patch.setattr(Waiter, "notify", notify)


def keep_what_was_handed_over(patch: pytest.MonkeyPatch) -> None:
    """A leak: a task cancelled in the tick of its hand-over does not pass the connection on."""

    def leave(self: Core[Any], waiter: Waiter[Any]) -> None:
        self.ledger.queue.leave(waiter)

    patch.setattr(Core, "_leave", leave)


def forget_a_check_under_way(patch: pytest.MonkeyPatch) -> None:
    """A leak: the connection of a request cancelled during its check is never put back."""

    async def settle(self: Core[Any], entry: Entry[Any], check: object) -> None:
        """Do nothing."""

    patch.setattr(Check, "_finish", settle)
    leave_what_a_struck_task_had(patch)  # else it would be found and closed


def leave_what_a_struck_task_had(patch: pytest.MonkeyPatch) -> None:
    """A leak: the entry of a task that a stranger cancels before its first step is lost."""
    patch.setattr("asyncpool._core.store.work_ended", lambda *_: None)


def keep_the_lease_of_a_cancelled_check(patch: pytest.MonkeyPatch) -> None:
    """A leak: the lease of a request cancelled during its check is not ended in the ledger."""

    async def passes(self: Check[FakeConn], entry: Entry[FakeConn], *_: float) -> bool:
        try:
            await self.check(entry.conn)
        except Exception:  # noqa: BLE001 - any failure of a check
            self.store.discard_lost(entry)
            return False
        return True

    patch.setattr(Check, "passes", passes)


def remove_before_closing(patch: pytest.MonkeyPatch) -> None:
    """An overshoot: a connection being closed is not counted."""

    async def close(self: ConnectionStore[Any], entry: Entry[Any]) -> None:
        self.remove(entry)
        await self.driver.close(entry.conn)

    patch.setattr(ConnectionStore, "_close", close)


def open_for_everybody(patch: pytest.MonkeyPatch) -> None:
    """An overshoot: as many connections are opened as requests wait, above `max_size`."""

    def wanted(self: Ledger[Any]) -> int:
        return max(0, self.settings.min_size - self.size, self.queue.length - self.opening)

    def reserve(self: Ledger[Any], now: float) -> Entry[Any]:
        entry: Entry[Any] = Entry(now)
        self.entries.add(entry)
        self.opening += 1
        return entry

    patch.setattr(Ledger, "wanted", wanted)
    patch.setattr(Ledger, "reserve", reserve)


def serve_the_last(patch: pytest.MonkeyPatch) -> None:
    """A waiter is overtaken: the last one is served first."""

    def serve(self: WaitQueue[Any], item: Any) -> bool:
        while self.plain.places:
            waiter = self.plain.places.pop()
            if waiter.waiting:
                waiter.served = item
                waiter.waiting = False
                self.length -= 1
                waiter.notify()
                return True
        return False

    patch.setattr(WaitQueue, "serve", serve)


def keep_the_turn(patch: pytest.MonkeyPatch) -> None:
    """A flow loses its turn: the one that was served stays first."""

    def end_turn(self: Order[Any], flow: Flow[Any], now: float) -> None:
        flow.rate.note(now)
        flow.line.rate.note(now)

    patch.setattr(Order, "end_turn", end_turn)


def forget_priorities(patch: pytest.MonkeyPatch) -> None:
    """A higher priority is served later: lines are in the order in which they were made."""

    def keep(self: Order[Any], line: Line[Any]) -> None:
        self._lines.append(line)

    patch.setattr(Order, "_keep", keep)


def refuse_the_last(patch: pytest.MonkeyPatch) -> None:
    """The last waiter is refused a connection that comes too late for it."""

    def first_in_time(self: WaitQueue[Any], head: Waiter[Any]) -> Waiter[Any]:
        while head.useful_until < self._clock() + 0.1:
            self.fail(head, self._overdue(head, True))
            following = self.head()
            if following is None:
                return head
            head = following
        return head

    patch.setattr(WaitQueue, "_first_in_time", first_in_time)


def forget_a_flow(patch: pytest.MonkeyPatch) -> None:
    """A waiter is forgotten: a flow that has waiters again has no turns."""

    def begin_turns(self: Order[Any], flow: Flow[Any]) -> None:
        flow.takes_turns = True
        if flow.key is None or not flow.line.turns:
            flow.line.flows[flow.key] = flow
            flow.line.turns.append(flow)

    patch.setattr(Order, "_begin_turns", begin_turns)


def send_back_to_the_end(patch: pytest.MonkeyPatch) -> None:
    """A waiter is overtaken: a request served an unusable connection rejoins at the end."""
    queue = Core.queue

    def queue_last(self: Core[Any], waiter: Waiter[Any], *request: Any) -> bool:
        waiters = self.ledger.queue
        before = list(waiters)
        joined = queue(self, waiter, *request)
        if request[-1] and before and waiter in waiters.plain.places:
            waiters.plain.places.remove(waiter)
            waiters.plain.places.append(waiter)
        return joined

    patch.setattr(Core, "queue", queue_last)


def make_idle_beside_waiters(patch: pytest.MonkeyPatch) -> None:
    """Idle beside waiters: a connection becomes idle although a request waits."""

    def give(self: Ledger[Any], entry: Entry[Any], now: float) -> bool:
        if entry.expires_at <= now or (self.oversize and self._is_over_limit()):
            return False
        entry.state = State.IDLE
        self.idle.append(entry)
        self.idle.sort(key=lambda each: each.used_at)
        return True

    patch.setattr(Ledger, "give", give)


def forget_the_retry_timer(patch: pytest.MonkeyPatch) -> None:
    """A forgotten timer: that of the next probe outlives the pool."""

    def stop_opening(self: ConnectionStore[Any]) -> None:
        for task in self.runtime.tasks.running("connect"):
            task.cancel()

    patch.setattr(ConnectionStore, "stop_opening", stop_opening)


def forget_the_queues_timer(patch: pytest.MonkeyPatch) -> None:
    """A forgotten timer: that of the wait queue outlives the pool."""
    patch.setattr(WaitQueue, "stop", lambda self: self._deadlines.clear())


def keep_the_first_timer(patch: pytest.MonkeyPatch) -> None:
    """A forgotten deadline: the timer is not set anew for an earlier deadline."""
    set_timer = Timer.set

    def set_once(self: Timer, at: float) -> None:
        if self.at == math.inf:
            set_timer(self, at)

    patch.setattr(Timer, "set", set_once)


def subtract_served_waiters_twice(patch: pytest.MonkeyPatch) -> None:
    """A miscount: a waiter that leaves after being served is subtracted twice."""

    def leave(self: WaitQueue[Any], waiter: Waiter[Any]) -> Any:
        waiter.waiting = False
        self.length -= 1
        served, waiter.served = waiter.served, None
        return served

    patch.setattr(WaitQueue, "leave", leave)


def count_a_failed_connect_as_opening(patch: pytest.MonkeyPatch) -> None:
    """A miscount: an entry whose connect failed still counts as opening."""
    withdraw = Ledger.withdraw

    def forgetful(self: Ledger[Any], entry: Entry[Any], state: State) -> None:
        opening = self.opening
        withdraw(self, entry, state)
        self.opening = opening

    patch.setattr(Ledger, "withdraw", forgetful)


def let_borrowers_clean(patch: pytest.MonkeyPatch) -> None:
    """Unclean: a connection is leased while it is being reset."""

    async def clean(self: ConnectionStore[Any], entry: Entry[Any], first: object) -> None:
        self.put(entry, self.runtime.time())
        await asyncio.sleep(0)
        await self.driver.reset(entry.conn)

    patch.setattr(ConnectionStore, "clean", clean)


def ignore_losses(patch: pytest.MonkeyPatch) -> None:
    """A leak: a connection whose reset fails is neither put back nor discarded."""

    async def clean(self: ConnectionStore[Any], entry: Entry[Any], first: object) -> None:
        await self.driver.reset(entry.conn)
        self.put(entry, self.runtime.time())

    patch.setattr(ConnectionStore, "clean", clean)


def ignore_reported_losses(patch: pytest.MonkeyPatch) -> None:
    """A broken connection is leased: its reported loss is ignored."""
    patch.setattr(asyncpool._core.store, "notify", lambda *_, **__: None)


# Bugs that only some schedules show.


def take_what_was_handed_over_first(patch: pytest.MonkeyPatch) -> None:
    """Two holders: the first task to wake takes the first item served, usually its own."""
    heaps: WeakKeyDictionary[Any, deque[Any]] = WeakKeyDictionary()
    wait, notify, leave = Waiter.wait, Waiter.notify, WaitQueue.leave

    def heap() -> deque[Any]:
        return heaps.setdefault(asyncio.get_running_loop(), deque())

    async def wake(waiter: Waiter[Any]) -> None:
        await wait(waiter)
        if waiter.served is not None:
            waiter.served = heap().popleft()

    def put_on_the_heap(self: Waiter[Any], n: int = 1) -> None:
        if self.served is not None and self._future is not None:
            heap().append(self.served)
        notify(self, n)

    def take_mine(self: WaitQueue[Any], waiter: Waiter[Any]) -> Any:
        if (mine := leave(self, waiter)) in heap():
            heap().remove(mine)
        return mine

    patch.setattr(Waiter, "wait", wake)
    patch.setattr(Waiter, "notify", put_on_the_heap)
    patch.setattr(WaitQueue, "leave", take_mine)


def swallow_the_first_cancellation(patch: pytest.MonkeyPatch) -> None:
    """A cancelled request is retried, as if it had failed."""
    acquire = Core.acquire

    async def acquire_again(self: Core[Any], timeout: float | None) -> Any:
        try:
            return await acquire(self, timeout)
        except asyncio.CancelledError:
            return await acquire(self, timeout)

    patch.setattr(Core, "acquire", acquire_again)


def revive_a_removed_entry(patch: pytest.MonkeyPatch) -> None:
    """A connect that outlasts `close()` brings its entry, which was removed, into service."""
    remove = ConnectionStore.remove

    def remove_as_opening(
        self: ConnectionStore[Any], entry: Entry[Any], *, refill: bool = True
    ) -> None:
        state = entry.state
        remove(self, entry, refill=refill)
        if self.runtime.closed and state is State.OPENING:
            entry.state = state

    patch.setattr(ConnectionStore, "remove", remove_as_opening)


def let_a_scope_end_the_close(patch: pytest.MonkeyPatch) -> None:
    """A leak: only `task.cancel()` is handled, not a cancelled scope."""
    close = Core.close

    async def unshielded(self: Core[Any], timeout: float) -> None:
        await asyncio.shield(asyncio.ensure_future(close(self, timeout)))

    patch.setattr(Core, "close", unshielded)


def clean_up_with_an_await(patch: pytest.MonkeyPatch) -> None:
    """A leak: the clean-up after a cancellation awaits, and is cancelled there again."""
    acquire = Core.acquire_entry

    async def passed_on(self: Core[Any], *request: Any) -> Any:
        entry = await acquire(self, *request)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.ledger.cancel_lease(entry)
            self.runtime.counters.requests_cancelled += 1
            if self.ledger.take_back(entry.conn) is not None:
                self.store.put(entry, self.runtime.time())
            raise
        return entry

    patch.setattr(Core, "acquire_entry", passed_on)


def share_the_background_tasks(patch: pytest.MonkeyPatch) -> None:
    """Closing one pool ends another: all pools share their background tasks."""
    shared: dict[str, dict[Any, Any]] = {}
    found = BackgroundTasks.__init__

    def join(self: BackgroundTasks, name: str) -> None:
        found(self, name)
        self._tasks = shared.setdefault(name.split(",", maxsplit=1)[0], {})

    patch.setattr(BackgroundTasks, "__init__", join)


def ignore_waiters_of_other_pools(patch: pytest.MonkeyPatch) -> None:
    """An overtaking: a pool keeps a released connection although another's request is earlier."""
    patch.setattr(Budget, "_must_yield", lambda *_: False)


def offer_no_room(patch: pytest.MonkeyPatch) -> None:
    """A lost wake-up: the room of a closed connection is not offered."""
    patch.setattr(Budget, "_offer", lambda _: None)


def forget_who_waits_for_a_connect(patch: pytest.MonkeyPatch) -> None:
    """A lost wake-up: nothing follows a connect that was cancelled, but not by the pool."""
    patch.setattr(OutageController, "connect_cancelled", lambda *_: None)


def open_without_counting(patch: pytest.MonkeyPatch) -> None:
    """One too many: connections opened by a pool are not counted in the budget."""
    spend = Budget._note_reserved

    def forgetful(self: Budget, books: Any) -> None:
        spend(self, books)
        self._size -= len(books.entries) > 1

    patch.setattr(Budget, "_note_reserved", forgetful)


def fill_after_an_outage(patch: pytest.MonkeyPatch) -> None:
    """A stampede: all of `min_size` is opened at once, though connects fail or all were lost."""

    def at_once(self: Ledger[Any]) -> int:
        return max(self.settings.open_at_once, self.settings.min_size)

    patch.setattr(Ledger, "at_once", property(at_once))
