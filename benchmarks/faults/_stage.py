"""A stage for one pool and one fault: its server, its worker, and what is seen of both."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from asyncpool.testing import Server
from benchmarks._plan import ROOT
from benchmarks.faults._cast import PASSWORD

Window = tuple[float, float]

SAMPLE = 0.03
"""Seconds between two looks at the server's list of sessions."""
PATIENCE = 5.0
"""Seconds that backends have to end in after the pool is closed."""


class Hung(Exception):
    """The worker did not answer in time, or has died."""


class NotHere(Exception):
    """This machine does not let us; the message says what is missing."""


@dataclass
class Seen:
    """What a cell has shown; instants are `time.monotonic()`."""

    strikes: list[Window] = field(default_factory=list)
    """While connections were broken: what had one then may fail."""
    outages: list[Window] = field(default_factory=list)
    """While nobody could be served: what waits only within one may fail."""
    errors: list[Window] = field(default_factory=list)
    """While the server turned everybody away on purpose: what was due in one may fail."""
    back: float = 0.0
    """When the fault was over."""
    samples: list[tuple[float, int]] = field(default_factory=list)
    """How many sessions the pool had."""
    attempts: int | None = None
    """Connections that were begun during the fault, where that is counted."""
    left: int = 0
    ledger: list[int] = field(default_factory=list)
    finished: dict[str, Any] = field(default_factory=dict)


class Stage:
    """What a scene plays on.

    Args:
        server: a server of the cell's own.
        pool: the name of the pool.
        quick: whether long faults are short.
    """

    size = 4
    rate = 100.0
    lead = 1.0
    """Seconds of load before the fault, and half of those after it."""

    def __init__(self, server: Server, pool: str, *, quick: bool) -> None:
        self.server = server
        self.seen = Seen()
        self.quick = quick
        self.application = f"faults-{pool}"
        self.dsn = make_conninfo(
            server.dsn,
            user="app",
            password=PASSWORD,
            dbname="app",
            application_name=self.application,
        )
        self.watched = make_conninfo(server.dsn, application_name="faults-observer")
        self.count: Callable[[], Awaitable[int]] = self._count
        if quick:
            self.lead = 0.3
        self.limit = 0.0
        self._pool = pool
        self._worker: asyncio.subprocess.Process | None = None
        self._sight = asyncio.Lock()
        self._observer: psycopg.AsyncConnection[Any] | None = None
        self._sampler: asyncio.Task[None] | None = None

    async def begin(self, dsn: str | None = None, *, limit: float = 30.0, **options: Any) -> None:
        """Open the pool and let the load begin.

        Args:
            dsn: the way to the server, if not the straight one.
            limit: seconds that a request may wait for a connection.
            options: `wait=False` for a server that is not there yet; `web`, `prepares`.
        """
        self.limit = limit
        wait, web = options.pop("wait", True), options.pop("web", False)
        self._worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.faults._worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            limit=2**26,
        )
        setup = {"dsn": dsn or self.dsn, "size": self.size, "limit": limit, **options}
        self._tell({"pool": self._pool, "setup": setup, "rate": self.rate, "web": web})
        await self.say("open", wait=wait)
        self._sampler = asyncio.create_task(self._sample())
        await self.say("begin")
        await asyncio.sleep(self.lead)

    async def say(self, do: str, *, at_most: float = 60.0, **what: Any) -> Any:
        """Have the worker do something and wait for its answer."""
        self._tell({"do": do, **what})
        assert self._worker is not None, "bug: not begun"
        assert self._worker.stdout is not None, "bug: it is a pipe"
        try:
            async with asyncio.timeout(at_most):
                line = await self._worker.stdout.readline()
        except TimeoutError:
            msg = f"no answer to {do!r} in {at_most:g} s"
            raise Hung(msg) from None
        if not line:
            msg = f"its process ended with {await self._worker.wait()} in {do!r}"
            raise Hung(msg)
        told = json.loads(line)
        if "error" in told:
            msg = f"{do!r}: {told['error']}"
            raise Hung(msg)
        return told["answer"]

    async def wait(self, seconds: float, quick: float) -> None:
        """Let the fault last."""
        await asyncio.sleep(quick if self.quick else seconds)

    @contextmanager
    def striking(self) -> Iterator[None]:
        """While connections are broken that are lent."""
        start = time.monotonic()
        yield
        self.seen.strikes.append((start, time.monotonic()))

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """While connections are broken, and none is lent."""
        await self.say("hold")
        yield
        await self.say("resume")

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """While nobody can be served and we do not look."""
        async with self._sight:
            start = time.monotonic()
            yield
            self.seen.outages.append((start, time.monotonic()))

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """While everybody is turned away."""
        start = time.monotonic()
        yield
        self.seen.errors.append((start, time.monotonic()))

    async def over(self) -> None:
        """The fault is over: wait a while, end the load, close the pool, read the books."""
        self.seen.back = self.seen.back or time.monotonic()
        await asyncio.sleep(2 * self.lead)
        self.seen.finished = await self.say("finish", at_most=self.limit + 60)
        if self._sampler is not None:
            self._sampler.cancel()
            await asyncio.wait([self._sampler])

        async def ended() -> bool:
            self.seen.left = await self.count()
            return not self.seen.left

        await until(ended, PATIENCE)
        self.seen.ledger += await self.ledger()

    async def ledger(self) -> list[int]:
        """The numbers that were entered."""
        rows = await self.ask("SELECT id FROM ledger", make_conninfo(self.watched, dbname="app"))
        return [number for (number,) in rows]

    async def ask(self, query: str, dsn: str | None = None) -> list[Any]:
        """The rows of a statement, by a session of its own, as a superuser."""
        connect = psycopg.AsyncConnection.connect
        async with await connect(dsn or self.watched, autocommit=True) as conn:
            cur = await conn.execute(query.encode())
            return await cur.fetchall() if cur.description else []

    async def pids(self) -> list[int]:
        """The pool's backends, the longest without work first."""
        rows = await self.ask(
            "SELECT pid FROM pg_stat_activity"
            f" WHERE application_name = '{self.application}' ORDER BY state_change"
        )
        return [pid for (pid,) in rows]

    async def terminate(self, pids: list[int]) -> None:
        """End these backends and see them gone."""
        await self.ask(
            f"SELECT pg_terminate_backend(pid, 5000) FROM unnest(ARRAY{pids}::int[]) AS pid"
        )

    async def close(self) -> None:
        """End whatever still runs."""
        if self._sampler is not None:
            self._sampler.cancel()
            await asyncio.wait([self._sampler])
        if self._worker is not None:
            with suppress(ProcessLookupError):
                self._worker.kill()
            await self._worker.wait()
        if self._observer is not None:
            await self._observer.close()

    def _tell(self, what: dict[str, Any]) -> None:
        assert self._worker is not None, "bug: not begun"
        assert self._worker.stdin is not None, "bug: it is a pipe"
        self._worker.stdin.write(json.dumps(what).encode() + b"\n")

    async def _sample(self) -> None:
        while True:
            async with self._sight:
                with suppress(psycopg.Error):
                    self.seen.samples.append((time.monotonic(), await self.count()))
            await asyncio.sleep(SAMPLE)

    async def _count(self) -> int:
        if self._observer is None or self._observer.closed:
            self._observer = await psycopg.AsyncConnection.connect(self.watched, autocommit=True)
        cur = await self._observer.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
            [self.application],
        )
        ((count,),) = await cur.fetchall()
        return int(count)


async def until(fact: Callable[[], bool | Awaitable[bool]], seconds: float) -> None:
    """Wait until it is so, or for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = fact()
        if value if isinstance(value, bool) else await value:
            return
        await asyncio.sleep(0.005)
