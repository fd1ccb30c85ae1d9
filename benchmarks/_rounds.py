"""How it is measured: in rounds, each of which gives every pool one turn, in shuffled order.

What is compared is always of one round, so that a neighbour on the machine who slows one round down
slows all pools down. In a timed region the cyclic garbage collector is off, for all pools alike;
it has just run.
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
"""Measures one pool once: values by the key of the figure."""


class Stopwatch:
    """The seconds that a `with timed()` block took."""

    spent = 0.0
    """By the clock."""
    cpu = 0.0
    """Of this process on all cores, in its own code and in the kernel."""


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """Time a block with the garbage collector out of the way."""
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
    """One run on one event loop, and what it has found so far.

    Args:
        plan: the numbers.
        makers: the pools that are installed.
        tell: gets a line now and then, for whoever watches.
    """

    def __init__(self, plan: Plan, makers: dict[str, Maker], tell: Callable[[str], None]) -> None:
        self.plan = plan
        self.makers = makers
        self.samples: dict[str, dict[str, list[float]]] = {}
        """By figure and pool, a value a round."""
        self.notes: list[str] = []
        self._tell = tell
        self._random = Random(plan.seed)

    @asynccontextmanager
    async def opened(
        self, *, autocommit: bool = False, size: int | None = None, dsn: str | None = None
    ) -> AsyncIterator[dict[str, Subject]]:
        """Every pool, open with all its connections: as many as in most rows, or `size`."""
        setup = Setup(dsn or self.plan.dsn, size or self.plan.size, self.plan.timeout, autocommit)
        async with AsyncExitStack() as stack:
            subjects = {}
            for name, make in self.makers.items():
                subjects[name] = subject = make(setup)
                await subject.open()
                stack.push_async_callback(subject.close)
            yield subjects

    async def rounds(self, what: str, count: int, turns: dict[str, Turn]) -> None:
        """Give each its turn `count` times. One that fails is out, with a note."""
        for number in range(1, count + 1):
            self._tell(f"{self.plan.loop}: {what}, round {number} of {count}")
            for name in self._random.sample(list(turns), len(turns)):
                try:
                    values = await turns[name]()
                except Exception as error:  # noqa: BLE001 - the others' figures are worth having
                    self.notes.append(f"{name} failed at {what} on {self.plan.loop}: {error!r}")
                    del turns[name]
                    continue
                for key, value in values.items():
                    self.samples.setdefault(key, {}).setdefault(name, []).append(value)
