"""A virtual clock, and a driver that does as it is told: for the tests of single modules."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from random import Random
from typing import Any, ParamSpec

import looptime

from asyncpool import Budget
from asyncpool._core.entry import Entry
from asyncpool._core.maintenance import run_maintenance
from asyncpool._core.pool import Core
from asyncpool._core.settings import Settings
from asyncpool._core.wait_queue import WaitQueue
from asyncpool._core.waiter import Waiter
from asyncpool.faults import Fault, classify
from tests._tools import acquire_now
from tests.fake import Broken, FakeConn, FakeDriver

P = ParamSpec("P")
Deed = Callable[[], Awaitable[None]]

LATER = 100_000.0
"""A duration that no test lives to see the end of."""
DOOMSDAY = 10 * LATER
"""When a test that hangs is ended."""


class VirtualLoop(looptime.LoopTimeEventLoop, asyncio.SelectorEventLoop):
    """An event loop whose time only passes while everybody sleeps."""

    def __init__(self) -> None:
        super().__init__(start=0.0, resolution=1e-9, noop_cycles=0)


def virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a clock of its own, which starts at 0."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def live() -> None:
            async with asyncio.timeout(DOOMSDAY):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(live())

    return run


def now() -> float:
    """The instant on the virtual clock."""
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let everything happen that can without waiting; the clock moves a microsecond."""
    await asyncio.sleep(1e-6)


def timers() -> list[asyncio.TimerHandle]:
    """Return the timers of the loop, besides the one that ends a test that hangs."""
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [each for each in scheduled if not each.cancelled() and each.when() < DOOMSDAY]


async def ok() -> None:
    """A call that succeeds at once."""


async def fails() -> None:
    """A call that fails at once."""
    raise Broken


async def never() -> None:
    """A call that hangs until it is cancelled."""
    await asyncio.get_running_loop().create_future()


def slow(seconds: float) -> Deed:
    """A call that takes its time."""
    return functools.partial(asyncio.sleep, seconds)


def stubborn(until: float) -> Deed:
    """A call that obeys no cancellation before some instant."""

    async def deed() -> None:
        while (left := until - now()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(left)

    return deed


class Driver(FakeDriver):
    """A fake driver: each call does the next deed of its script, then the usual one."""

    def __init__(self, **usual: Deed) -> None:
        super().__init__()
        self.conns: list[FakeConn] = []
        """All connections that were opened."""
        self.usual: dict[str, Deed] = dict.fromkeys(("open", "close", "ping", "reset"), ok) | usual
        self.script: dict[str, deque[Deed]] = {name: deque() for name in self.usual}
        self.calls: list[tuple[str, float]] = []
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def times(self, name: str) -> list[float]:
        """When the calls of one method began."""
        return [at for each, at in self.calls if each == name]

    async def open(self) -> FakeConn:
        """Open a connection, and keep it in `conns`."""
        self.conns.append(conn := await super().open())
        return conn

    async def call(self, name: str, conn: FakeConn | None) -> None:
        """Do the deed."""
        self.calls.append((name, now()))
        self.under_way[name] += 1
        self.most[name] = max(self.most[name], self.under_way[name])
        try:
            deed = self.script[name].popleft() if self.script[name] else self.usual[name]
            await deed()
        finally:
            self.under_way[name] -= 1


def make_core(
    driver: Driver,
    min_size: int = 0,
    max_size: int = 4,
    *,
    check: Callable[[FakeConn], Awaitable[None]] | None = None,
    on_outage: Callable[[], Coroutine[Any, Any, None]] | None = None,
    classify: Callable[[BaseException], Fault | None] = classify,
    on_leak: Callable[[Entry[FakeConn], str], None] | None = None,
    is_listening: Callable[[FakeConn], bool] = lambda _: False,
    budget: Budget | None = None,
    last_statement: Callable[[FakeConn], str | None] = lambda _: None,
    **numbers: Any,
) -> Core[FakeConn]:
    """A pool in which nothing falls due unless the test says so."""
    rest = {"max_lifetime": LATER, "max_idle": LATER, "ping_interval": LATER} | numbers
    return Core(
        Settings("test", min_size, max_size, **rest),
        driver,
        check=check,
        on_outage=on_outage,
        classify=classify,
        on_leak=on_leak,
        is_listening=is_listening,
        budget=budget,
        last_statement=last_statement,
        random=Random(0),
    )


class Moving(Budget):
    """A budget with a limit that tests change."""

    def move(self, limit: int) -> None:
        """Set the limit."""
        self._set_limit(limit)


@contextlib.asynccontextmanager
async def running(
    driver: Driver, min_size: int = 0, max_size: int = 4, *, upkeep: bool = False, **rest: Any
) -> AsyncIterator[Core[FakeConn]]:
    """An open pool, `min_size` connections and all; closed at the end, with nothing left of it."""
    core, of_others = make_core(driver, min_size, max_size, **rest), timers()
    core.open()
    if upkeep:
        core.runtime.tasks.spawn(run_maintenance(weakref.ref(core)), "maintenance")
    await settle()
    try:
        yield core
    finally:
        await core.close(0)
    assert not core.ledger.entries
    assert driver.sockets == 0
    assert not driver.misuse
    assert len(core.runtime.tasks) == 0
    assert [each for each in timers() if each not in of_others] == []


async def use(core: Core[FakeConn], seconds: float = 0.0, timeout: float | None = None) -> float:
    """Borrow, hold and return a connection; returns the instant at which it was had."""
    conn = acquire_now(core) or await core.acquire(timeout)
    had_at = now()
    await asyncio.sleep(seconds)
    core.release(conn)
    return had_at


def join(
    line: WaitQueue[Any], now: float, deadline: float, ticket: int | None = None
) -> Waiter[Any]:
    """Let one more wait in a line, at the end or at the place of that ticket."""
    waiter: Waiter[Any] = Waiter(line.ticket() if ticket is None else ticket, now, deadline)
    line.admit(waiter)
    return waiter


async def take(core: Core[FakeConn], timeout: float | None = None) -> FakeConn:
    return acquire_now(core) or await core.acquire(timeout)


async def take_all(core: Core[FakeConn]) -> list[FakeConn]:
    return [await take(core) for _ in range(core.settings.max_size)]


def start(core: Core[FakeConn], timeout: float | None = None) -> asyncio.Task[FakeConn]:
    return asyncio.create_task(core.acquire(timeout))


async def check_alive(conn: FakeConn) -> None:
    """A check that takes no time."""
    if not conn.alive:
        raise Broken


def go_bad(conns: list[FakeConn]) -> None:
    """Break connections without notifying the pool."""
    for conn in conns:
        conn.alive = False
