"""The soak: hours of mixed load and random faults, after which nothing may have grown.

python -m tests.postgres.soak --minutes 60
python -m tests.postgres.soak --minutes 60 --seed 1234

Every phase does each fault to the server while the load goes on, then stops it, compares the books
with the table, and counts memory, descriptors, tasks and timers. The first is a warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import linecache
import logging
import math
import os
import pathlib
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool
from asyncpool.testing import Server, postgres

from ._mixed import Books, Load
from ._notified import listening
from ._tools import at_rest, linux

TASKS = 16
TOLERANCE = 256 * 1024
"""Bytes of Python's that a phase may end with more than the first one after the warm-up: a hundred
for each of its requests would be several times that, and so would a few thousand for each fault."""
SIZE, SMALL = 4, 2
"""Connections of the two pools when it is counted."""
PATIENCE = 60.0
"""Seconds that a verdict of failure takes; of success none does."""


@dataclass(frozen=True, slots=True)
class Count:
    """The resources in use at the end of a phase, with the load stopped."""

    memory: int
    resident: int
    descriptors: int
    tasks: int
    timers: int
    backends: int

    @property
    def flat(self) -> tuple[int, int, int, int]:
        """The counts that must not grow."""
        return self.descriptors, self.tasks, self.timers, self.backends


class Soak:
    """One run.

    Args:
        server: one that may be stopped and killed.
        seed: all chance comes from it.
        tell: where a line goes for each phase.
    """

    def __init__(self, server: Server, seed: int, tell: Callable[[str], None] = print) -> None:
        self.server = server
        self.seed = seed
        self.books = Books()
        self.faults: Counter[str] = Counter()
        self.counts: list[Count] = []
        self.notified = self.gaps = 0
        """What the listener of each phase got."""
        self._tell = tell
        self._name = f"soak-{os.getpid()}-{seed}"
        self._dsn = make_conninfo(server.dsn, application_name=self._name)

    async def run(self, go_on: Callable[[int], bool]) -> None:
        """Go from phase to phase as long as `go_on(number)` says so; then look at the end."""
        crashes = Crashes(self.books)
        loggers = [logging.getLogger(name) for name in ("asyncpool", "asyncio", "psycopg")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(crashes)
            logger.setLevel(logging.ERROR)  # whoever keeps the rest would seem to be a leak
        await self._ask("DROP TABLE IF EXISTS soak")
        await self._ask("CREATE TABLE soak (number bigint)")
        empty = self._measure(0)
        try:
            async with self._pool(SIZE, name="main") as pool, self._small() as small:
                load = Load(pool, small, self.books)
                tracemalloc.start()
                try:
                    start = await self._count(pool, small, None)
                    for number in count():
                        if not go_on(number):
                            break
                        await self._phase(load, number)
                        self.counts.append(await self._count(pool, small, start))
                        self._report(number)
                finally:
                    tracemalloc.stop()
            await self._ask("DROP TABLE soak")
            await self._settle(empty.flat, lambda: self._measure(0).flat, "after close")
            await self._settle(0, self._backends, "backends after close")
            self._judge()
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(crashes)
                logger.setLevel(level)

    def _pool(self, size: int, **options: Any) -> AsyncConnectionPool[Any]:
        return AsyncConnectionPool(
            self._dsn, min_size=size, timeout=5, ping_interval=1, max_lifetime=20, **options
        )

    def _small(self) -> AsyncConnectionPool[Any]:
        check = AsyncConnectionPool.check_connection
        return self._pool(SMALL, name="small", reset="session", check=check, pipeline=False)

    async def _phase(self, load: Load, number: int) -> None:
        load.stopped = False
        tasks = [
            asyncio.create_task(load.work(Random(f"{self.seed} {number} {each}")))
            for each in range(TASKS)
        ]
        random = Random(f"{self.seed} {number}")
        faults: list[Callable[[Random], Awaitable[None]]] = [
            *(self.one_backend, self.all_backends, self.all_backends, self.pause),
            *(self.restart, self.abort, self.kill),
        ]
        random.shuffle(faults)
        async with listening(load.pool, f"phase {number}", self.books.surprises) as journal:
            for fault in faults:
                await asyncio.sleep(random.uniform(0.2, 0.8))
                await fault(random)
                self.faults[fault.__name__] += 1
            await asyncio.sleep(random.uniform(0.2, 0.8))
            load.stopped = True
            await asyncio.gather(*tasks)
        self.notified += len(journal.delivered) - journal.delivered.count(None)
        self.gaps += journal.delivered.count(None)

    async def one_backend(self, random: Random) -> None:
        """pg_terminate_backend of one."""
        pids = await self._pids()
        if pids:
            await self._ask("SELECT pg_terminate_backend(%s)", random.choice(sorted(pids)))

    async def all_backends(self, random: Random) -> None:
        """Terminate all backends."""
        for pid in await self._pids():
            await self._ask("SELECT pg_terminate_backend(%s)", pid)

    async def pause(self, random: Random) -> None:
        """A second in which nothing answers."""
        await self.server.pause()
        try:
            await asyncio.sleep(1)
        finally:
            await self.server.resume()

    async def restart(self, random: Random) -> None:
        """Restart the server, as an administrator does."""
        await self.server.restart("fast")

    async def abort(self, random: Random) -> None:
        """In a hurry, with some time until it is back."""
        await self.server.stop("immediate")
        await asyncio.sleep(random.uniform(0, 0.5))
        await self.server.start()

    async def kill(self, random: Random) -> None:
        """Kill the server, as `kill -9` does."""
        await self.server.kill()
        await self.server.start()

    async def _count(
        self, pool: AsyncConnectionPool[Any], small: AsyncConnectionPool[Any], start: Count | None
    ) -> Count:
        """The figures at rest, once they are as at the start or will not be."""
        await pool.resize(SIZE, SIZE)
        await at_rest(pool)
        await at_rest(small)
        table = await self._ask("SELECT number FROM soak")
        self.books.compare(Counter(number for (number,) in table))
        del table
        await self._ask("TRUNCATE soak")
        # A line keeps its timer until that has rung, be there still somebody in it or not.
        deadline = time.monotonic() + PATIENCE
        while True:
            backends = await self._backends()
            linecache.clearcache()  # the source of modules that were in a traceback
            gc.collect()
            now = self._measure(backends)
            # A pool's timer for late connects is set until a second after the last connect.
            rested = all(each._core.store.late.at == math.inf for each in (pool, small))
            if rested and (start is None or now.flat == start.flat):
                return replace(now, memory=_memory())
            if time.monotonic() > deadline:
                self.books.surprises.append(f"not as at the start, {start}: {now}")
                return now
            await asyncio.sleep(0.05)

    async def _settle(self, right: Any, fact: Callable[[], Any], when: str) -> None:
        """Give what is on its way the time that it takes to end."""
        now: Any = None
        deadline = time.monotonic() + PATIENCE
        while (now := await self._value(fact)) != right:
            if time.monotonic() > deadline:
                self.books.surprises.append(f"{when}: {now}, and not {right}")
                return
            gc.collect()
            await asyncio.sleep(0.05)

    @staticmethod
    async def _value(fact: Callable[[], Any]) -> Any:
        value = fact()
        return await value if asyncio.iscoroutine(value) else value

    def _measure(self, backends: int) -> Count:
        loop: Any = asyncio.get_running_loop()
        return Count(
            memory=0,
            resident=_resident(),
            # Their number only: pathlib keeps each name for good, such as that of a socket.
            descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()) if linux else 0,
            tasks=len(asyncio.all_tasks()),
            timers=sum(not timer.cancelled() for timer in loop._scheduled),
            backends=backends,
        )

    def _report(self, number: int) -> None:
        now, books = self.counts[-1], self.books
        total = sum(books.outcomes.values())
        self._tell(
            f"phase {number}: {total} requests, {books.outcomes['ok']} ok,"
            f" {self.notified} notifications, {self.gaps} gaps,"
            f" {sum(self.faults.values())} faults, memory {now.memory / 1024:.0f} KiB,"
            f" resident {now.resident / 1024:.0f} KiB, descriptors {now.descriptors},"
            f" tasks {now.tasks}, timers {now.timers}, backends {now.backends},"
            f" surprises {len(books.surprises)}"
        )

    def _judge(self) -> None:
        # The least of the last three: what is released a moment later is no leak.
        first, *later = self.counts[1:]
        grown = min(each.memory for each in later[-3:]) - first.memory
        if grown > TOLERANCE:
            self.books.surprises.append(f"{grown} bytes more than after the first phase")

    async def _pids(self) -> set[int]:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        return {pid for (pid,) in await self._ask(query, self._name)}

    async def _backends(self) -> int:
        return len(await self._pids())

    async def _ask(self, query: str, *params: object) -> list[Any]:
        """By a session beside the pools."""
        dsn = make_conninfo(self.server.dsn, application_name="soak observer")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            cur = await conn.execute(query.encode(), params or None)
            return await cur.fetchall() if cur.description else []


class Crashes(logging.Handler):
    """Collect the errors that are logged; none is expected."""

    def __init__(self, books: Books) -> None:
        super().__init__(logging.ERROR)
        self._books = books

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        text = logging.Formatter().format(record)
        self._books.surprises.append(f"{record.name}: {text}")


def _memory() -> int:
    """Bytes of Python's that are in use, but for what counting and stopping servers has taken.

    Python 3.12 keeps each part of a path for good: the server is stopped by a look through /proc.
    """
    others = [tracemalloc.Filter(False, str(module.__file__)) for module in (pathlib, tracemalloc)]
    taken = tracemalloc.take_snapshot().filter_traces(others)
    return sum(trace.size for trace in taken.traces)


def _resident() -> int:
    """Bytes that the process has in memory, for the report."""
    if not linux:
        return 0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


async def soak(minutes: float, seed: int) -> int:
    """The command."""
    print(f"seed {seed}", flush=True)
    deadline = time.monotonic() + 60 * minutes
    async with postgres() as server:
        run = Soak(server, seed, lambda line: print(line, flush=True))
        await run.run(lambda number: number < 3 or time.monotonic() < deadline)
    print(f"faults: {dict(run.faults)}")
    print(f"outcomes: {dict(run.books.outcomes.most_common())}")
    print(*run.books.oddities, *run.books.surprises, sep="\n")
    print(f"seed {seed}: {len(run.books.surprises)} surprises")
    return 1 if run.books.surprises else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.postgres.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long it goes on")
    parser.add_argument("--seed", type=int, help="that of an earlier run; else a new one")
    options = parser.parse_args()
    seed = Random().randrange(10**6) if options.seed is None else options.seed
    return asyncio.run(soak(options.minutes, seed))


if __name__ == "__main__":
    sys.exit(main())
