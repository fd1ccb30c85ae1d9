"""The users of simulated pools: they acquire, use and release connections, and are cancelled.

A cancellation comes from asyncio, from an anyio scope, or from both; at any await, once or more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from asyncio import Task
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import anyio

from asyncpool import within
from tests.fake import FakeConn
from tests.sim.laws import REFUSALS, Laws
from tests.sim.schedule import SeededLoop, Strike


class Users:
    """All users of the pools of one world.

    Args:
        loop: the event loop.
        random: the source of all choices.
        pools: the pools.
    """

    def __init__(self, loop: SeededLoop, random: Random, pools: list[Laws]) -> None:
        self.loop = loop
        self.random = random
        self.pools = pools
        self.present: dict[Task[None], None] = {}
        self.errors: list[BaseException] = []
        self.has_limits = Random(f"limits, {random.getstate()[1][:2]}").random() < 0.4
        """Whether the users of this world have deadlines, priorities and flows."""
        self.forgot = False
        """Whether a user has come that releases nothing."""

    def come(self, *, forgetful: bool = False) -> None:
        """Start a user; it may be cancelled at one of its first awaits."""
        random = self.random
        if forgetful:
            self.forgot = True
            self._enter(self.loop.create_task(self._forget(random.choice(self.pools))))
            return
        plan = random.random()
        scope = anyio.CancelScope() if 0.15 < plan < 0.4 else None
        task: Task[None] = self.loop.create_task(self._live(scope))
        if not self._enter(task):
            return
        if plan < 0.15:
            self.loop.plan(task, random_strike(random, task.cancel, at_each=True))
        elif scope is not None:
            # A cancelled scope cancels at each await by itself.
            self.loop.plan(task, random_strike(random, scope.cancel))

    def _enter(self, task: Task[None]) -> bool:
        if task.done():
            self._left(task)
            return False
        self.present[task] = None
        task.add_done_callback(self._left)
        return True

    async def gone(self) -> None:
        """Wait until all users have ended; none may stay for ever."""
        async with asyncio.timeout(500):
            while self.present:
                await asyncio.wait(self.present)

    def cancel_some(self) -> None:
        """Cancel some users at once, and some of them again a moment later."""
        random = self.random
        for task in random.sample(list(self.present), random.randrange(1, len(self.present) + 1)):
            task.cancel()
            if random.random() < 0.3:
                self.loop.call_soon(lambda task=task: task.cancel())

    def strike_at_hand_over(self, task: Task[Any]) -> None:
        """Sometimes cancel a task just before or just after it is notified."""
        if self.random.random() < 0.1 and task in self.present:
            task.cancel()

    def _left(self, task: Task[None]) -> None:
        self.present.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    async def _live(self, scope: anyio.CancelScope | None) -> None:
        if not self.has_limits:
            await self._ask(scope)
            return
        random = self.random
        seconds = random.choice([None, None, None, 0, 0.2, 3.0])
        flow, priority = random.choice([None, "a", "b", "c"]), random.choice([None, None, 1, -1])
        with within(seconds, flow=flow, priority=priority):
            await self._ask(scope)

    async def _ask(self, scope: anyio.CancelScope | None) -> None:
        random = self.random
        pools = random.sample(self.pools, min(len(self.pools), random.choice([1, 1, 2])))
        if random.random() < 0.15:
            pools = pools * 2  # two connections of one pool, which may be one too many
        if scope is None:
            patience = random.choice([math.inf] * 5 + [0, 0.01, 1.0])
            if patience == math.inf or random.random() < 0.3:
                # A single cancellation, which becomes a TimeoutError.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if patience == math.inf else patience):
                        await self._borrow(pools)
                return
            scope = anyio.move_on_after(patience)
        kind = random.randrange(5)
        if kind == 0:
            with scope, anyio.CancelScope():
                await self._borrow(pools)
        elif kind == 1:
            with scope, anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await self._borrow(pools)
        else:
            with scope:
                await self._borrow(pools)

    async def _borrow(self, pools: list[Laws]) -> None:
        """Hold one connection of each pool at the same time; a pool error ends it."""
        with contextlib.suppress(*REFUSALS):
            async with contextlib.AsyncExitStack() as stack:
                for laws in pools:
                    conn = await stack.enter_async_context(self._lent(laws))
                    await self._use(conn)

    async def _forget(self, laws: Laws) -> None:
        """Acquire a connection and never release it."""
        with contextlib.suppress(*REFUSALS):
            conn = await laws.borrow(None)
            try:
                await self._use(conn)
            except BaseException:
                laws.give_back(conn)
                raise
            conn.leased = False

    @contextlib.asynccontextmanager
    async def _lent(self, laws: Laws) -> AsyncIterator[FakeConn]:
        conn = await laws.borrow(self.random.choice([None, None, 0, 0.3, 2.0]))
        if laws.core.lease_of(conn) is not None:  # `close` may have taken it before this task ran
            laws.core.bind(conn)
        try:
            yield conn
        finally:
            laws.give_back(conn)

    async def _use(self, conn: FakeConn) -> None:
        random = self.random
        for _ in range(random.randrange(4)):
            await asyncio.sleep(random.choice([0, 0, 0.01, 0.5]))
        conn.clean = random.random() < 0.6
        await asyncio.sleep(0)
        if random.random() < 0.1:
            conn.alive = False


def random_strike(random: Random, cancel: Any, *, at_each: bool = False) -> Strike:
    """Return a cancellation at one of the first awaits: once, twice, or at each one from there."""
    return Strike(
        random.choice([1, 1, 2, 2, 3, 4, 6]),
        cancel,
        waking=random.random() < 0.5,
        again=random.choice([0, 0, 1, -1]) if at_each else 0,
    )
