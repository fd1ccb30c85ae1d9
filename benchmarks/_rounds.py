"""The measurement: rounds, each of which gives every pool one turn, in shuffled order.

Values are compared within a round only, so that other load on the machine that slows one round
slows all pools. The cyclic garbage collector runs before a timed region and is off inside it, for
all pools.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from random import Random
from time import perf_counter, process_time

from benchmarks._plan import Plan
from benchmarks._pools import Maker, Setup, Subject

Turn = Callable[[], Awaitable[dict[str, float]]]
"""A function that measures one pool once, and returns values by the figure's key."""


class Stopwatch:
    """The seconds that a `with timed()` block took."""

    spent = 0.0
    """Wall-clock seconds."""
    cpu = 0.0
    """CPU seconds of this process on all cores, in user and kernel mode."""


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """Time a block with the garbage collector off."""
    watch = Stopwatch()
    gc.collect()
    gc.disable()
    start, cpu = perf_counter(), process_time()
    try:
        yield watch
        watch.spent, watch.cpu = perf_counter() - start, process_time() - cpu
    finally:
        gc.enable()


class Bench:
    """One run on one event loop, with its results so far.

    Args:
        plan: the plan of the run.
        makers: the makers of the installed pools.
        report: a function that shows a line of progress.
    """

    def __init__(self, plan: Plan, makers: dict[str, Maker], report: Callable[[str], None]) -> None:
        self.plan = plan
        self.makers = makers
        self.samples: dict[str, dict[str, list[float]]] = {}
        """The value of each round, by figure and pool."""
        self.notes: list[str] = []
        self._report = report
        self._random = Random(plan.seed)

    @asynccontextmanager
    async def opened(
        self, *, autocommit: bool = False, size: int | None = None, dsn: str | None = None
    ) -> AsyncIterator[dict[str, Subject]]:
        """Open every pool with `size` connections; None: the plan's size."""
        setup = Setup(dsn or self.plan.dsn, size or self.plan.size, self.plan.timeout, autocommit)
        async with AsyncExitStack() as stack:
            subjects = {}
            for name, make in self.makers.items():
                subjects[name] = subject = make(setup)
                await subject.open()
                stack.push_async_callback(subject.close)
            yield subjects

    async def rounds(self, what: str, count: int, turns: dict[str, Turn]) -> None:
        """Run each turn `count` times. A turn that fails is dropped, with a note."""
        for number in range(1, count + 1):
            self._report(f"{self.plan.loop}: {what}, round {number} of {count}")
            for name in self._random.sample(list(turns), len(turns)):
                try:
                    values = await turns[name]()
                except Exception as error:  # noqa: BLE001 - the other pools go on
                    self.notes.append(f"{name} failed at {what} on {self.plan.loop}: {error!r}")
                    del turns[name]
                    continue
                for key, value in values.items():
                    self.samples.setdefault(key, {}).setdefault(name, []).append(value)
