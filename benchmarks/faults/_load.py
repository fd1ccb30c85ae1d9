"""The load: requests that begin by the clock, whatever became of those before them.

So a pool that lets requests wait is asked as often as one that fails them at once. Times are
`time.monotonic()`, which is the same in every process of a machine.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.faults._peers import Peer

GRACE = 10.0
"""Seconds beyond its limit after which a request counts as hung."""
LONG = 5.0
"""Seconds that the statement of a request takes which is to be cut short."""


@dataclass(slots=True)
class Request:
    """One request; what it was for, when it was due, had a connection and ended, and how."""

    number: int
    kind: str
    due: float
    borrowed: float | None = None
    ended: float | None = None
    outcome: str = ""
    """ok, failed or cancelled."""
    error: str = ""
    left: float | None = None
    """When it was cancelled."""


class Refused(Exception):
    """An application answered with the name of its own error."""


class Load:
    """All requests of one pool.

    Args:
        peer: the pool.
        limit: seconds that a request may wait for a connection.
        rate: requests a second.
        way: what a request does instead of borrowing from the pool itself, given the request.
    """

    def __init__(
        self,
        peer: Peer,
        limit: float,
        rate: float,
        way: Callable[[Request], Awaitable[None]] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self._peer = peer
        self._limit = limit
        self._interval = 1 / rate
        self._way = way or self.write
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._going = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Let requests begin."""
        self._going.set()
        self._clock = asyncio.create_task(self._tick())

    async def hold(self) -> None:
        """Let none begin until `resume`, and return when none is under way."""
        self._going.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def resume(self) -> None:
        """Let them begin again."""
        self._going.set()

    async def lend(self, count: int, seconds: float) -> None:
        """Let so many requests have a connection for so long, at the same moment."""
        self._going.clear()
        holders = [self.request("holder") for _ in range(count)]
        for each in holders:
            self._start(each, partial(self.sleep, seconds=seconds))
        while any(each.borrowed is each.ended is None for each in holders):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._going.set()

    async def storm(self, kind: str, seconds: float, rate: float) -> None:
        """Requests that are cut short in the middle of a long statement, beside the others."""
        cut = {"asyncio": self._cancelled_by_asyncio, "anyio": self._cancelled_by_anyio}[kind]
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * rate)):
                group.create_task(cut(self.request("victim"), moment(number)))
                await asyncio.sleep(1 / rate)

    async def finish(self) -> None:
        """Let none begin any more and wait for the others, those that hang excepted."""
        if self._clock is not None:
            self._clock.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._limit + 2 * GRACE)
        for each in self.requests:
            if each.ended is None:
                each.ended = time.monotonic()
                each.outcome, each.error = "failed", "hung"

    def records(self) -> list[Any]:
        """All requests, for JSON."""
        return [astuple(each) for each in self.requests]

    async def write(self, request: Request) -> None:
        """Enter its number in the ledger."""
        async with self._peer.borrow() as conn:
            request.borrowed = time.monotonic()
            await self._peer.write(conn, request.number)

    async def sleep(self, request: Request, seconds: float = LONG) -> None:
        """Have a connection for long."""
        async with self._peer.borrow() as conn:
            request.borrowed = time.monotonic()
            await self._peer.sleep(conn, seconds)

    def request(self, kind: str) -> Request:
        """A new one, due now."""
        return self._request(kind, time.monotonic())

    def _request(self, kind: str, due: float) -> Request:
        request = Request(next(self._numbers), kind, due)
        self.requests.append(request)
        return request

    async def _tick(self) -> None:
        due = time.monotonic()
        while True:
            await asyncio.sleep(due - time.monotonic())
            if not self._going.is_set():
                await self._going.wait()
                due = time.monotonic()
            self._start(self._request("write", due), self._way)
            due += self._interval

    def _start(self, request: Request, way: Callable[[Request], Awaitable[None]]) -> None:
        task = asyncio.create_task(self._follow(request, way))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, request: Request, way: Callable[[Request], Awaitable[None]]) -> None:
        limit = asyncio.timeout(self._limit + GRACE)
        try:
            async with limit:
                await way(request)
        except Exception as error:  # noqa: BLE001 - whatever a pool may raise
            failed(request, "hung" if limit.expired() else name_of(error))
        else:
            request.outcome = "ok"
        finally:
            request.ended = time.monotonic()

    async def _cancelled_by_asyncio(self, request: Request, after: float) -> None:
        task = asyncio.create_task(self.sleep(request))
        await asyncio.sleep(after)
        request.left = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
        request.ended = time.monotonic()
        if task.cancelled():
            request.outcome = "cancelled"
        elif error := task.exception():
            failed(request, name_of(error))
        else:
            failed(request, "cancellation swallowed")

    async def _cancelled_by_anyio(self, request: Request, after: float) -> None:
        scope = anyio.CancelScope(deadline=anyio.current_time() + after)
        request.left = time.monotonic() + after
        try:
            with scope:
                await self.sleep(request)
        except Exception as error:  # noqa: BLE001 - as above
            failed(request, name_of(error))
        else:
            request.outcome = "cancelled"
        request.ended = time.monotonic()
        if not scope.cancelled_caught and not request.error:
            failed(request, "cancellation swallowed")


def failed(request: Request, error: str) -> None:
    """That is how it ended."""
    request.outcome, request.error = "failed", error


def moment(number: int) -> float:
    """Seconds after which the request of that number is cut short: up to 0.1, well mixed."""
    return (number * 37 % 100) / 1000


def name_of(error: BaseException) -> str:
    """An exception's class; SQLAlchemy's wrap the driver's, an answer names the application's."""
    if isinstance(error, Refused):
        return str(error)
    original = getattr(error, "orig", None)
    return type(original if original is not None else error).__name__
