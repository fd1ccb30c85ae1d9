"""Play a run: start each request when it is due, whatever became of earlier ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from random import Random
from time import process_time

from benchmarks.overload._peers import Peer
from benchmarks.overload._rows import DEFAULT_TIMEOUT, SIZE, Caller, Row
from benchmarks.overload._schedule import Request, Span

HUNG = 30.0
"""Seconds after the end of the schedule at which a request hangs."""
WARM = 0.5
"""Seconds of the closed loop that are not counted."""
REFUSED = {"TooManyRequests"}
TIMED_OUT = {"PoolTimeout", "TimeoutError"}
"""Names of errors, which differ in their modules only."""


class Play:
    """One run of a row on one pool.

    Args:
        peer: the pool, which is open.
        row: how requests tell their deadlines.
        places: the phases.
    """

    def __init__(self, peer: Peer, row: Row, places: list[Span]) -> None:
        self._peer = peer
        self._row = row
        self._slow = [place for place in places if place.phase.slower != 1]
        self._loop = asyncio.get_running_loop()
        self._start = 0.0
        callers: dict[Caller, Callable[[Request], Awaitable[None]]] = {
            Caller.TIMEOUT: self._by_timeout,
            Caller.HALF: self._by_half,
            Caller.CANCEL: self._cancelled,
            Caller.CANCEL_WITHIN: self._cancelled_within,
            Caller.WITHIN: self._within,
        }
        self._call = callers[row.caller]

    async def run(self, requests: list[Request]) -> float:
        """Start all requests, and wait until the last has ended; return the CPU share.

        A request that hangs has the outcome "hung".
        """
        self._start, used = self._loop.time(), process_time()
        tasks = []
        for request in requests:
            if (wait := request.due - self._now()) > 0:
                await asyncio.sleep(wait)
            tasks.append(self._loop.create_task(self._follow(request)))
        share = (process_time() - used) / self._now()
        _, hanging = await asyncio.wait(tasks, timeout=HUNG)
        for task, request in zip(tasks, requests, strict=True):
            if task in hanging:
                request.outcome, request.ended = "hung", self._now()
        return share

    def _now(self) -> float:
        return self._loop.time() - self._start

    async def _follow(self, request: Request) -> None:
        request.started = self._now()
        try:
            await self._call(request)
        except Exception as error:  # noqa: BLE001 - a pool may raise anything
            name = type(error).__name__
            known = "refused" if name in REFUSED else "timed out" if name in TIMED_OUT else name
            request.outcome = known
        else:
            request.outcome = "answered"
        request.ended = self._now()

    async def _by_timeout(self, request: Request) -> None:
        await self._ask(request, request.stream.deadline)

    async def _by_half(self, request: Request) -> None:
        await self._ask(request, request.stream.deadline / 2)

    async def _cancelled(self, request: Request) -> None:
        async with asyncio.timeout(request.stream.deadline):
            await self._ask(request, None)

    async def _cancelled_within(self, request: Request) -> None:
        async with asyncio.timeout(request.stream.deadline):
            await self._within(request)

    async def _within(self, request: Request) -> None:
        stream = request.stream
        told = self._peer.within(stream.deadline, stream.priority, stream.flow)
        with told or nullcontext():
            await self._ask(request, stream.deadline if told is None else None)

    async def _ask(self, request: Request, limit: float | None) -> None:
        if self._row.one_shot:
            await self._peer.one_shot(self._use(request), limit)
            return
        if self._row.turn and request.stream.hot:
            async with self._peer.turn("hot"):
                await self._borrow(request, limit)
        else:
            await self._borrow(request, limit)

    async def _borrow(self, request: Request, limit: float | None) -> None:
        async with self._peer.borrow(limit) as conn:
            work = self._peer.update if request.stream.hot else self._peer.sleep
            await work(conn, self._use(request))

    def _use(self, request: Request) -> float:
        now = self._now()
        factors = (place.phase.slower for place in self._slow if now >= place.start)
        return request.use * next(factors, 1.0)


async def capacity(peer: Peer, uses: tuple[float, ...], seconds: float, random: Random) -> float:
    """Return the requests a second that the pool answers if it is always busy.

    Twice as many tasks as connections ask one request after another. They start one by one, as
    uses of the same length would otherwise all end at the same time.
    """
    ended, going = 0, True

    async def ask(number: int) -> None:
        nonlocal ended
        await asyncio.sleep(number * uses[0] / SIZE)
        while going:
            async with peer.borrow(DEFAULT_TIMEOUT) as conn:
                await peer.sleep(conn, random.choice(uses))
            ended += 1

    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        for number in range(2 * SIZE):
            group.create_task(ask(number))
        await asyncio.sleep(WARM)
        start, before = loop.time(), ended
        await asyncio.sleep(seconds)
        rate = (ended - before) / (loop.time() - start)
        going = False
    assert rate > 0, "bug: nothing was answered"
    return rate
