"""An open loop of requests on a virtual clock: what a pool answers in time under a load."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from random import Random

from asyncpool._core.pool import Core
from asyncpool.errors import PoolTimeout, TooManyRequests
from tests._tools import acquire_now
from tests.fake import FakeConn
from tests.unit._tools import now

USE = 0.02
"""The mean duration of a use in seconds."""


@dataclass
class Outcomes:
    """The ends of the requests made between two instants."""

    ends: Counter[str] = field(default_factory=Counter)
    """The number of requests by their end: "in time", "late" or the name of an error."""
    latencies: list[float] = field(default_factory=list)
    """The durations of those that were answered in time."""
    seconds: float = 0.0

    def share(self, load: float, size: int = 10) -> float:
        """The answers in time, as a share of what could have been answered."""
        return self.ends["in time"] / (self.seconds * min(load, 1.0) * size / USE)

    def quantile(self, q: float) -> float:
        """A quantile of the durations of the answers in time."""
        last = sorted(self.latencies)
        return last[min(int(len(last) * q), len(last) - 1)]


@dataclass
class Load:
    """Requests to one pool.

    Args:
        core: the pool.
        deadline: the seconds after which an answer is of no use.
        cancels: whether a request is cancelled at its deadline, which the pool cannot see; if not,
            the deadline is its `timeout`.
        limits: makes the block in which each request runs.
        use: returns the duration of a use.
    """

    core: Core[FakeConn]
    deadline: float = 1.0
    cancels: bool = False
    limits: Callable[[], AbstractContextManager[object]] = nullcontext
    use: Callable[[Random], float] = lambda random: USE * random.choice((0.7, 1.0, 1.3))
    random: Random = field(default_factory=lambda: Random(1))

    async def run(
        self, load: Callable[[float], float] | float, seconds: float, *, skip: float = 0.0
    ) -> Outcomes:
        """Make requests for some seconds, at random instants.

        Args:
            load: the rate of requests, as a multiple of what the pool can serve; or a function of
                the time since the start.
            seconds: how long.
            skip: the seconds at the start whose requests are not counted.
        """
        found, begun = Outcomes(seconds=seconds - skip), now()
        capacity = self.core.settings.max_size / USE
        async with asyncio.TaskGroup() as group:
            while (at := now() - begun) < seconds:
                times = load(at) if callable(load) else load
                group.create_task(self._request(found if at >= skip else Outcomes()))
                await asyncio.sleep(self.random.expovariate(times * capacity))
        return found

    async def _request(self, found: Outcomes) -> None:
        begun = now()
        try:
            async with asyncio.timeout(self.deadline if self.cancels else None):
                with self.limits():
                    await self._work()
        except (PoolTimeout, TooManyRequests, TimeoutError) as error:
            found.ends[type(error).__name__] += 1
            return
        took = now() - begun
        found.ends["in time" if took <= self.deadline else "late"] += 1
        if took <= self.deadline:
            found.latencies.append(took)

    async def _work(self) -> None:
        timeout = None if self.cancels else self.deadline
        conn = acquire_now(self.core) or await self.core.acquire(timeout)
        conn.clean = False
        try:
            await asyncio.sleep(self.use(self.random))
            conn.clean = True
        finally:
            self.core.release(conn)
