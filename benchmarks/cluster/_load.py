"""The load: reads and writes at fixed rates, each a task, whatever became of earlier ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass
from random import Random
from typing import Any

from benchmarks.cluster._peers import Peer

READ_LIMIT, WRITE_LIMIT = 2.0, 5.0
"""Seconds until the client of a request gives up."""
READ, WRITE, PAIR = "read", "write", "pair"
"""The kinds of requests; a pair is a write and a read of what it has written."""
ANSWERED = "answered"


@dataclass
class Request:
    """A request and its outcome; instants are `time.monotonic()`."""

    kind: str
    number: int = 0
    """The number that it writes; for a read 0."""
    start: float = 0.0
    end: float = 0.0
    outcome: str = "hung"
    """"answered", or the name of an error."""
    port: int = 0
    """The host that has answered a read."""
    newest: int = 0
    """The highest number that a read has seen."""
    found: bool = True
    """Whether the read of a pair has seen what the pair has written."""

    def record(self) -> tuple[Any, ...]:
        """Return the fields as a tuple of JSON types."""
        return astuple(self)


class Load:
    """The load on one pool.

    Args:
        peer: the pool, which is open.
        rates: the requests a second of each kind.
        first: the number of the first write.
        seed: of the instants.
    """

    def __init__(self, peer: Peer, rates: dict[str, float], first: int = 1, seed: int = 1) -> None:
        self._peer = peer
        self._rates = rates
        self._seed = seed
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: list[asyncio.Task[None]] = []
        self._number = first - 1
        self.requests: list[Request] = []

    def start(self) -> None:
        """Start the load."""
        kinds: dict[str, Callable[[Request], Awaitable[None]]] = {
            READ: self._read,
            WRITE: self._write,
            PAIR: self._pair,
        }
        for kind, rate in self._rates.items():
            limit = READ_LIMIT if kind == READ else WRITE_LIMIT
            self._streams.append(asyncio.create_task(self._send(kind, rate, kinds[kind], limit)))

    async def finish(self) -> list[Request]:
        """End the load and wait for the requests under way; return all of them."""
        for stream in self._streams:
            stream.cancel()
        await asyncio.wait(self._streams)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=WRITE_LIMIT + 5.0)
        return self.requests

    async def _send(
        self,
        kind: str,
        rate: float,
        call: Callable[[Request], Awaitable[None]],
        limit: float,
    ) -> None:
        random = Random(f"{self._seed} {kind}")
        due = time.monotonic()
        while True:
            due += random.expovariate(rate)
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            request = Request(kind)
            self.requests.append(request)
            task = asyncio.create_task(self._follow(request, call, limit))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(
        self, request: Request, call: Callable[[Request], Awaitable[None]], limit: float
    ) -> None:
        request.start = time.monotonic()
        try:
            async with asyncio.timeout(limit):
                await call(request)
        except Exception as error:  # noqa: BLE001 - a pool may raise anything
            request.outcome = type(error).__name__
        else:
            request.outcome = ANSWERED
        request.end = time.monotonic()

    async def _read(self, request: Request) -> None:
        await self._ask(request, 0)

    async def _write(self, request: Request) -> None:
        self._number += 1
        request.number = self._number
        await self._peer.write(request.number)

    async def _pair(self, request: Request) -> None:
        self._number += 1
        request.number = self._number
        with self._peer.own_writes():
            await self._peer.write(request.number)
            await self._ask(request, request.number)

    async def _ask(self, request: Request, number: int) -> None:
        answer = await self._peer.read(number)
        request.port, request.newest = answer.port, answer.newest or 0
        request.found = answer.found or not number
