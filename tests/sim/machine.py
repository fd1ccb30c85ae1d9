"""The real core as a state machine for Hypothesis, on a driver whose calls wait for a cue.

A `World` draws everything at random. Here each rule is a single event, so that a failure is shrunk
to a short script. The steps are kept in `script`; a script worth keeping is copied to
`test_machine.py`, since each rule can be called directly.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Task
from collections.abc import Callable
from functools import partial
from random import Random
from typing import ClassVar

import anyio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asyncpool._core.entry import State
from asyncpool._core.maintenance import make_round
from asyncpool._core.pool import Core
from asyncpool._core.settings import Settings
from tests.fake import Broken, FakeConn, FakeDriver
from tests.sim.laws import REFUSALS, LawBroken, Laws
from tests.sim.loop import VirtualLoop

OUTCOMES = ("ok", "error", "die")
INDEX = st.integers(0, 3)


class CuedDriver(FakeDriver):
    """A driver whose calls hang until they get a cue to end."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Future[str], FakeConn | None]] = []
        self.at_once = False
        """Whether every call succeeds without a cue now."""

    async def call(self, name: str, conn: FakeConn | None) -> None:
        """Wait for the cue."""
        if self.at_once:
            return
        call = (asyncio.get_running_loop().create_future(), conn)
        self.calls.append(call)
        try:
            outcome = await call[0]
        finally:
            self.calls.remove(call)
        if outcome == "die" and conn is not None:
            conn.die()
        if outcome != "ok":
            raise Broken

    async def check(self, conn: FakeConn) -> None:
        """The user's own check."""
        await self.call("check", conn)


class Machine(RuleBasedStateMachine):
    """A pool, its users and its server; the laws are checked after each rule."""

    script: ClassVar[list[str]] = []
    """The steps of the last run; after a failure, those of the shortest failing run."""

    def __init__(self) -> None:
        super().__init__()
        Machine.script.clear()
        self.loop = VirtualLoop()
        self.driver = CuedDriver()
        self.requests: list[tuple[Task[None], list[anyio.CancelScope]]] = []
        self.leased: list[FakeConn] = []
        self.broken = ""
        self.found(1, 1)

    def found(self, min_size: int, max_size: int, *, check: bool = False) -> None:
        """Create and open a pool."""
        numbers = Settings("machine", min_size, max_size, timeout=20.0, max_waiting=4)
        self.core: Core[FakeConn] = Core(
            numbers,
            self.driver,
            check=self.driver.check if check else None,
            random=Random(0),
        )
        self.laws = Laws(self.loop, self.core, self.driver, self._break)

    @initialize(min_size=st.integers(0, 2), more=st.integers(0, 2), check=st.booleans())
    def open(self, min_size: int, more: int, check: bool) -> None:
        """Open the pool, as the first step."""
        self._note(f"open({min_size}, {more}, {check})")
        self.found(min_size, max(1, min_size + more), check=check)
        self._do(self.core.open)

    @rule(timeout=st.sampled_from([None, None, 0, 2.0]), count=st.sampled_from([1, 1, 3]))
    def request(self, timeout: float | None, count: int) -> None:
        """Start one or more requests."""
        self._note(f"request({timeout}, {count})")
        with self.loop.at_work():
            for _ in range(count):
                scopes: list[anyio.CancelScope] = []  # anyio makes a scope in a task only
                task = self.loop.create_task(self._borrow(scopes, timeout))
                self.requests.append((task, scopes))
        self._settle()

    @precondition(lambda self: self.requests)
    @rule(index=INDEX, how=st.sampled_from(["once", "twice", "scope"]))
    def cancel(self, index: int, how: str) -> None:
        """Cancel one of the requests, and run the loop."""
        self._note(f"cancel({index}, {how!r})")
        self._cancel(index, how)
        self._settle()

    @precondition(lambda self: self.leased)
    @rule(index=INDEX, clean=st.booleans(), cancel=st.sampled_from(["", "once", "scope"]))
    def release(self, index: int, clean: bool, cancel: str) -> None:
        """Release a connection; the first request may be cancelled in the same tick."""
        self._note(f"release({index}, {clean}, {cancel!r})")
        conn = self.leased.pop(index % len(self.leased))
        conn.clean = clean
        with self.loop.at_work():
            self.laws.give_back(conn)
        if cancel and self.requests:
            self._cancel(0, cancel)
        self._settle()

    @precondition(lambda self: self.driver.calls)
    @rule(index=INDEX, outcome=st.sampled_from(OUTCOMES), cancel=st.booleans())
    def end_call(self, index: int, outcome: str, cancel: bool) -> None:
        """End a call of the driver; a request may be cancelled in the same tick."""
        self._note(f"end_call({index}, {outcome!r}, {cancel})")
        calls = self.driver.calls
        calls[index % len(calls)][0].set_result(outcome)
        if cancel and self.requests:
            self._cancel(0, "once")
        self._settle()

    @precondition(lambda self: self.driver.calls)
    @rule()
    def answer_all(self) -> None:
        """Let every call under way succeed, and those that follow from it."""
        self._note("answer_all()")
        while self.driver.calls:
            for call, _ in list(self.driver.calls):
                call.set_result("ok")
            self._settle()

    @precondition(lambda self: self.core.runtime.tasks.running("connect"))
    @rule()
    def cancel_connects(self) -> None:
        """Somebody cancels the pool's connects."""
        self._note("cancel_connects()")
        connects = self.core.runtime.tasks.running("connect")
        for task in sorted(connects, key=lambda task: task.get_name()):
            task.cancel()
        self._settle()

    @rule(index=INDEX)
    def lose(self, index: int) -> None:
        """Lose a connection."""
        entries = [each for each in self.core.ledger.entries if each.state is not State.OPENING]
        if entries:
            self._note(f"lose({index})")
            entries.sort(key=lambda entry: entry.conn.number)
            self._do(entries[index % len(entries)].conn.die)

    @rule(seconds=st.sampled_from([0.5, 3.0, 30.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._note(f"wait({seconds})")
        with self.loop.at_work():
            self.loop.advance(seconds)
        self._settle()

    @rule(min_size=st.integers(0, 2), more=st.integers(0, 2))
    def resize(self, min_size: int, more: int) -> None:
        """Resize the pool."""
        if not self.core.closed:
            self._note(f"resize({min_size}, {more})")
            max_size = max(1, min_size + more)
            self._do(partial(self.laws.resize, min_size, max_size))

    @rule()
    def drain(self) -> None:
        """Drain the pool."""
        self._note("drain()")
        self._do(self.core.drain)

    @rule()
    def make_round(self) -> None:
        """Run a round of maintenance."""
        if not self.core.closed:
            self._note("make_round()")
            self._do(lambda: self.core.runtime.tasks.spawn(make_round(self.core), "round"))

    @rule(timeout=st.sampled_from([0.0, 5.0]), cancelled=st.booleans())
    def close(self, timeout: float, cancelled: bool) -> None:
        """Begin to close the pool; the caller may be cancelled."""
        self._note(f"close({timeout}, {cancelled})")
        with self.loop.at_work():
            task = self.loop.create_task(self.core.close(timeout))
            self.loop.settle()
            if cancelled:
                task.cancel()
        self._settle()

    @invariant()
    def check_laws(self) -> None:
        """Check the laws between two turns."""
        if self.broken or self.loop.complaints:
            self._break(self.broken or self.loop.complaints[0])
        self.laws.check()

    def teardown(self) -> None:
        """From any state, with a working server: the pool must recover, lease and close."""
        self.loop.finish(self._end())

    async def _end(self) -> None:
        core, laws = self.core, self.laws
        self.driver.at_once = True
        for call, _ in list(self.driver.calls):
            if not call.done():
                call.set_result("ok")
        for _ in range(100):
            if not self.requests and not self.leased:
                break
            for conn in self.leased:
                laws.give_back(conn)
            self.leased.clear()
            await asyncio.sleep(1.0)
        laws.require(not self.requests, "somebody waits for ever")
        if core.usable:
            await asyncio.sleep(60.0)
            laws.check_at_rest()
            try:
                laws.give_back(await laws.borrow(5.0))
            except REFUSALS as error:
                self._break(f"it leases no connection: {error!r}")
        await core.close(0)
        laws.check_at_end()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        laws.require(not tasks, f"tasks after close: {tasks}")
        timers = [each for each in self.loop._scheduled if not each.cancelled()]
        laws.require(not timers, f"timers after close: {timers}")

    async def _borrow(self, scopes: list[anyio.CancelScope], timeout: float | None) -> None:
        try:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                self.leased.append(await self.laws.borrow(timeout))
        except REFUSALS:
            pass
        finally:
            self.requests = [each for each in self.requests if each[1] is not scopes]

    def _cancel(self, index: int, how: str) -> None:
        task, (scope,) = self.requests[index % len(self.requests)]
        with self.loop.at_work():
            if how == "scope":
                scope.cancel()
            else:
                task.cancel()
                if how == "twice":
                    self.loop.call_soon(lambda: task.cancel())  # noqa: PLW0108 - a bound method would count as a step

    def _do(self, deed: Callable[[], object]) -> None:
        with self.loop.at_work():
            deed()
        self._settle()

    def _settle(self) -> None:
        with self.loop.at_work():
            while self.loop._ready:
                self.loop.turn()
                self.check_laws()

    def _note(self, step: str) -> None:
        Machine.script.append(step)

    def _break(self, what: str) -> None:
        # An exception in a task would stay there, so each turn checks this attribute.
        self.broken = self.broken or what
        raise LawBroken(what)


def search_for(examples: int, *, derandomize: bool = False, steps: int = 25) -> None:
    """Search for a script that breaks a law; raise an error with the shortest one.

    Args:
        examples: the number of scripts to try.
        derandomize: whether to try the same scripts each time.
        steps: the largest number of steps of a script.
    """
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            report_multiple_bugs=False,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
