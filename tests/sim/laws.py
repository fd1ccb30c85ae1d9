"""The laws: what holds between any two turns of the loop, for every request, and at the end.

They keep books of their own beside the pool's, and compare. The simulator and the state machine
hold every pool to them; both borrow and return through `Laws.borrow` and `Laws.give_back`.
"""

from __future__ import annotations

import asyncio
from asyncio import Task, current_task
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from random import Random
from typing import Any

from asyncpool._core.counters import COUNTED
from asyncpool._core.entry import Entry, State
from asyncpool._core.pool import Core
from asyncpool._core.wait_queue import Waiter
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import (
    PoolClosed,
    PoolDeadlock,
    PoolTimeout,
    PoolUnavailable,
    TooManyRequests,
)
from tests.sim.fake import FakeConn, FakeDriver
from tests.sim.loop import VirtualLoop

REFUSALS = (PoolTimeout, PoolUnavailable, PoolDeadlock, TooManyRequests, PoolClosed)
TOLERANCE = 0.001


class Immediate(Waiter[Entry[FakeConn]]):
    """The wait of a request that is served in the callback of a hand-over, as a one-shot is."""

    def __init__(self, core: Core[FakeConn], ticket: int, now: float, deadline: float) -> None:
        super().__init__(ticket, now, deadline)
        self.core = core
        self.task = current_task()
        self.future: asyncio.Future[FakeConn] = asyncio.get_running_loop().create_future()
        self.used: Entry[FakeConn] | None = None

    def notify(self, n: int = 1) -> None:
        """Use what was served, unless its task was cancelled, which passes it on as it leaves."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
            return
        entry = self.served
        assert entry is not None
        self.used = entry
        try:
            if self.core.is_fit(entry):
                self.future.set_result(self.core.served(self).conn)
                return
            self.served = None
            self.core.queue(self, self.deadline - self.joined_at, self.joined_at)
        except REFUSALS as error:
            self.task = None  # it is counted
            if not self.future.done():
                self.future.set_exception(error)


class LawBroken(AssertionError):
    """An invariant does not hold; the message says which, and how to see it again."""


class Laws:
    """The laws, held against one pool.

    Args:
        loop: the loop on which it is open.
        core: the pool.
        connector: its driver.
        broken: is told what was broken; it raises.
        at_hand_over: called with whoever is told an outcome, just before and just after.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        core: Core[FakeConn],
        connector: FakeDriver,
        broken: Callable[[str], None],
        at_hand_over: Callable[[Task[Any]], None] = lambda _: None,
    ) -> None:
        self.loop = loop
        self.core = core
        self.connector = connector
        self.max_size = core.settings.max_size
        """The largest there was."""
        self.outcomes: Counter[str] = Counter()
        self.begun = 0
        """Requests that the pool has to count."""
        self.lent = 0
        self.told: set[Any] = set()
        """Waiters that were told an error, and whose tasks have not run yet."""
        self._broken = broken
        self._at_hand_over = at_hand_over
        self._requests: dict[Task[Any], int] = {}
        """Who is in `acquire`, and as the how many-th."""
        self._came: dict[Task[Any], float] = {}
        """And since when."""
        self._places: dict[Any, tuple[int, Task[Any]]] = {}
        self._seen: tuple[object, ...] = ()
        self._counted: tuple[Any, ...] = ()
        # Of a random of its own: all else is drawn as if these requests were borrowers.
        self.random = Random(f"immediate, {core.settings.name}")
        self._listen_to_the_line()

    def came(self, waiter: Waiter[Any]) -> float:
        """When the request has come that waits here."""
        return self._came[self._places[waiter][1]]

    @property
    def least_at_rest(self) -> int:
        """How many there have to be; where others may have them, none."""
        ledger = self.core.ledger
        return ledger.settings.min_size if ledger.budget is None else 0

    def hold(self) -> bool:
        """The laws between any two turns; all of them whenever anything has changed, and if so."""
        ledger = self.core.ledger
        line, entries = ledger.queue, ledger.entries
        if self.connector.sockets > len(entries):
            self._broken(f"{self.connector.sockets} sockets for {len(entries)} entries")
        if self.connector.misuse:
            self._broken(self.connector.misuse)
        counted = _values(self.core.store.counters)
        # Everything that the rest depends on; lists of the same objects compare in no time.
        seen = (
            [entry.state for entry in entries],
            [entry.uses for entry in entries],
            ledger.idle.copy(),
            list(ledger.leased.values()),
            list(line._places),
            (
                line.length,
                line.unseen_errors,
                ledger.opening,
                ledger.late,
                ledger.closing,
                self.begun,
            ),
            counted,
        )
        if seen == self._seen:
            return False
        self._seen = seen
        self._hold_books()
        self._hold_counters(counted)
        return True

    async def borrow(self, timeout: float | None) -> FakeConn:
        """Acquire a connection as users do, and see to it that the laws of a request hold."""
        core, task = self.core, current_task()
        assert task is not None
        struck, started, held_up = task.cancelling(), self.loop.time(), self.loop.held_up
        if core.usable:
            self.begun += 1
        self._requests[task], self._came[task] = self.begun, started
        try:
            conn = core.acquire_now() or await self._wait(timeout)
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
            self.law(task.cancelling() > struck, "CancelledError came out of nowhere")
            raise
        except REFUSALS as error:
            self.outcomes[type(error).__name__] += 1
            self.law(task.cancelling() == struck, f"a cancelled request raised {error!r}")
            limit = core.settings.timeout if timeout is None else timeout
            checking = core.settings.ping_timeout if core._check and not limit else 0
            late = self.loop.time() - started - limit - checking
            late -= self.loop.held_up - held_up
            self.law(late < TOLERANCE, f"{error!r} came {late} s late")
            raise
        finally:
            del self._requests[task], self._came[task]
            left = [waiter for waiter, (_, owner) in self._places.items() if owner is task]
            for waiter in left:
                self.law(not waiter.waiting, "one who has left is still in the line")
                self.law(waiter not in self.told, "a waiter that was told has not left")
                del self._places[waiter]
        self.law(task.cancelling() == struck, "a cancelled request was served")
        self.law(not conn.lent, f"{conn} has two owners")
        self.law(not conn.closed or core.closed, f"{conn} was lent although it is closed")
        known = not conn.alive and (conn.told or not self.connector.watches)
        # One that was served in a callback may have been lost before its task could run.
        known = known and not any(isinstance(each, Immediate) for each in left)
        self.law(not known or core._check is not None, f"{conn} was lent, known to be lost")
        self.outcomes["served"] += 1
        self.lent += 1
        conn.lent = True
        return conn

    async def _wait(self, timeout: float | None) -> FakeConn:
        """Wait for a connection, as a borrower does or, where nothing is checked, as a one-shot."""
        core = self.core
        if not core.usable or core.checks or self.random.random() < 0.7:
            return await core.acquire(timeout)
        now, ticket = self.loop.time(), core.ledger.queue.ticket()
        limit = core.settings.timeout if timeout is None else timeout
        waiter = Immediate(core, ticket, now, now + limit)
        core.queue(waiter, limit, None)
        try:
            conn = await waiter.future
            entry = core.ledger.leased.get(conn)
            if entry is not None:
                entry.manual_in = entry.uses
            return conn
        except BaseException as error:
            if waiter.task is not None:
                core.gave_up(waiter, error)
            elif waiter.future.exception() is None:
                # It has had it, as a statement that was sent: it is cancelled for its caller.
                self.lent += 1
                self.outcomes.update(served=1, cancelled=-1)
                self.give_back(waiter.future.result())
            raise
        finally:
            del waiter.future  # others keep the waiter for a while, and it has the connection

    def give_back(self, conn: FakeConn) -> None:
        """Release it, or pass it on; at the end of the pool it may be gone."""
        conn.lent = False
        head = self.core.ledger.queue.head()
        entry = self.core.ledger.leased.get(conn)
        fits = isinstance(head, Immediate) and not head.future.done()
        if (
            entry is not None
            and fits
            and self.connector.is_clean(conn)
            and self.core.pass_on(entry)
        ):
            return
        try:
            self.core.release(conn)
        except PoolClosed:
            self.law(self.core.closed, "PoolClosed from a pool that is open")

    def hold_at_rest(self) -> None:
        """In good weather, with nobody there: all are idle, and as many as there should be."""
        ledger = self.core.ledger
        self.law(not ledger.leased, f"leases leaked: {ledger.leased}")
        self.law(ledger.queue.length == 0, "somebody is still in the line")
        self.law(len(ledger.idle) == ledger.size, f"not all at rest: {ledger.entries}")
        self.law(ledger.size >= self.least_at_rest, "fewer than min_size in good weather")
        wanted = not ledger.trial_wanted or self.core.store._fill_callers > 0
        self.law(wanted, "a wish to see a connection was left behind")
        self.law(ledger.leases == self.lent, f"{ledger.leases} leases booked, {self.lent} seen")
        failed = sum(self.outcomes[error.__name__] for error in REFUSALS)
        counters = self.core.store.counters
        self.law(counters.requests_failed == failed, f"{failed} failures, {counters}")
        self.core.store.sort_times()
        self.law(counters.use.count == self.lent, f"{counters.use.count} uses, {self.lent} lent")
        spent = counters.use.sum
        self.law(abs(spent - counters.use_time) < TOLERANCE, f"{spent} s of use: {counters}")
        waited = counters.wait.sum
        self.law(abs(waited - counters.wait_time) < TOLERANCE, f"{waited} s waited: {counters}")
        cancelled = self.outcomes["cancelled"]
        self.law(counters.requests_cancelled == cancelled, f"{cancelled} cancelled, {counters}")

    def hold_at_the_end(self) -> None:
        """Closed, it leaves nothing."""
        core = self.core
        self.law(not core.ledger.entries, f"entries after close: {core.ledger.entries}")
        self.law(self.connector.sockets == 0, "sockets after close")
        self.law(len(core.store.tasks) == 0, "tasks after close")
        self.law(not list(core.ledger.queue), "somebody is in the line after close")

    def law(self, holds: bool, otherwise: str) -> None:
        """One law."""
        if not holds:
            self._broken(otherwise)

    def _hold_books(self) -> None:
        ledger = self.core.ledger
        line, entries, idle = ledger.queue, ledger.entries, ledger.idle
        opening = [entry for entry in entries if entry.state is State.OPENING]
        closing = [entry for entry in entries if entry.state is State.CLOSING]
        leased = [entry for entry in entries if entry.state is State.LEASED]
        cleaning = [entry for entry in entries if entry.state is State.CLEANING]
        at_rest = [entry for entry in entries if entry.state is State.IDLE]
        waiting = [waiter for waiter in line._places if waiter.waiting]
        broken = self._broken
        if len(entries) > self.max_size:
            broken(f"{len(entries)} entries, {self.max_size} allowed")
        if len(opening) + len(closing) + len(leased) + len(cleaning) + len(idle) != len(entries):
            broken(f"the states do not add up: {snapshot(self.core)}")
        if ledger.opening != len(opening):
            broken("opening is miscounted")
        if ledger.closing != len(closing):
            broken("closing is miscounted")
        if ledger.late != len([entry for entry in opening if entry.late]):
            broken("late is miscounted")
        if len(set(idle)) != len(idle):
            broken("an entry is idle twice")
        if set(idle) != set(at_rest):
            broken("idle: stack and states differ")
        if set(ledger.leased.values()) != set(leased):
            broken("leased: table and states differ")
        if len(waiting) != line.length:
            broken("the line is miscounted")
        if line.unseen_errors != len(self.told):
            broken("those who were told are miscounted")
        if idle and waiting:
            broken("somebody waits beside an idle connection")
        used = [entry.used_at for entry in idle]
        if used != sorted(used):
            broken("the idle ones are not in the order of their last use")
        self._hold_stats(len(waiting))

    def _hold_stats(self, waiting: int) -> None:
        """What is told of the requests adds up, by the pool's numbers and by ours."""
        stats = snapshot(self.core)
        served, failed = self.core.ledger.leases, stats.requests_failed
        total = served + failed + stats.requests_cancelled + stats.waiting
        parts = stats.opening + stats.idle + stats.leased + stats.cleaning + stats.closing
        if parts != stats.size or stats.waiting != waiting or stats.requests != total:
            self._broken(f"stats do not add up: {served} served, {waiting} waiting, {stats}")
        if stats.idle and not self.core.settings.keeps_idle:
            self._broken(f"something is idle where nothing is kept: {stats}")
        if stats.requests != self.begun:
            self._broken(f"{self.begun} requests have come: {stats}")
        if stats.requests_queued > stats.requests:
            self._broken(f"more have queued than have come: {stats}")

    def _hold_counters(self, counted: tuple[Any, ...]) -> None:
        before, self._counted = self._counted, counted
        for earlier, later in zip(before, counted, strict=False):
            if later < earlier:
                self._broken(f"a counter went back: {before}, then {counted}")

    def _listen_to_the_line(self) -> None:
        """Who comes, who is served in which order, who is told an error."""
        line = self.core.ledger.queue
        admit, serve, end, leave = line.admit, line.serve, line.fail, line.leave

        def joined(waiter: Waiter[Any]) -> None:
            admit(waiter)
            task = waiter.task
            assert task is not None
            self._places[waiter] = (self._requests[task], task)

        def served(item: Any) -> bool:
            head = min(line, key=lambda each: self._places[each][0], default=None)
            if head is not None:
                self._at_hand_over(self._places[head][1])
            handed_over = serve(item)
            got = head is None or head.served is item or getattr(head, "used", None) is item
            self.law(got, "a waiter was overtaken")
            if head is not None:
                self._at_hand_over(self._places[head][1])
            return handed_over

        def ended(waiter: Waiter[Any], error: BaseException) -> None:
            self.told.add(waiter)
            self._at_hand_over(self._places[waiter][1])
            end(waiter, error)
            self._at_hand_over(self._places[waiter][1])

        def left(waiter: Waiter[Any]) -> Any:
            self.told.discard(waiter)
            return leave(waiter)

        line.admit = joined  # type: ignore[method-assign]
        line.serve = served  # type: ignore[method-assign]
        line.fail = ended  # type: ignore[method-assign]
        line.leave = left  # type: ignore[method-assign]


_values = attrgetter(*COUNTED)
