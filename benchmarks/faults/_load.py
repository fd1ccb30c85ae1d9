"""The load: requests that start at a fixed rate, whatever the outcome of earlier ones.

So a pool whose requests wait gets as many requests as one whose requests fail at once. Instants are
`time.monotonic()`, which is the same in all processes of a machine.
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
"""Seconds that the statement of a request takes that will be cancelled."""


@dataclass(slots=True)
class Request:
    """One request: its purpose, the instants of its progress, and its outcome."""

    number: int
    kind: str
    due: float
    borrowed: float | None = None
    ended: float | None = None
    outcome: str = ""
    """"ok", "failed" or "cancelled"."""
    error: str = ""
    left: float | None = None
    """The instant of its cancellation."""


class Refused(Exception):
    """The web application answered with an error, whose name is the message."""


class Load:
    """All requests of one pool.

    Args:
        peer: the pool.
        limit: seconds that a request may wait for a connection.
        rate: requests per second.
        work: what a request does; None: it writes its number.
    """

    def __init__(
        self,
        peer: Peer,
        limit: float,
        rate: float,
        work: Callable[[Request], Awaitable[None]] | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self._peer = peer
        self._limit = limit
        self._interval = 1 / rate
        self._work = work or self.write
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._going = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the load."""
        self._going.set()
        self._clock = asyncio.create_task(self._tick())

    async def pause(self) -> None:
        """Start no request until `resume`, and return when none is under way."""
        self._going.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def resume(self) -> None:
        """Start requests again."""
        self._going.set()

    async def occupy(self, count: int, seconds: float) -> None:
        """Let `count` requests hold a connection at the same time, for `seconds`."""
        self._going.clear()
        holders = [self.request("holder") for _ in range(count)]
        for each in holders:
            self._start(each, partial(self.sleep, seconds=seconds))
        while any(each.borrowed is each.ended is None for each in holders):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._going.set()

    async def cancel_many(self, kind: str, seconds: float, rate: float) -> None:
        """Run additional requests that are cancelled in the middle of a long statement."""
        run = {"asyncio": self._cancelled_by_asyncio, "anyio": self._cancelled_by_anyio}[kind]
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * rate)):
                group.create_task(run(self.request("cancelled"), cancel_delay(number)))
                await asyncio.sleep(1 / rate)

    async def finish(self) -> None:
        """Start no more requests, and wait for the others; those that hang have failed."""
        if self._clock is not None:
            self._clock.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._limit + 2 * GRACE)
        for each in self.requests:
            if each.ended is None:
                each.ended = time.monotonic()
                each.outcome, each.error = "failed", "hung"

    def records(self) -> list[Any]:
        """Return all requests as lists for JSON."""
        return [astuple(each) for each in self.requests]

    async def write(self, request: Request) -> None:
        """Insert the request's number into the ledger."""
        async with self._peer.borrow() as conn:
            request.borrowed = time.monotonic()
            await self._peer.write(conn, request.number)

    async def sleep(self, request: Request, seconds: float = LONG) -> None:
        """Borrow a connection for a long statement."""
        async with self._peer.borrow() as conn:
            request.borrowed = time.monotonic()
            await self._peer.sleep(conn, seconds)

    def request(self, kind: str) -> Request:
        """Make a request that is due now."""
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
            self._start(self._request("write", due), self._work)
            due += self._interval

    def _start(self, request: Request, work: Callable[[Request], Awaitable[None]]) -> None:
        task = asyncio.create_task(self._follow(request, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, request: Request, work: Callable[[Request], Awaitable[None]]) -> None:
        limit = asyncio.timeout(self._limit + GRACE)
        try:
            async with limit:
                await work(request)
        except Exception as error:  # noqa: BLE001 - a pool may raise anything
            mark_failed(request, "hung" if limit.expired() else error_name(error))
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
            mark_failed(request, error_name(error))
        else:
            mark_failed(request, "cancellation swallowed")

    async def _cancelled_by_anyio(self, request: Request, after: float) -> None:
        scope = anyio.CancelScope(deadline=anyio.current_time() + after)
        request.left = time.monotonic() + after
        refused = False
        try:
            with scope:
                await self.sleep(request)
        except Exception as error:  # noqa: BLE001 - as above
            # A pool may see the deadline of a scope, and say at once that it cannot be kept.
            refused = request.borrowed is None and error_name(error) == "TooManyRequests"
            if not refused:
                mark_failed(request, error_name(error))
        if not request.error:
            request.outcome = "cancelled"
        request.ended = time.monotonic()
        if not (scope.cancelled_caught or refused or request.error):
            mark_failed(request, "cancellation swallowed")


def mark_failed(request: Request, error: str) -> None:
    """Record that a request has failed."""
    request.outcome, request.error = "failed", error


def cancel_delay(number: int) -> float:
    """Return the seconds after which the request of that number is cancelled: 0 to 0.1, mixed."""
    return (number * 37 % 100) / 1000


def error_name(error: BaseException) -> str:
    """Return the name of an error's class; for SQLAlchemy's, of the error that it wraps."""
    if isinstance(error, Refused):
        return str(error)
    original = getattr(error, "orig", None)
    return type(original if original is not None else error).__name__
