"""A small world around the real core: users, faults and cancellations at random, from one seed.

The same seed gives the same run, on a virtual clock. After every turn of the event loop the laws
are held against the core; at the end the weather clears up, and the pool must become whole and
close.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import anyio
import looptime

from asyncpool._core import Core
from asyncpool._entry import Entry, State
from asyncpool._insight import snapshot
from asyncpool._keeper import keep, make_round
from asyncpool._settings import settings
from asyncpool._waiters import Waiter
from asyncpool.errors import PoolClosed, PoolTimeout, TooManyRequests
from tests.sim.fake import CALM, Broken, Climate, FakeConn, FakeConnector


class LawBroken(AssertionError):
    """An invariant does not hold; the message says which, and the seed to see it again."""


class World(looptime.LoopTimeEventLoop, asyncio.SelectorEventLoop):
    """The event loop and everything in it."""

    def __init__(self, seed: int) -> None:
        super().__init__(start=0.0, resolution=1e-9, noop_cycles=0)
        self.seed = seed
        self.random = random = Random(seed)
        self.connector = FakeConnector(random)
        if sys.version_info >= (3, 12) and random.random() < 0.2:
            self.set_task_factory(asyncio.eager_task_factory)
        min_size = random.choice([0, 1, 2, 4])
        self.max_size = max(1, min_size) + random.choice([0, 0, 1, 3])
        self.core: Core[FakeConn] = Core(
            settings(
                name=f"seed {seed}",
                min_size=min_size,
                max_size=self.max_size,
                timeout=random.choice([0.5, 5.0, 30.0]),
                max_waiting=random.choice([0, 0, 3]),
                max_lifetime=random.choice([3.0, 60.0, math.inf]),
                max_idle=random.choice([1.0, 30.0, 600.0]),
                reconnect_timeout=30.0,
                ping_interval=random.choice([0.5, 5.0, 30.0]),
                ping_timeout=2.0,
            ),
            self.connector,
            check=self._check if random.random() < 0.3 else None,
            random=random,
        )
        self.users: dict[asyncio.Task[None], int] = {}
        self.outcomes: Counter[str] = Counter()
        self._tasks_of: weakref.WeakKeyDictionary[Any, asyncio.Task[Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._turns = 0
        self._lent = 0
        self._broken: LawBroken | None = None
        self._places: dict[int, float] = {}
        self._listen_to_the_line()

    def run(self) -> None:
        """Live through it; raises LawBroken."""
        try:
            self.run_until_complete(self._live())
        except LawBroken:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told with its seed
            self._break(f"{type(error).__name__}: {error}", error)
        finally:
            for task in asyncio.all_tasks(self):
                task.cancel()
            self.call_soon(lambda: None)
            with contextlib.suppress(LawBroken):
                super()._run_once()  # type: ignore[misc]
            self.close()

    def _run_once(self) -> None:
        # The one place where every turn of the loop can be seen; asyncio has no public one.
        super()._run_once()  # type: ignore[misc]
        if self._broken is not None:
            raise self._broken
        self._turns += 1
        if self._turns > 200_000:
            self._break("the world does not come to rest")
        self.hold_to_laws()

    def hold_to_laws(self) -> None:
        """The invariants that hold after every step."""
        ledger = self.core.ledger
        states = Counter(entry.state for entry in ledger.entries)
        stats = snapshot(self.core)
        self._law(ledger.opening == states[State.OPENING], "opening is miscounted")
        self._law(ledger.closing == states[State.CLOSING], "closing is miscounted")
        parts = stats.opening + stats.idle + stats.leased + stats.cleaning + stats.closing
        self._law(parts == stats.size, f"the states do not add up: {stats}")
        self._law(stats.size <= self.max_size, f"{stats.size} entries, {self.max_size} allowed")
        self._law(
            self.connector.sockets <= stats.size,
            f"{self.connector.sockets} sockets for {stats.size} entries",
        )
        self._law(
            set(ledger.idle) == _in(ledger.entries, State.IDLE), "idle: stack and states differ"
        )
        self._law(len(set(ledger.idle)) == len(ledger.idle), "an entry is idle twice")
        self._law(
            set(ledger.leased.values()) == _in(ledger.entries, State.LEASED),
            "leased: table and states differ",
        )
        waiting = list(ledger.line)
        self._law(len(waiting) == ledger.line.length, "the line is miscounted")
        self._law(not (ledger.idle and waiting), "somebody waits beside an idle connection")
        used = [entry.used_at for entry in ledger.idle]
        self._law(used == sorted(used), "the idle ones are not in the order of their last use")
        self._law(not self.connector.misuse, self.connector.misuse)

    async def _live(self) -> None:
        core, random = self.core, self.random
        core.open()
        keeper = core.stock.crew.spawn(keep(weakref.ref(core)), "keeper")
        self.connector.climate = Climate(
            error=random.choice([0.0, 0.05, 0.3]),
            slow=random.choice([0.0, 0.1, 0.5]),
            hang=random.choice([0.0, 0.0, 0.02, 0.1]),
            stubborn=random.choice([0.0, 0.5]),
        )
        for _ in range(random.randrange(5, 40)):
            self._happen()
            await asyncio.sleep(random.choice([0, 0, 0, 0.001, 0.2, 1.0, 5.0]))
        end = random.choice(["in good weather", "in good weather", "at once", "in an outage"])
        if end == "in good weather":
            await self._clear_up(keeper)
        elif end == "in an outage":
            self.connector.climate = Climate(error=1.0)
            for entry in sorted(core.ledger.entries, key=_number):
                self._lose(entry)
            await asyncio.sleep(random.choice([0.01, 0.2, 1.0]))
        await self._end()

    async def _clear_up(self, keeper: asyncio.Task[None]) -> None:
        """Good weather: every user comes to an end, and the pool is whole again."""
        self.connector.climate = CALM
        async with asyncio.timeout(20_000):
            while self.users:
                await asyncio.wait(self.users)
        await asyncio.sleep(60.0)
        ledger = self.core.ledger
        for _ in range(100):  # where lives are short, one is being replaced at almost any time
            if len(ledger.idle) == ledger.size >= ledger.settings.min_size:
                break
            await asyncio.sleep(0.01)
        self._law(not ledger.leased, f"leases leaked: {ledger.leased}")
        self._law(ledger.line.length == 0, "somebody is still in the line")
        self._law(len(ledger.idle) == ledger.size, f"not all at rest: {ledger.entries}")
        self._law(ledger.size >= ledger.settings.min_size, "fewer than min_size in good weather")
        self._law(not keeper.done(), "the keeper has died")
        self._law(ledger.leases == self._lent, f"{ledger.leases} leases booked, {self._lent} seen")
        conn = await self.core.acquire(0 if ledger.idle else 5.0)
        self.core.release(conn)

    async def _end(self) -> None:
        core = self.core
        started = self.time()
        await core.close(self.random.choice([0, 1.0, 5.0]))
        self._law(self.time() - started < 7.0, "close() took too long")
        async with asyncio.timeout(20_000):
            while self.users:
                await asyncio.wait(self.users)
        self._law(not core.ledger.entries, f"entries after close: {core.ledger.entries}")
        self._law(self.connector.sockets == 0, "sockets after close")
        self._law(len(core.stock.crew) == 0, "tasks after close")
        await asyncio.sleep(0)
        timers = [each for each in self._scheduled if not each.cancelled()]  # type: ignore[attr-defined]
        self._law(not timers, f"timers after close: {timers}")

    def _happen(self) -> None:  # noqa: PLR0912 - a list of all that may happen
        """One event."""
        random, ledger = self.random, self.core.ledger
        event = random.choices(
            [
                "user",
                "users",
                "cancel",
                "lose",
                "lose all",
                "resize",
                "drain",
                "round",
                "weather",
                "ping",
            ],
            [8, 3, 6, 2, 0.3, 0.5, 0.5, 1, 1, 1],
        )[0]
        match event:
            case "user":
                self._start_user()
            case "users":
                for _ in range(random.randrange(2, 12)):
                    self._start_user()
            case "cancel" if self.users:
                for task in random.sample(
                    list(self.users), random.randrange(1, len(self.users) + 1)
                ):
                    self._cancel(task)
            case "lose" if ledger.entries:
                self._lose(random.choice(sorted(ledger.entries, key=_number)))
            case "lose all":
                for entry in sorted(ledger.entries, key=_number):
                    self._lose(entry)
            case "resize":
                min_size = random.choice([0, 1, 2])
                max_size = max(1, min_size + random.choice([0, 2, 4]))
                self.max_size = max(self.max_size, max_size)
                self.core.resize(min_size, max_size)
            case "drain":
                self.core.drain()
            case "round":
                self.core.stock.crew.spawn(make_round(self.core), "round")
            case "ping" if ledger.idle:
                self.core.stock.crew.spawn(self.core.stock.ping(ledger.idle[-1]), "health")
            case "weather":
                error, slow = random.choice([0.0, 0.1]), random.choice([0.0, 0.3])
                self.connector.climate = Climate(error=error, slow=slow)

    def _start_user(self) -> None:
        task = self.create_task(self._user())
        if not task.done():
            self.users[task] = 0
            task.add_done_callback(self._user_done)

    def _user_done(self, task: asyncio.Task[None]) -> None:
        self.users.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._break(f"a user saw {type(error).__name__}: {error}", error)

    async def _user(self) -> None:
        random = self.random
        timeout = random.choice([None, None, 0, 0.3, 2.0])
        patience = random.choice([math.inf, math.inf, math.inf, 0, 0.01, 1.0])
        started = self.time()
        with anyio.move_on_after(patience):
            try:
                conn = self.core.acquire_now() or await self.core.acquire(timeout)
            except (PoolTimeout, TooManyRequests, PoolClosed) as error:
                self.outcomes[type(error).__name__] += 1
                limit = self.core.settings.timeout if timeout is None else timeout
                checking = self.core.settings.ping_timeout if self.core._check and not limit else 0
                late = self.time() - started - limit - checking
                self._law(late < 0.001, f"{error!r} came {late} s late")
                return
            self._lent += 1
            self._law(not conn.lent, f"{conn} has two owners")
            self._law(not conn.closed or self.core.closed, f"{conn} was lent although it is closed")
            conn.lent = True
            try:
                await self._use(conn)
            finally:
                conn.lent = False
                with contextlib.suppress(PoolClosed):
                    self.core.release(conn)
            self.outcomes["served"] += 1

    async def _use(self, conn: FakeConn) -> None:
        random = self.random
        for _ in range(random.randrange(4)):
            await asyncio.sleep(random.choice([0, 0, 0.01, 0.5]))
        conn.clean = random.random() < 0.6
        await asyncio.sleep(0)
        if random.random() < 0.1:
            conn.alive = False

    async def _check(self, conn: FakeConn) -> None:
        await self.connector._weather()
        if not conn.alive:
            raise Broken

    def _lose(self, entry: Entry[FakeConn]) -> None:
        if entry.state is not State.OPENING:
            entry.conn.alive = False
            entry.conn.lose()

    def _cancel(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self.users[task] = self.users.get(task, 0) + 1
        if self.random.random() < 0.3:
            self.call_soon(task.cancel)

    def _listen_to_the_line(self) -> None:
        """Check the order of hand-overs, and cancel some in the same tick."""
        line = self.core.ledger.line
        join, serve, end = line.join, line.serve, line._end

        def joined(
            now: float, deadline: float, ticket: int | None = None
        ) -> Waiter[Entry[FakeConn]]:
            waiter = join(now, deadline, ticket)
            self._places[id(waiter)] = waiter.ticket
            task = asyncio.current_task()
            assert task is not None
            self._tasks_of[waiter] = task
            return waiter

        def served(item: Entry[FakeConn]) -> bool:
            head = min(line, key=lambda each: self._places[id(each)], default=None)
            with self._cancelled_in_same_tick(head):
                handed_over = serve(item)
            self._law(head is None or head.served is item, "a waiter was overtaken")
            return handed_over

        def ended(waiter: Waiter[Entry[FakeConn]]) -> None:
            with self._cancelled_in_same_tick(waiter):
                end(waiter)

        line.join = joined  # type: ignore[method-assign]
        line.serve = served  # type: ignore[method-assign]
        line._end = ended  # type: ignore[method-assign]

    @contextmanager
    def _cancelled_in_same_tick(self, waiter: Waiter[Entry[FakeConn]] | None) -> Iterator[None]:
        """Cancel its task at times, just before or just after."""
        task = None if waiter is None else self._tasks_of[waiter]
        draw = self.random.random()
        if task not in self.users or task is asyncio.current_task():
            task = None
        if task is not None and draw < 0.1:
            task.cancel()
        yield
        if task is not None and draw > 0.85:
            task.cancel()

    def _law(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._break(otherwise)

    def _break(self, what: str, cause: BaseException | None = None) -> None:
        again = f"python -m tests.sim {self.seed}"
        msg = f"seed {self.seed}, t={self.time():.3f}: {what} (see it again: {again})"
        error = LawBroken(msg)
        error.__cause__ = cause
        # Raised in a task or callback it may be swallowed there: the loop raises it once more.
        self._broken = self._broken or error
        raise error


def outcome_of(seed: int) -> str | None:
    """Live through one seed; returns what went wrong, or None."""
    try:
        World(seed).run()
    except LawBroken as error:
        return str(error)
    return None


def _in(entries: set[Entry[FakeConn]], state: State) -> set[Entry[FakeConn]]:
    return {entry for entry in entries if entry.state is state}


def _number(entry: Entry[FakeConn]) -> int:
    return entry.conn.number if hasattr(entry, "conn") else 0
