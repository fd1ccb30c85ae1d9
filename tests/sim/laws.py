"""The laws: what holds between any two turns of the loop, for every request, and at the end.

They keep records of their own and compare them with the pool's. The simulator and the state machine
check every pool; both acquire and release through `Laws.borrow` and `Laws.give_back`.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import Task, current_task
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from random import Random
from typing import Any

from asyncpool._core.counters import COUNTED
from asyncpool._core.entry import Entry, State
from asyncpool._core.lease import ManualLease
from asyncpool._core.pool import Core
from asyncpool._core.waiter import Waiter
from asyncpool._core.within import apply_limits
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import (
    PoolClosed,
    PoolDeadlock,
    PoolTimeout,
    PoolUnavailable,
    TooManyRequests,
)
from tests._tools import acquire_now
from tests.fake import FakeConn, FakeDriver
from tests.sim.loop import VirtualLoop
from tests.sim.order import OrderLaws

REFUSALS = (PoolTimeout, PoolUnavailable, PoolDeadlock, TooManyRequests, PoolClosed)
TOLERANCE = 0.001


class Immediate(Waiter[Entry[FakeConn]]):
    """The wait of a request that is served in a callback, as a one-shot is."""

    def __init__(self, core: Core[FakeConn], ticket: int, now: float, deadline: float) -> None:
        super().__init__(ticket, now, deadline)
        self.core = core
        self.task = current_task()
        self.future: asyncio.Future[FakeConn] = asyncio.get_running_loop().create_future()
        self.used: Entry[FakeConn] | None = None

    def notify(self, n: int = 1) -> None:
        """Use the served connection; if the task was cancelled, it passes the connection on."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
            return
        entry = self.served
        assert entry is not None
        self.used = entry
        try:
            if self.core.is_usable(entry):
                self.future.set_result(self.core.served(self, ManualLease.new()).conn)
                return
            self.served = None
            self.core.queue(self, self.deadline - self.joined_at, self.joined_at)
        except REFUSALS as error:
            self.task = None  # already counted
            if not self.future.done():
                self.future.set_exception(error)


class LawBroken(AssertionError):
    """A law does not hold; the message says which one, and how to repeat the run."""


class Laws:
    """Checks the laws on one pool.

    Args:
        loop: the event loop on which the pool is open.
        core: the pool.
        driver: its driver.
        broken: called with the law that does not hold; raises.
        at_hand_over: called with the task of a waiter just before and just after it is notified.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        core: Core[FakeConn],
        driver: FakeDriver,
        broken: Callable[[str], None],
        at_hand_over: Callable[[Task[Any]], None] = lambda _: None,
    ) -> None:
        self.loop = loop
        self.core = core
        self.driver = driver
        self.max_size = core.settings.max_size
        """The largest value so far."""
        self._asked_for_min_size = True
        """Whether `min_size` connections are being opened because the user has asked for them."""
        self._failed_before = 0
        """The number of connects that had failed when the user asked."""
        self.outcomes: Counter[str] = Counter()
        self.begun = 0
        """The number of requests that the pool must have counted."""
        self.leased = 0
        self.failed: set[Any] = set()
        """Waiters that were failed and whose tasks have not run since."""
        self._broken = broken
        self._at_hand_over = at_hand_over
        self._requests: dict[Task[Any], int] = {}
        """The tasks in `acquire`, with the number of each request."""
        self._arrivals: dict[Task[Any], float] = {}
        """The arrival of each request."""
        self._places: dict[Any, tuple[int, Task[Any]]] = {}
        self.order = OrderLaws(self.require, lambda waiter: self._places[waiter][0])
        self._seen: tuple[object, ...] = ()
        self._counted: tuple[Any, ...] = ()
        # A separate random, so that the other draws do not depend on these requests.
        self.random = Random(f"immediate, {core.settings.name}")
        self._observe_queue()
        self._observe_connects()
        self._observe_tasks()

    def arrived_at(self, waiter: Waiter[Any]) -> float:
        """Return when the request of a waiter arrived."""
        return self._arrivals[self._places[waiter][1]]

    @property
    def least_at_rest(self) -> int:
        """The number of connections that must exist at rest; 0 where a budget is shared."""
        ledger = self.core.ledger
        return ledger.settings.min_size if ledger.budget is None else 0

    def resize(self, min_size: int, max_size: int) -> None:
        """Resize the pool."""
        self.max_size = max(self.max_size, max_size)
        self._asked_for_min_size = True
        self._failed_before = self.core.runtime.counters.connects_failed
        self.core.resize(min_size, max_size)

    def check(self) -> bool:
        """Check the laws if anything has changed since the last turn; return whether it has."""
        ledger = self.core.ledger
        queue, entries = ledger.queue, ledger.entries
        if self.driver.sockets > len(entries) + self.driver.deaf:
            self._broken(f"{self.driver.sockets} sockets for {len(entries)} entries")
        if self.driver.misuse:
            self._broken(self.driver.misuse)
        counted = _values(self.core.runtime.counters)
        # Everything that the other laws depend on; lists of the same objects compare quickly.
        seen = (
            [entry.state for entry in entries],
            [entry.uses for entry in entries],
            ledger.idle.copy(),
            list(ledger.leased.values()),
            list(queue),
            (
                queue.length,
                queue.undelivered_errors,
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
        self._check_ledger()
        self._check_counters(counted)
        return True

    async def borrow(self, timeout: float | None) -> FakeConn:
        """Acquire a connection as users do, and check the laws of a request."""
        core, task = self.core, current_task()
        assert task is not None
        struck, started, held_up = task.cancelling(), self.loop.time(), self.loop.held_up
        if core.usable:
            self.begun += 1
        self._requests[task], self._arrivals[task] = self.begun, started
        try:
            conn = acquire_now(core) or await self._wait(timeout)
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
            self.require(task.cancelling() > struck, "CancelledError came out of nowhere")
            raise
        except REFUSALS as error:
            self.outcomes[type(error).__name__] += 1
            if isinstance(error, TooManyRequests):
                self._check_refusal(error)
            self.require(task.cancelling() == struck, f"a cancelled request raised {error!r}")
            limit = core.settings.timeout if timeout is None else timeout
            checking = core.settings.ping_timeout if core.check and not limit else 0
            late = self.loop.time() - started - limit - checking
            late -= self.loop.held_up - held_up
            self.require(late < TOLERANCE, f"{error!r} came {late} s late")
            raise
        finally:
            del self._requests[task], self._arrivals[task]
            left = [waiter for waiter, (_, owner) in self._places.items() if owner is task]
            for waiter in left:
                self.require(not waiter.waiting, "a request has ended and is still in the queue")
                self.require(waiter not in self.failed, "a waiter that was failed has not left")
                del self._places[waiter]
        self.require(task.cancelling() == struck, "a cancelled request was served")
        self.require(not conn.leased, f"{conn} has two owners")
        self.require(not conn.closed or core.closed, f"{conn} was leased although it is closed")
        known = not conn.alive and (conn.loss_reported or not self.driver.watches)
        # A request served in a callback may lose its connection before its task runs.
        known = known and not any(isinstance(each, Immediate) for each in left)
        self.require(not known or core.check is not None, f"{conn} was leased, known to be lost")
        self.outcomes["served"] += 1
        self.leased += 1
        conn.leased = True
        return conn

    def _check_refusal(self, error: TooManyRequests) -> None:
        """Check that a refused request could not have been served, and what it was told."""
        self.require(error.waiting > 0, f"{error!r} although nobody waits")
        if error.rule != "full":
            expected, retry = error.expected_wait, error.retry_after
            told = expected is not None and retry is not None and expected >= 0 <= retry < math.inf
            self.require(told, f"{error!r} says {expected} and {retry}")

    async def _wait(self, timeout: float | None) -> FakeConn:
        """Wait for a connection as `acquire` does or, if no check is set, as a one-shot does."""
        core = self.core
        if not core.usable or core.check is not None or self.random.random() < 0.7:
            return await core.acquire(timeout)
        now, ticket = self.loop.time(), core.ledger.queue.ticket()
        limit = core.settings.timeout if timeout is None else timeout
        waiter = Immediate(core, ticket, now, now + limit)
        apply_limits(waiter, core.ledger.queue.line)
        if not core.queue(waiter, limit, None):
            await core.refuse(waiter)
        try:
            return await waiter.future
        except BaseException as error:
            if waiter.task is not None:
                core.abandon_wait(waiter, error)
            elif (failure := waiter.future.exception()) is None:
                # It was used, like a statement that was sent; its caller is cancelled.
                self.leased += 1
                self.outcomes.update(served=1, cancelled=-1)
                self.give_back(waiter.future.result())
            elif failure is not error:
                # It was counted as failed before its caller was cancelled.
                self.outcomes.update({type(failure).__name__: 1, "cancelled": -1})
            raise
        finally:
            del waiter.future  # the waiter is kept for a while, and it refers to the connection

    def give_back(self, conn: FakeConn) -> None:
        """Release a connection, or pass it on; a closed pool may have closed it already."""
        conn.leased = False
        head = self.core.ledger.queue.head_in_time()
        entry = self.core.ledger.leased.get(conn)
        fits = isinstance(head, Immediate) and not head.future.done()
        if entry is not None and fits and self.driver.is_clean(conn) and self.core.hand_over(entry):
            return
        try:
            self.core.release(conn)
        except PoolClosed:
            self.require(self.core.closed, "PoolClosed from a pool that is open")

    def check_at_rest(self) -> None:
        """Check that, without faults and users, enough connections exist and all are idle."""
        ledger = self.core.ledger
        self.require(not ledger.leased, f"leases leaked: {ledger.leased}")
        self.require(ledger.queue.length == 0, "a waiter is still in the queue")
        self.require(len(ledger.idle) == ledger.size, f"not all at rest: {ledger.entries}")
        self.require(ledger.size >= self.least_at_rest, "fewer than min_size without faults")
        wanted = not ledger.trial_wanted or self.core.readiness.callers > 0
        self.require(wanted, "a wanted trial connect was not cleared")
        self.require(
            ledger.leases == self.leased, f"{ledger.leases} leases counted, {self.leased} seen"
        )
        failed = sum(self.outcomes[error.__name__] for error in REFUSALS)
        counters = self.core.runtime.counters
        self.require(counters.requests_failed == failed, f"{failed} failures, {counters}")
        self.core.flush_times()
        self.require(
            counters.use.count == self.leased, f"{counters.use.count} uses, {self.leased} leases"
        )
        spent = counters.use.sum
        self.require(abs(spent - counters.use_time) < TOLERANCE, f"{spent} s of use: {counters}")
        waited = counters.wait.sum
        self.require(abs(waited - counters.wait_time) < TOLERANCE, f"{waited} s waited: {counters}")
        cancelled = self.outcomes["cancelled"]
        self.require(counters.requests_cancelled == cancelled, f"{cancelled} cancelled, {counters}")

    def check_at_end(self) -> None:
        """Check that a closed pool has left nothing."""
        core = self.core
        self.require(not core.ledger.entries, f"entries after close: {core.ledger.entries}")
        self.require(self.driver.sockets == 0, "sockets after close")
        self.require(len(core.runtime.tasks) == 0, "tasks after close")
        self.require(not list(core.ledger.queue), "a waiter is in the queue after close")

    def require(self, holds: bool, otherwise: str) -> None:
        """Check one law."""
        if not holds:
            self._broken(otherwise)

    def _check_ledger(self) -> None:
        ledger = self.core.ledger
        queue, entries, idle = ledger.queue, ledger.entries, ledger.idle
        opening = [entry for entry in entries if entry.state is State.OPENING]
        closing = [entry for entry in entries if entry.state is State.CLOSING]
        leased = [entry for entry in entries if entry.state is State.LEASED]
        cleaning = [entry for entry in entries if entry.state is State.CLEANING]
        at_rest = [entry for entry in entries if entry.state is State.IDLE]
        waiting = list(queue)
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
        if len(waiting) != queue.length:
            broken("the queue is miscounted")
        if queue.undelivered_errors != len(self.failed):
            broken("failed waiters are miscounted")
        if idle and waiting:
            broken("a request waits beside an idle connection")
        used = [entry.used_at for entry in idle]
        if used != sorted(used):
            broken("idle connections are not in the order of their last use")
        self._check_stats(len(waiting))
        self._check_progress(len(waiting))

    def _check_progress(self, waiting: int) -> None:
        """Check that a connect is planned where a request waits and no connection exists."""
        ledger = self.core.ledger
        planned = self.core.outages.retry.at < math.inf
        if waiting and not (ledger.entries or ledger.budget or planned or self.core.closed):
            self._broken("a request waits, and nothing is opened or will be")

    def _check_stats(self, waiting: int) -> None:
        """Check that the pool's numbers of requests add up and agree with those kept here."""
        stats = snapshot(self.core)
        served, failed = self.core.ledger.leases, stats.requests_failed
        total = served + failed + stats.requests_cancelled + stats.waiting
        total += self.core.being_refused
        parts = stats.opening + stats.idle + stats.leased + stats.cleaning + stats.closing
        if parts != stats.size or stats.waiting != waiting or stats.requests != total:
            self._broken(f"stats do not add up: {served} served, {waiting} waiting, {stats}")
        if stats.idle and not self.core.settings.keeps_idle:
            self._broken(f"a connection is idle where none is kept: {stats}")
        if stats.requests != self.begun:
            self._broken(f"{self.begun} requests have arrived: {stats}")
        if stats.requests_queued > stats.requests:
            self._broken(f"more requests have queued than have arrived: {stats}")

    def _check_counters(self, counted: tuple[Any, ...]) -> None:
        before, self._counted = self._counted, counted
        for earlier, later in zip(before, counted, strict=False):
            if later < earlier:
                self._broken(f"a counter decreased: {before}, then {counted}")

    def _observe_connects(self) -> None:
        """Check how many connects are under way, whenever one begins."""
        ledger, counters = self.core.ledger, self.core.runtime.counters
        reserve = ledger.reserve

        def reserved(now: float) -> Entry[FakeConn]:
            limits = ledger.settings
            open_now = ledger.size - ledger.opening - ledger.closing
            if open_now >= limits.min_size or counters.connects_failed > self._failed_before:
                self._asked_for_min_size = False
            most = limits.open_at_once
            if self._asked_for_min_size:
                most = max(most, min(limits.min_size, limits.fill_at_once))
            if outage := self.core.outages.outage:
                probes = [each for each in ledger.entries if each.opened_at > outage.since]
                under_way = [each for each in probes if each.state is State.OPENING]
                self.require(all(each.late for each in under_way), "two probes at once")
            else:
                self.require(ledger.opening < most, f"more than {most} connects at once")
            return reserve(now)

        ledger.reserve = reserved  # type: ignore[method-assign]

    def _observe_tasks(self) -> None:
        """Require that no background task fails: the pool handles all errors of its driver."""
        tasks = self.core.runtime.tasks
        note_end = tasks._ended

        def ended(task: Task[Any]) -> None:
            failed = None if task.cancelled() else task.exception()
            self.require(failed is None, f"{task.get_name()!r} failed: {failed!r}")
            note_end(task)

        tasks._ended = ended  # type: ignore[method-assign]

    def _observe_queue(self) -> None:
        """Record which waiters join, in which order they are served, and which are failed."""
        queue = self.core.ledger.queue
        admit, serve, end, leave = queue.admit, queue.serve, queue.fail, queue.leave

        def joined(waiter: Waiter[Any]) -> None:
            admit(waiter)
            task = waiter.task
            assert task is not None
            self._places[waiter] = (self._requests[task], task)

        def served(item: Any) -> bool:
            waiting = list(queue)
            first = queue.head()
            if first is not None:
                self._at_hand_over(self._places[first][1])
            for each in waiting:
                if isinstance(each, Immediate):
                    each.used = None
            handed_over = serve(item)
            left = [each for each in waiting if each not in self.failed]
            # One that is served in a callback may have used the connection, and wait again.
            got = [each for each in left if item in {each.served, getattr(each, "used", None)}]
            self.require(handed_over is (len(got) == 1), f"{len(got)} were served")
            self.order.check(got, left)
            for each in got:
                self._at_hand_over(self._places[each][1])
            return handed_over

        def ended(waiter: Waiter[Any], error: BaseException) -> None:
            if isinstance(error, TooManyRequests):
                self.require(queue.length > 1, "the last waiter was refused a connection")
            self.failed.add(waiter)
            self._at_hand_over(self._places[waiter][1])
            end(waiter, error)
            self._at_hand_over(self._places[waiter][1])

        def left(waiter: Waiter[Any]) -> Any:
            self.failed.discard(waiter)
            return leave(waiter)

        queue.admit = joined  # type: ignore[method-assign]
        queue.serve = served  # type: ignore[method-assign]
        queue.fail = ended  # type: ignore[method-assign]
        queue.leave = left  # type: ignore[method-assign]


_values = attrgetter(*COUNTED)
