"""One cell: a pool under one fault. It controls the servers and the worker, and observes both."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from subprocess import PIPE

from benchmarks._plan import ROOT
from benchmarks.cluster._load import PAIR, READ, WRITE, WRITE_LIMIT, Request
from benchmarks.cluster._trio import Trio, ledger, port

RATES = {READ: 150.0, WRITE: 40.0}
PAIRS = {PAIR: 100.0, WRITE: 100.0}
"""Requests a second."""


class Hung(Exception):
    """The worker did not answer in time, or has ended."""


@dataclass
class Observations:
    """The records of a trial; instants are `time.monotonic()`."""

    requests: list[Request] = field(default_factory=list)
    begin: float = 0.0
    """The start of the load; the first second is not measured."""
    fault: float = 0.0
    back: float | None = None
    """When a host came back; None: none did."""
    end: float = 0.0
    host: int = 0
    """The port of the host in question."""
    fair: float = 0.5
    """The fair share of this host."""
    ledger: list[int] = field(default_factory=list)
    """The numbers on the primary at the end."""


class Trial:
    """One pool under one fault.

    Args:
        trio: the servers, which no other trial uses.
        pool: the name of the pool.
        pace: the factor of all waits; 1.0: as in the published tables.
    """

    def __init__(self, trio: Trio, pool: str, pace: float) -> None:
        self.trio = trio
        self.observed = Observations(host=port(trio.first.dsn))
        self._pool = pool
        self._pace = pace
        self._worker: asyncio.subprocess.Process | None = None

    async def start(self, dsn: str | None = None, rates: dict[str, float] | None = None) -> None:
        """Open the pool, start the load and let it run for a while; again, after `close`.

        Args:
            dsn: the connection string; None: that of the trio.
            rates: the requests a second of each kind; None: reads and writes.
        """
        self._worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.cluster._worker"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=ROOT,
            limit=2**26,
        )
        setup = {"pool": self._pool, "dsn": dsn or self.trio.dsn, "limit": WRITE_LIMIT}
        numbers = {"rates": rates or RATES, "first": len(self.observed.requests) + 1}
        self._send(json.dumps({**setup, **numbers}))
        await self._line(30.0)
        self.observed.begin = self.observed.begin or time.monotonic()
        await self.wait(3.0)

    async def wait(self, seconds: float) -> None:
        """Let the load run."""
        await asyncio.sleep(max(0.5, seconds * self._pace))

    def broken(self) -> None:
        """Record that the fault begins."""
        self.observed.fault = time.monotonic()

    def back(self, host: int | None = None, fair: float = 0.5) -> None:
        """Record that a host is back.

        Args:
            host: its port; None: that of the first standby.
            fair: its fair share of the reads.
        """
        self.observed.back = time.monotonic()
        self.observed.host = host or self.observed.host
        self.observed.fair = fair

    async def finish(self, seconds: float) -> None:
        """Let the load run for a while, end it and read the ledger of the primary."""
        await self.wait(seconds)
        self.observed.end = time.monotonic()
        self._send("")
        found = json.loads(await self._line(WRITE_LIMIT + 30.0))
        self.observed.requests += [Request(*each) for each in found]

    async def read_ledger(self, *, promoted: bool) -> None:
        """Read the ledger of the server that is the primary at the end."""
        primary = self.trio.first if promoted else self.trio.primary
        self.observed.ledger = await ledger(primary)

    async def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            with suppress(ProcessLookupError):
                self._worker.kill()
            await self._worker.communicate()
            self._worker = None

    def _send(self, line: str) -> None:
        assert self._worker is not None, "bug: not started"
        assert self._worker.stdin is not None, "bug: it is a pipe"
        self._worker.stdin.write(line.encode() + b"\n")

    async def _line(self, timeout: float) -> str:
        assert self._worker is not None, "bug: not started"
        assert self._worker.stdout is not None, "bug: it is a pipe"
        try:
            async with asyncio.timeout(timeout):
                line = await self._worker.stdout.readline()
        except TimeoutError:
            msg = f"its process does not answer within {timeout:g} s"
            raise Hung(msg) from None
        if not line:
            _, problem = await self._worker.communicate()
            lines = problem.decode(errors="replace").strip().splitlines() or ["no message"]
            msg = f"its process ended with status {self._worker.returncode}: {lines[-1]}"
            raise Hung(msg)
        return line.decode()
