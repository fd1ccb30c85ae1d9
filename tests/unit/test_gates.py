"""Every call of the pool's, whatever the driver does, and cancelled at every instant.

Each method of the driver, and the check, is good, fails, is slow or hangs; crossed with each public
call and with a cancellation of it: none, before it starts, during, in the tick in which what it
waits for ends, and twice. Then all gates open, and the pool must be whole, lend, and close.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from asyncpool._core.maintenance import make_round
from asyncpool._core.pool import Core
from asyncpool._diagnostics.snapshot import snapshot
from asyncpool.errors import PoolClosed, PoolTimeout
from tests._tools import few
from tests.fake import Broken, FakeConn
from tests.sim.loop import VirtualLoop
from tests.unit._tools import Driver, make_core

Call = Callable[[Core[FakeConn], FakeConn], Awaitable[object]]

METHODS = ("open", "close", "ping", "reset", "check")
GATES = ("ok", "error", "slow", "never")
CANCELLATIONS = ("none", "before", "during", "same tick", "twice")
SLOW = 0.5


class Gates(Driver):
    """A driver each of whose methods has a gate; when `opened` they are all good."""

    def __init__(self, **gates: str) -> None:
        super().__init__(**{name: self.gate(name) for name in METHODS})
        self.gates = dict.fromkeys(METHODS, "ok") | gates
        self.aim = next(iter(gates))
        self.opened = False
        self.at_end: Callable[[], object] = lambda: None
        """Called in the tick in which a call of the method aimed at ends."""

    def gate(self, name: str) -> Callable[[], Awaitable[None]]:
        """Return what a method does."""

        async def pass_through() -> None:
            gate = "ok" if self.opened else self.gates[name]
            if gate == "never":
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(SLOW if gate == "slow" else 0)
            if name == self.aim:
                self.at_end()
            if gate == "error":
                raise Broken

        return pass_through

    async def check(self, conn: FakeConn) -> None:
        """The user's own check."""
        await self.call("check", conn)


async def _acquire(core: Core[FakeConn], _: FakeConn) -> None:
    core.release(await core.acquire(1.0))


async def _acquire_at_once(core: Core[FakeConn], _: FakeConn) -> None:
    core.release(await core.acquire(0))


async def _acquire_two(core: Core[FakeConn], _: FakeConn) -> None:
    one = await core.acquire(1.0)
    try:
        core.release(await core.acquire(1.0))  # none is idle: it has to be opened
    finally:
        core.release(one)


async def _release(core: Core[FakeConn], lent: FakeConn) -> None:
    core.release(lent)


async def _release_unclean(core: Core[FakeConn], lent: FakeConn) -> None:
    lent.clean = False
    core.release(lent)
    await asyncio.sleep(0)


async def _resize(core: Core[FakeConn], _: FakeConn) -> None:
    core.resize(1, 1)
    await asyncio.sleep(0)
    core.resize(2, 3)


async def _drain(core: Core[FakeConn], _: FakeConn) -> None:
    core.drain()
    await asyncio.sleep(0)


async def _round(core: Core[FakeConn], _: FakeConn) -> None:
    for entry in core.ledger.idle:
        entry.used_at = entry.healthy_at = -1e9
    await make_round(core)


async def _ping(core: Core[FakeConn], _: FakeConn) -> None:
    if core.ledger.idle:
        await core.store.ping(core.ledger.idle[-1])


async def _close(core: Core[FakeConn], _: FakeConn) -> None:
    await core.close(1.0)


CALLS: list[Call] = [
    _acquire,
    _acquire_at_once,
    _acquire_two,
    _release,
    _release_unclean,
    _resize,
    _drain,
    _round,
    _ping,
    _close,
]


async def live(driver: Gates, call: Call, cancellation: str, *, scoped: bool) -> None:
    """Make the call, cancel it, open all gates: the pool is whole, or closed, with nothing left."""
    driver.opened = True
    core = make_core(driver, 2, 3, check=driver.check, clean_timeout=2.0, ping_timeout=2.0)
    core.open()
    await asyncio.sleep(0.01)
    lent = await core.acquire(None)
    driver.opened = False

    scope = anyio.CancelScope()
    raised: list[BaseException] = []

    async def run() -> None:
        with scope if scoped else contextlib.nullcontext():
            try:
                await call(core, lent)
            except BaseException as error:
                raised.append(error)
                raise

    task = asyncio.create_task(run())
    cancel: Callable[[], Any] = scope.cancel if scoped else task.cancel
    struck = await strike(driver, task, cancel, cancellation)
    await asyncio.wait([task], timeout=20.0)
    assert task.done(), "the call has no end"
    if call is _close and scoped:
        assert cancellation == "before" or not core.ledger.entries, "a scope has ended the close"
    elif struck:
        assert raised, "the cancellation was swallowed"
        assert isinstance(raised[0], asyncio.CancelledError)
    elif not task.cancelled() and (error := task.exception()) is not None:
        assert isinstance(error, PoolTimeout | PoolClosed), repr(error)

    driver.opened = True
    if lent in core.ledger.leased:
        core.release(lent)
    if not core.closed:
        await be_whole(core)
    await core.close(1.0)
    assert not core.ledger.entries
    assert driver.sockets == 0
    assert len(core.runtime.tasks) == 0


async def strike(driver: Gates, task: asyncio.Task[None], cancel: Any, when: str) -> bool:
    """Cancel it at that instant; whether it was still to hear of it."""
    if when == "none":
        return False
    if when == "same tick":
        struck: list[bool] = []

        def cancel_once() -> None:
            driver.at_end = lambda: None
            # A scope tries again later where the task is about to run: it may be over by then.
            own = asyncio.current_task() is task
            struck.append(cancel() is True and not own)

        driver.at_end = cancel_once
        await asyncio.wait([task], timeout=20.0)
        driver.at_end = lambda: None
        return struck == [True]
    if when != "before":
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    unheard = not task.done()
    cancel()
    if when == "twice":
        await asyncio.sleep(0)
        cancel()
    return unheard and when != "before"


async def be_whole(core: Core[FakeConn]) -> None:
    """Wait until the pool has given up hanging calls and has its connections again."""
    await asyncio.sleep(100.0)
    ledger = core.ledger
    assert not ledger.leased
    assert ledger.queue.length == 0
    assert len(ledger.idle) + ledger.opening == ledger.size
    stats = snapshot(core)
    assert stats.requests == ledger.leases + stats.requests_failed + stats.requests_cancelled
    core.release(await core.acquire(5.0))


@pytest.mark.parametrize("scoped", few([False, True]), ids=["task", "scope"])
@pytest.mark.parametrize("cancellation", CANCELLATIONS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__.strip("_"))
def test_whatever_the_driver_does_nothing_is_lost(
    call: Call, cancellation: str, scoped: bool
) -> None:
    """Each method with each gate; without a scope, also all pairs of which neither is good."""
    singles = [{name: gate} for name in METHODS for gate in GATES]
    pairs = [
        {first: gate, second: other}
        for first, second in itertools.combinations(METHODS, 2)
        for gate, other in itertools.product(GATES[1:], repeat=2)
    ]
    for gates in singles if scoped else singles + pairs:
        loop = VirtualLoop()
        try:
            loop.finish(live(Gates(**gates), call, cancellation, scoped=scoped))
        except BaseException as error:
            error.add_note(f"with {gates}")
            raise
        assert not loop.complaints
