"""A world around the real core: users, faults and cancellations at random, from one seed.

The same seed gives the same run, on a virtual clock, with its own schedule. After every turn of the
event loop the laws are checked on each pool. At the end the faults stop, and the pools must recover
and close.
"""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from asyncio import Task
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import anyio
import pytest

from asyncpool import Budget
from asyncpool._core import admission, patience, service_rate, wait_queue
from asyncpool._core.entry import Entry, State
from asyncpool._core.maintenance import make_round, run_maintenance
from asyncpool._core.pool import Core
from asyncpool._core.settings import Settings
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.faults import Fault
from tests.fake import Broken, FakeConn
from tests.sim.budgets import BudgetLaws
from tests.sim.laws import LawBroken, Laws
from tests.sim.loop import NothingToDo
from tests.sim.schedule import ORDERS, SeededLoop
from tests.sim.users import Users, random_strike
from tests.sim.weather import CALM, Climate, Judged, WeatherDriver, judge

EVENTS = {
    "user": 8,
    "users": 3,
    "cancel": 6,
    "lose": 2,
    "lose all": 0.3,
    "resize": 0.5,
    "drain": 0.5,
    "round": 1,
    "weather": 1,
    "ping": 1,
    "news": 1,
    "forgetful": 0.3,
}
STRUCK = "connect", "close", "reset", "ping", "ask", "health", "end of check"
"""The pools' tasks that a stranger may cancel."""


class World(SeededLoop):
    """The event loop with its pools and users."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        random = Random(seed)
        super().__init__(random, random.choice(ORDERS))
        self.eager = random.random() < 0.2
        self._striker = Random(f"connects of {seed}")
        self.broken: LawBroken | None = None
        self.pools: list[Laws] = []
        self.drivers: dict[Laws, WeatherDriver] = {}
        self.users = Users(self, random, self.pools)
        self._maintenance_tasks: list[Task[None]] = []
        self.budget: Budget | None = None
        pools = random.choice([1, 1, 1, 2])
        aside = Random(f"the budget of {seed}")  # separate, so that other draws do not change
        if aside.random() < 0.25:
            self.budget = Budget(aside.choice([1, 2, 3, 5]))
            pools = aside.choice([2, 2, 3])
        for number in range(pools):
            self._found_pool(f"seed {seed}, pool {number}")
        self._shared: BudgetLaws | None = None
        if self.budget is not None:
            self._shared = BudgetLaws(self.budget, self.pools, self._break)

    @property
    def outcomes(self) -> Counter[str]:
        """The number of requests by outcome."""
        return sum((laws.outcomes for laws in self.pools), Counter())

    def run(self) -> None:
        """Run the world; raise LawBroken if a law does not hold."""
        gc.disable()  # a collection at an unpredictable time would change the run
        try:
            with quick_learning():
                self.finish(self._live())
        except LawBroken:
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - reported with its seed
            self._break(f"{type(error).__name__}: {error}", error)
        finally:
            gc.enable()

    def turn(self) -> None:
        """Run one turn and check the laws."""
        try:
            super().turn()
        except NothingToDo as error:
            self._break(str(error), error)
        if self.broken is not None:
            raise self.broken
        if self.users.errors:
            seen = self.users.errors[0]
            self._break(f"a user saw {type(seen).__name__}: {seen}", seen)
        if self.complaints:
            self._break(self.complaints[0])
        if self.turns > 200_000:
            self._break("the world does not come to rest")
        changed = False
        for laws in self.pools:
            changed |= laws.check()
        if changed and self._shared is not None:
            self._shared.check()

    def _found_pool(self, name: str) -> None:
        random = self.random
        driver = WeatherDriver(random)
        driver.watches = random.random() < 0.3
        min_size = random.choice([0, 1, 2, 4])
        # Separate randoms, so that the other draws do not depend on these.
        keeps_idle = Random(f"keeps none, {name}").random() > 0.1
        aside = Random(f"at once, {name}")

        async def check(conn: FakeConn) -> None:
            await driver.weather(conn)
            if not conn.alive:
                raise Broken

        core: Core[FakeConn] = Core(
            Settings(
                name=name,
                min_size=min_size if keeps_idle else 0,
                max_size=max(1, min_size) + random.choice([0, 0, 1, 3]),
                timeout=random.choice([0.5, 5.0, 30.0]),
                max_waiting=random.choice([0, 0, 3]),
                max_lifetime=random.choice([3.0, 60.0, math.inf]),
                max_idle=random.choice([1.0, 30.0, 600.0]),
                reconnect_timeout=30.0,
                ping_interval=random.choice([0.5, 5.0, 30.0]),
                ping_timeout=2.0,
                fail_fast_after=random.choice([2.0, 10.0, 60.0]),
                leak_timeout=random.choice([math.inf, 2.0]),
                keeps_idle=keeps_idle,
                open_at_once=aside.choice([1, 2, 32, 32]),
                fill_at_once=aside.choice([2, 128]),
                overload=aside.choice(["wait", "refuse"]),
            ),
            driver,
            check=check if random.random() < 0.3 else None,
            classify=judge,
            budget=self.budget,
            random=random,
        )
        # No run may depend on the addresses of its objects.
        core.ledger.entries = Ordered()  # type: ignore[assignment]
        laws = Laws(self, core, driver, self._break, self.users.strike_at_hand_over)
        self.pools.append(laws)
        self.drivers[laws] = driver

    async def _live(self) -> None:
        random = self.random
        for laws in self.pools:
            laws.core.open()
            maintenance = run_maintenance(weakref.ref(laws.core))
            task = laws.core.runtime.tasks.spawn(maintenance, "maintenance")
            self._maintenance_tasks.append(task)
            self.drivers[laws].climate = Climate(
                error=random.choice([0.0, 0.05, 0.3]),
                slow=random.choice([0.0, 0.1, 0.5]),
                hang=random.choice([0.0, 0.0, 0.02, 0.1]),
                stubborn=random.choice([0.0, 0.5]),
                refuse=random.choice([0.0, 0.0, 0.3]),
                die=random.choice([0.0, 0.0, 0.1]),
            )
        for _ in range(random.randrange(5, 40)):
            self._happen(random.choice(self.pools))
            self._strike_tasks()
            await asyncio.sleep(random.choice([0, 0, 0, 0.001, 0.2, 1.0, 5.0]))
        end = random.choice(["in good weather", "in good weather", "at once", "in an outage"])
        if end == "in good weather":
            await self._clear_up()
        elif end == "in an outage":
            for laws in self.pools:
                self.drivers[laws].climate = Climate(error=1.0)
                _lose_all(laws)
            await asyncio.sleep(random.choice([0.01, 0.2, 1.0]))
        await self._end()

    def _happen(self, laws: Laws) -> None:  # noqa: PLR0912 - a list of all events
        """Let one event happen."""
        random, core, ledger = self.random, laws.core, laws.core.ledger
        event = random.choices(list(EVENTS), list(EVENTS.values()))[0]
        match event:
            case "user":
                self.users.come()
            case "users":
                for _ in range(random.randrange(2, 12)):
                    self.users.come()
            case "cancel" if self.users.present:
                self.users.cancel_some()
            case "lose" if ledger.entries:
                _lose(random.choice(list(ledger.entries)))
            case "lose all":
                _lose_all(laws)
            case "resize":
                min_size = random.choice([0, 1, 2])
                max_size = max(1, min_size + random.choice([0, 2, 4]))
                min_size = min_size if core.settings.keeps_idle else 0
                laws.resize(min_size, max_size)
            case "drain":
                core.drain()
            case "round":
                core.runtime.tasks.spawn(make_round(core), "round")
            case "ping" if ledger.idle:
                entry = ledger.idle[-1]
                core.store.spawn(entry, core.store.ping(entry), "health")
            case "ping" if not core.settings.keeps_idle:
                self._wait_until_full(core)
            case "news" if ledger.entries:
                _report_error(random.choice(list(ledger.entries)), random)
            case "forgetful":
                self.users.come(forgetful=True)
            case "weather":
                error, slow = random.choice([0.0, 0.1]), random.choice([0.0, 0.3])
                self.drivers[laws].climate = Climate(error=error, slow=slow)

    def _strike_tasks(self) -> None:
        """Cancel some of the pools' tasks, as a stranger who cancels all that there are."""
        for laws in self.pools:
            running = laws.core.runtime.tasks.running
            for task in sorted(set().union(*map(running, STRUCK)), key=hash):
                if self._striker.random() < 0.05:
                    task.cancel()

    def _wait_until_full(self, core: Core[FakeConn]) -> None:
        """Wait as `wait()` does for a pool that is full; the task may be cancelled."""
        task = core.runtime.tasks.spawn(core.readiness.wait(), "wait")
        if self.random.random() < 0.3:
            self.plan(task, random_strike(self.random, task.cancel, at_each=True))

    async def _clear_up(self) -> None:
        """Stop the faults; every user ends, and the pools recover."""
        for laws in self.pools:
            self.drivers[laws].climate = CALM
        # Hold-ups of the loop end too, since they may last as long as a check.
        self.order = replace(self.order, hold_up=0.0)
        await self.users.gone()
        if self.users.forgot:
            gc.collect()  # the traceback of a cancelled user may refer to a forgotten connection
        for laws, maintenance in zip(self.pools, self._maintenance_tasks, strict=True):
            ledger = laws.core.ledger
            end = self.time() + 60.0
            while self.time() < end:  # with short lifetimes a connection is often being replaced
                # With a budget, a pool may have to wait for the others.
                if all(_is_at_rest(each) for each in (self.pools if self.budget else [laws])):
                    break
                await asyncio.sleep(0.01 if self.random.random() < 0.1 else 0.5)
            laws.check_at_rest()
            laws.require(not maintenance.done(), "the maintenance task has ended")
            if laws.core.outages.outage:
                await asyncio.sleep(1.0)  # no probe starts before, and requests may fail
            # An idle connection may be lost without notice; then another has to be opened.
            at_once = any(entry.conn.alive for entry in ledger.idle)
            conn = await laws.borrow(0 if at_once else 5.0)
            laws.give_back(conn)

    async def _end(self) -> None:
        if deaf := Random(f"end, {self.seed}").random() < 0.1:
            # Connects are under way that end neither at once nor where they are told to.
            for laws in self.pools:
                self.drivers[laws].climate = Climate(slow=0.5, hang=0.3, deaf=0.7)
                laws.core.drain()
            await asyncio.sleep(0.001)
        await asyncio.gather(*(self._close(laws, deaf=deaf) for laws in self.pools))
        await self.users.gone()
        if deaf:
            for laws in self.pools:
                self.drivers[laws].climate = CALM
            await asyncio.sleep(100.0)
        for laws in self.pools:
            laws.check_at_end()
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks(self) - {asyncio.current_task()}
        left = [each for each in self._scheduled if not each.cancelled()]
        for laws in self.pools:
            laws.require(not left, f"timers after close: {left}")
            laws.require(not tasks, f"tasks after close: {tasks}")

    async def _close(self, laws: Laws, *, deaf: bool) -> None:
        """Close a pool, sometimes from several tasks, some of which are cancelled meanwhile."""
        random, core = self.random, laws.core
        started, held_up = self.time(), self.held_up
        limit = random.choice([0, 1.0, 5.0])
        closers: list[tuple[Task[None], bool]] = []
        for _ in range(random.choice([0, 0, 1, 2])):
            task = self.create_task(core.close(limit))
            struck = random.random() < 0.5
            if struck:
                self.plan(task, random_strike(random, task.cancel, at_each=True))
            closers.append((task, struck))
            if random.random() < 0.5:
                await asyncio.sleep(0)
        with anyio.CancelScope() as scope:
            if random.random() < 0.2:
                scope.cancel()  # must not interrupt it
            await core.close(limit)
        took = self.time() - started - (self.held_up - held_up)
        laws.require(took < 7.0, f"close() took {took} s")
        if not deaf:
            laws.check_at_end()
        if closers:
            await asyncio.wait([task for task, _ in closers])
        for task, struck in closers:
            laws.require(struck or not task.cancelled(), "close() raised CancelledError by itself")
            laws.require(task.cancelled() or not task.exception(), f"close() raised: {task}")
            laws.require(
                task.cancelled() or not task.cancelling(), "close() swallowed a cancellation"
            )

    def _break(self, what: str, cause: BaseException | None = None) -> None:
        again = f"python -m tests.sim {self.seed}"
        msg = f"seed {self.seed}, t={self.time():.3f}: {what} (see it again: {again})"
        error = LawBroken(msg)
        error.__cause__ = cause
        # A task or callback may swallow the exception, so the loop raises it again.
        self.broken = self.broken or error
        raise error


class Ordered(dict[Any, None]):
    """A set that keeps the order of insertion."""

    def add(self, item: Any) -> None:
        """Add an item."""
        self[item] = None

    def remove(self, item: Any) -> None:
        """Remove an item."""
        del self[item]


@contextmanager
def quick_learning() -> Iterator[None]:
    """Let queues learn from two hand-overs or cancellations: a world has not many more."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (admission, service_rate, wait_queue):
            patch.setattr(module, "STEP", 2)
        patch.setattr(patience, "ENOUGH", 2)
        patch.setattr(patience, "SHARE", 100)
        yield


def outcome_of(seed: int) -> str | None:
    """Run one seed; return the law that does not hold, or None."""
    try:
        World(seed).run()
    except LawBroken as error:
        return str(error)
    return None


def trace_of(seed: int) -> str:
    """Run one seed; return a summary to compare with another run."""
    world = World(seed)
    world.run()
    pools = [(laws.driver.made, snapshot(laws.core)) for laws in world.pools]
    return f"{world.turns} {world.now!r} {sorted(world.outcomes.items())} {pools}"


def _is_at_rest(laws: Laws) -> bool:
    ledger = laws.core.ledger
    return len(ledger.idle) == ledger.size >= laws.least_at_rest


def _lose(entry: Entry[FakeConn]) -> None:
    if entry.state is not State.OPENING:
        entry.conn.die()


def _report_error(entry: Entry[FakeConn], random: Random) -> None:
    """Report a statement's error, or lose the connection with an error from the server."""
    if entry.state is not State.OPENING:
        error = Judged(random.choice([Fault.SERVER, Fault.FAILOVER, Fault.CONNECTION]))
        if random.random() < 0.5:
            entry.conn.die(error)
        else:
            entry.conn.lose(error, lost=False)


def _lose_all(laws: Laws) -> None:
    for entry in list(laws.core.ledger.entries):
        _lose(entry)
