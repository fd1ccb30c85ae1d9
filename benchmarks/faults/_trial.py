"""One trial: a pool under a fault. It controls the server and the worker, and observes both."""

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
from benchmarks.faults._database import PASSWORD

Window = tuple[float, float]

SAMPLE = 0.03
"""Seconds between two samples of the server's list of sessions."""
CLOSE_TIMEOUT = 5.0
"""Seconds within which backends must end after the pool was closed."""


class Hung(Exception):
    """The worker did not reply in time, or has ended."""


class Unsupported(Exception):
    """This machine cannot run the trial; the message says what is missing."""


@dataclass
class Observations:
    """What a trial has recorded; instants are `time.monotonic()`."""

    breaks: list[Window] = field(default_factory=list)
    """When connections were broken: a request that had one then may fail."""
    outages: list[Window] = field(default_factory=list)
    """When no request could be served: one that waits only within such a window may fail."""
    refusals: list[Window] = field(default_factory=list)
    """When the server refused all connects: a request that was due then may fail."""
    fault_end: float = 0.0
    """The end of the fault."""
    samples: list[tuple[float, int]] = field(default_factory=list)
    """The number of the pool's sessions, by instant."""
    attempts: int | None = None
    """Connects during the fault, where they are counted."""
    left: int = 0
    """Backends that were left after `close()`."""
    ledger: list[int] = field(default_factory=list)
    finished: dict[str, Any] = field(default_factory=dict)


class Trial:
    """One pool under one fault.

    Args:
        server: the server, which no other trial uses.
        pool: the name of the pool.
        quick: whether long faults are shortened.
    """

    size = 4
    rate = 100.0
    lead = 1.0
    """Seconds of load before the fault; after it twice as long."""

    def __init__(self, server: Server, pool: str, *, quick: bool) -> None:
        self.server = server
        self.observed = Observations()
        self.quick = quick
        self.application = f"faults-{pool}"
        self.dsn = make_conninfo(
            server.dsn,
            user="app",
            password=PASSWORD,
            dbname="app",
            application_name=self.application,
        )
        self.observer_dsn = make_conninfo(server.dsn, application_name="faults-observer")
        self.count: Callable[[], Awaitable[int]] = self._count
        if quick:
            self.lead = 0.3
        self.limit = 0.0
        self._pool = pool
        self._worker: asyncio.subprocess.Process | None = None
        self._sampling = asyncio.Lock()
        self._observer: psycopg.AsyncConnection[Any] | None = None
        self._sampler: asyncio.Task[None] | None = None

    async def start(self, dsn: str | None = None, *, limit: float = 30.0, **options: Any) -> None:
        """Open the pool and start the load.

        Args:
            dsn: the connection string of the pool; None: the server's own.
            limit: seconds that a request may wait for a connection.
            options: `wait=False` for a server that is not started yet; `web`, `prepares`.
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
        self._send({"pool": self._pool, "setup": setup, "rate": self.rate, "web": web})
        await self.command("open", wait=wait)
        self._sampler = asyncio.create_task(self._sample())
        await self.command("start")
        await asyncio.sleep(self.lead)

    async def command(self, do: str, *, timeout: float = 60.0, **what: Any) -> Any:
        """Send a command to the worker and wait for its reply."""
        self._send({"do": do, **what})
        assert self._worker is not None, "bug: not started"
        assert self._worker.stdout is not None, "bug: it is a pipe"
        try:
            async with asyncio.timeout(timeout):
                line = await self._worker.stdout.readline()
        except TimeoutError:
            msg = f"no reply to {do!r} in {timeout:g} s"
            raise Hung(msg) from None
        if not line:
            msg = f"its process ended with {await self._worker.wait()} in {do!r}"
            raise Hung(msg)
        reply = json.loads(line)
        if "error" in reply:
            msg = f"{do!r}: {reply['error']}"
            raise Hung(msg)
        return reply["answer"]

    async def wait(self, seconds: float, quick: float) -> None:
        """Let the fault last."""
        await asyncio.sleep(quick if self.quick else seconds)

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Record the time in which leased connections are broken."""
        start = time.monotonic()
        yield
        self.observed.breaks.append((start, time.monotonic()))

    @asynccontextmanager
    async def while_idle(self) -> AsyncIterator[None]:
        """Pause the load, so that no connection is leased when it is broken."""
        await self.command("pause")
        yield
        await self.command("resume")

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Record the time in which no request can be served, and take no samples."""
        async with self._sampling:
            start = time.monotonic()
            yield
            self.observed.outages.append((start, time.monotonic()))

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Record the time in which the server refuses all connects."""
        start = time.monotonic()
        yield
        self.observed.refusals.append((start, time.monotonic()))

    async def finish(self) -> None:
        """After the fault: wait a while, end the load, close the pool, read the ledger."""
        self.observed.fault_end = self.observed.fault_end or time.monotonic()
        await asyncio.sleep(2 * self.lead)
        self.observed.finished = await self.command("finish", timeout=self.limit + 60)
        if self._sampler is not None:
            self._sampler.cancel()
            await asyncio.wait([self._sampler])

        async def ended() -> bool:
            self.observed.left = await self.count()
            return not self.observed.left

        await wait_until(ended, CLOSE_TIMEOUT)
        self.observed.ledger += await self.ledger()

    async def ledger(self) -> list[int]:
        """Return the numbers in the ledger."""
        rows = await self.ask(
            "SELECT id FROM ledger", make_conninfo(self.observer_dsn, dbname="app")
        )
        return [number for (number,) in rows]

    async def ask(self, query: str, dsn: str | None = None) -> list[Any]:
        """Run a statement in a session of its own as a superuser; return its rows."""
        connect = psycopg.AsyncConnection.connect
        async with await connect(dsn or self.observer_dsn, autocommit=True) as conn:
            cur = await conn.execute(query.encode())
            return await cur.fetchall() if cur.description else []

    async def pids(self) -> list[int]:
        """Return the pids of the pool's backends, the longest idle first."""
        rows = await self.ask(
            "SELECT pid FROM pg_stat_activity"
            f" WHERE application_name = '{self.application}' ORDER BY state_change"
        )
        return [pid for (pid,) in rows]

    async def terminate(self, pids: list[int]) -> None:
        """Terminate backends and wait until they have ended."""
        await self.ask(
            f"SELECT pg_terminate_backend(pid, 5000) FROM unnest(ARRAY{pids}::int[]) AS pid"
        )

    async def close(self) -> None:
        """End the worker and the observers."""
        if self._sampler is not None:
            self._sampler.cancel()
            await asyncio.wait([self._sampler])
        if self._worker is not None:
            with suppress(ProcessLookupError):
                self._worker.kill()
            await self._worker.wait()
        if self._observer is not None:
            await self._observer.close()

    def _send(self, what: dict[str, Any]) -> None:
        assert self._worker is not None, "bug: not started"
        assert self._worker.stdin is not None, "bug: it is a pipe"
        self._worker.stdin.write(json.dumps(what).encode() + b"\n")

    async def _sample(self) -> None:
        while True:
            async with self._sampling:
                with suppress(psycopg.Error):
                    self.observed.samples.append((time.monotonic(), await self.count()))
            await asyncio.sleep(SAMPLE)

    async def _count(self) -> int:
        if self._observer is None or self._observer.closed:
            self._observer = await psycopg.AsyncConnection.connect(
                self.observer_dsn, autocommit=True
            )
        cur = await self._observer.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
            [self.application],
        )
        ((count,),) = await cur.fetchall()
        return int(count)


async def wait_until(condition: Callable[[], bool | Awaitable[bool]], seconds: float) -> None:
    """Wait until a condition holds, for `seconds` at most."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value if isinstance(value, bool) else await value:
            return
        await asyncio.sleep(0.005)
