"""A small world around the real core: users, faults and cancellations at random, from one seed.

The same seed gives the same run, on a virtual clock, with a schedule of its own. After every turn
of the event loop the laws are held against each pool; at the end the weather clears up, and the
pools must become whole and close.
"""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from asyncio import Task
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import anyio

from asyncpool import Budget
from asyncpool._core.entry import Entry, State
from asyncpool._core.maintenance import keep, make_round
from asyncpool._core.pool import Core
from asyncpool._core.settings import Settings
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.faults import Fault
from tests.sim.budgets import BudgetLaws
from tests.sim.fake import CALM, Broken, Climate, FakeConn, FakeDriver, Judged, judge
from tests.sim.laws import LawBroken, Laws
from tests.sim.loop import NothingToDo
from tests.sim.schedule import ORDERS, SeededLoop
from tests.sim.users import Users, random_strike

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


class World(SeededLoop):
    """The event loop and everything in it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        random = Random(seed)
        super().__init__(random, random.choice(ORDERS))
        self.eager = random.random() < 0.2
        self.broken: LawBroken | None = None
        self.pools: list[Laws] = []
        self.users = Users(self, random, self.pools)
        self._keepers: list[Task[None]] = []
        self.budget: Budget | None = None
        pools = random.choice([1, 1, 1, 2])
        aside = Random(f"the budget of {seed}")  # the others' seeds tell what they told before it
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
        """How requests have ended."""
        return sum((laws.outcomes for laws in self.pools), Counter())

    def run(self) -> None:
        """Live through it; raises LawBroken."""
        gc.disable()  # when it comes depends on what ran before, and a pool can tell
        try:
            self.finish(self._live())
        except LawBroken:
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - told with its seed
            self._break(f"{type(error).__name__}: {error}", error)
        finally:
            gc.enable()

    def turn(self) -> None:
        """One turn, and a look at the laws."""
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
            changed |= laws.hold()
        if changed and self._shared is not None:
            self._shared.hold()

    def _found_pool(self, name: str) -> None:
        random = self.random
        connector = FakeDriver(random)
        connector.watches = random.random() < 0.3
        min_size = random.choice([0, 1, 2, 4])
        # Of a random of its own: all else is drawn as if nothing had been.
        keeps_idle = Random(f"keeps none, {name}").random() > 0.1

        async def check(conn: FakeConn) -> None:
            await connector.weather(conn)
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
            ),
            connector,
            check=check if random.random() < 0.3 else None,
            classify=judge,
            budget=self.budget,
            random=random,
        )
        # Nothing in a run may depend on the addresses of its objects.
        core.ledger.entries = Ordered()  # type: ignore[assignment]
        self.pools.append(Laws(self, core, connector, self._break, self.users.strike_at_hand_over))

    async def _live(self) -> None:
        random = self.random
        for laws in self.pools:
            laws.core.open()
            keeper = keep(weakref.ref(laws.core))
            self._keepers.append(laws.core.store.tasks.spawn(keeper, "keeper"))
            laws.connector.climate = Climate(
                error=random.choice([0.0, 0.05, 0.3]),
                slow=random.choice([0.0, 0.1, 0.5]),
                hang=random.choice([0.0, 0.0, 0.02, 0.1]),
                stubborn=random.choice([0.0, 0.5]),
                refuse=random.choice([0.0, 0.0, 0.3]),
                die=random.choice([0.0, 0.0, 0.1]),
            )
        for _ in range(random.randrange(5, 40)):
            self._happen(random.choice(self.pools))
            await asyncio.sleep(random.choice([0, 0, 0, 0.001, 0.2, 1.0, 5.0]))
        end = random.choice(["in good weather", "in good weather", "at once", "in an outage"])
        if end == "in good weather":
            await self._clear_up()
        elif end == "in an outage":
            for laws in self.pools:
                laws.connector.climate = Climate(error=1.0)
                _lose_all(laws)
            await asyncio.sleep(random.choice([0.01, 0.2, 1.0]))
        await self._end()

    def _happen(self, laws: Laws) -> None:  # noqa: PLR0912 - a list of all that may happen
        """One event."""
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
                laws.max_size = max(laws.max_size, max_size)
                core.resize(min_size, max_size)
            case "drain":
                core.drain()
            case "round":
                core.store.tasks.spawn(make_round(core), "round")
            case "ping" if ledger.idle:
                core.store.tasks.spawn(core.store.ping(ledger.idle[-1]), "health")
            case "ping" if not core.settings.keeps_idle:
                self._sound(core)
            case "news" if ledger.entries:
                _tell(random.choice(list(ledger.entries)), random)
            case "forgetful":
                self.users.come(forgetful=True)
            case "weather":
                error, slow = random.choice([0.0, 0.1]), random.choice([0.0, 0.3])
                laws.connector.climate = Climate(error=error, slow=slow)

    def _sound(self, core: Core[FakeConn]) -> None:
        """Somebody wants to see that a connection can be had, and may not wait for it."""
        task = core.store.tasks.spawn(core.store.fill(), "wait")
        if self.random.random() < 0.3:
            self.plan(task, random_strike(self.random, task.cancel, at_each=True))

    async def _clear_up(self) -> None:
        """Good weather: every user comes to an end, and the pools are whole again."""
        for laws in self.pools:
            laws.connector.climate = CALM
        # Nor is the loop held up for as long as a check may take.
        self.order = replace(self.order, hold_up=0.0)
        await self.users.gone()
        if self.users.forgot:
            gc.collect()  # what was forgotten may be in the traceback of a cancelled user
        for laws, keeper in zip(self.pools, self._keepers, strict=True):
            ledger = laws.core.ledger
            end = self.time() + 60.0
            while self.time() < end:  # where lives are short, one is replaced at almost any time
                # What one of them is at the others may have to wait for.
                if all(_is_at_rest(each) for each in (self.pools if self.budget else [laws])):
                    break
                await asyncio.sleep(0.01 if self.random.random() < 0.1 else 0.5)
            laws.hold_at_rest()
            laws.law(not keeper.done(), "the keeper has died")
            if laws.core.store.outage:
                await asyncio.sleep(1.0)  # as long as nobody tries again, and some are turned away
            # One that is lost, and not known to be, is no reason to be lent another at once.
            at_once = any(entry.conn.alive for entry in ledger.idle)
            conn = await laws.borrow(0 if at_once else 5.0)
            laws.give_back(conn)

    async def _end(self) -> None:
        await asyncio.gather(*(self._close(laws) for laws in self.pools))
        await self.users.gone()
        for laws in self.pools:
            laws.hold_at_the_end()
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks(self) - {asyncio.current_task()}
        left = [each for each in self._scheduled if not each.cancelled()]
        for laws in self.pools:
            laws.law(not left, f"timers after close: {left}")
            laws.law(not tasks, f"tasks after close: {tasks}")

    async def _close(self, laws: Laws) -> None:
        """Close it, at times from several tasks, some of which are cancelled meanwhile."""
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
                scope.cancel()  # it goes on to its end all the same
            await core.close(limit)
        took = self.time() - started - (self.held_up - held_up)
        laws.law(took < 7.0, f"close() took {took} s")
        laws.hold_at_the_end()
        if closers:
            await asyncio.wait([task for task, _ in closers])
        for task, struck in closers:
            laws.law(struck or not task.cancelled(), "close() was cancelled by nobody")
            laws.law(task.cancelled() or not task.exception(), f"close() raised: {task}")
            laws.law(task.cancelled() or not task.cancelling(), "close() swallowed a cancellation")

    def _break(self, what: str, cause: BaseException | None = None) -> None:
        again = f"python -m tests.sim {self.seed}"
        msg = f"seed {self.seed}, t={self.time():.3f}: {what} (see it again: {again})"
        error = LawBroken(msg)
        error.__cause__ = cause
        # Raised in a task or callback it may be swallowed there: the loop raises it once more.
        self.broken = self.broken or error
        raise error


class Ordered(dict[Any, None]):
    """A set that remembers the order in which it was filled."""

    def add(self, item: Any) -> None:
        """As a set's."""
        self[item] = None

    def remove(self, item: Any) -> None:
        """As a set's."""
        del self[item]


def outcome_of(seed: int) -> str | None:
    """Live through one seed; returns what went wrong, or None."""
    try:
        World(seed).run()
    except LawBroken as error:
        return str(error)
    return None


def trace_of(seed: int) -> str:
    """Live through one seed; returns what has become of it, to be compared with another run."""
    world = World(seed)
    world.run()
    pools = [(laws.connector.made, snapshot(laws.core)) for laws in world.pools]
    return f"{world.turns} {world.now!r} {sorted(world.outcomes.items())} {pools}"


def _is_at_rest(laws: Laws) -> bool:
    ledger = laws.core.ledger
    return len(ledger.idle) == ledger.size >= laws.least_at_rest


def _lose(entry: Entry[FakeConn]) -> None:
    if entry.state is not State.OPENING:
        entry.conn.die()


def _tell(entry: Entry[FakeConn], random: Random) -> None:
    """A statement has failed on it, or the server has said farewell."""
    if entry.state is not State.OPENING:
        error = Judged(random.choice([Fault.SERVER, Fault.FAILOVER, Fault.CONNECTION]))
        if random.random() < 0.5:
            entry.conn.die(error)
        else:
            entry.conn.lose(error, lost=False)


def _lose_all(laws: Laws) -> None:
    for entry in list(laws.core.ledger.entries):
        _lose(entry)
