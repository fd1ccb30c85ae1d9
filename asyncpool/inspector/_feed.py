"""What the page is told: one snapshot a tick for all who watch, and a timeline of ten minutes.

There is no task: a timer ticks from the first request on, for as long as a pool is open. It holds
the feed weakly, and the feed the pools.
"""

from __future__ import annotations

import asyncio
import json
import time
import weakref
from collections import deque
from collections.abc import Iterable
from contextvars import Context
from pathlib import Path
from typing import Any

from asyncpool import AsyncConnectionPool

Pool = AsyncConnectionPool[Any]

MINUTES = 10
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer: nothing is loaded from elsewhere, and nothing is kept."""
STREAM = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


def asset(path: str) -> tuple[bytes, str] | None:
    """A file of the page and its type; None: there is none of this path."""
    if path not in FILES:
        return None
    name, kind = FILES[path]
    return Path(__file__).with_name(name).read_bytes(), kind


def check_pools(pools: Pool | Iterable[Pool]) -> list[Pool]:
    """One pool, or several with names of their own.

    Raises:
        TypeError: what is given is no pool, or none is.
        ValueError: two have the same name.
    """
    found = [pools] if isinstance(pools, AsyncConnectionPool) else list(pools)
    if not found or not all(isinstance(each, AsyncConnectionPool) for each in found):
        msg = f"an inspector is for one AsyncConnectionPool or several: got {pools!r}"
        raise TypeError(msg)
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        msg = f"the pools of an inspector need a name= of their own each: got {names}"
        raise ValueError(msg)
    return found


class Feed:
    """The snapshots of some pools.

    Args:
        pools: one or several; held weakly.
        interval: seconds from one tick to the next.
        lasts: seconds after which a stream ends, to be asked for anew: a server that is to stop
            waits for those that are open.
    """

    def __init__(
        self, pools: Pool | Iterable[Pool], interval: float = 1.0, lasts: float = 10.0
    ) -> None:
        self._pools = [weakref.ref(pool) for pool in check_pools(pools)]
        self._interval = interval
        self._lasts = lasts
        self._timelines: dict[str, deque[list[float]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ticked: asyncio.Future[None] | None = None
        self._told: dict[bool, str] = {}

    def snapshot(self) -> str:
        """All there is to tell now, with the timelines."""
        self.start()
        return self._tell(whole=True)

    def start(self) -> None:
        """Tick from now on, if it does not yet."""
        loop = asyncio.get_running_loop()
        if self._ticked is not None and self._ticked.get_loop() is not loop:
            self._timer = None  # the loop that it was on has ended
        if self._timer is None:
            self._ticked = loop.create_future()
            self._sample()
            self._arm(loop)

    async def next(self) -> bool:
        """Wait for the next tick; False: there will be none."""
        if self._timer is None or self._ticked is None:
            return False
        await asyncio.shield(self._ticked)
        return self._timer is not None

    def stream(self) -> Stream:
        """What one watcher is sent."""
        self.start()
        return Stream(self, time.monotonic() + self._lasts)

    def tick(self) -> None:
        """Take a sample, and wake those who watch."""
        loop = asyncio.get_running_loop()
        self._timer = None
        ticked, self._ticked = self._ticked, loop.create_future()
        self._sample()
        if self._open():
            self._arm(loop)
        if ticked is not None and not ticked.done():
            ticked.set_result(None)

    def message(self, *, whole: bool) -> str:
        """An event of the stream; the first of a stream has the timelines."""
        return f"data: {self._tell(whole=whole)}\n\n"

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._interval, _tick, weakref.ref(self), context=Context())

    def _open(self) -> list[Pool]:
        pools = (each() for each in self._pools)
        return [pool for pool in pools if pool is not None and not pool.closed]

    def _sample(self) -> None:
        self._told.clear()
        now, kept = time.time(), int(MINUTES * 60 / self._interval)
        for pool in self._open():
            stats = pool.stats()
            timeline = self._timelines.setdefault(pool.name, deque(maxlen=kept))
            timeline.append([round(now, 2), stats.size, stats.leased, stats.waiting])

    def _tell(self, *, whole: bool) -> str:
        if whole not in self._told:
            pools = []
            for each in self._pools:
                if (pool := each()) is None:
                    continue
                told = pool.explain().as_dict()
                samples = list(self._timelines.get(pool.name, ()))
                told["timeline"] = samples if whole else samples[-1:]
                pools.append(told)
            told = {"asyncpool": 1, "at": time.time(), "whole": whole, "pools": pools}
            self._told[whole] = json.dumps(told, separators=(",", ":"))
        return self._told[whole]


class Stream:
    """The events that one watcher gets: the latest each time, so that a slow one misses some."""

    def __init__(self, feed: Feed, until: float) -> None:
        self._feed = feed
        self._until = until
        self._begun = False

    async def next(self) -> str | None:
        """The next event; None: the stream ends."""
        if not self._begun:
            self._begun = True
            return "retry: 500\n\n" + self._feed.message(whole=True)
        if time.monotonic() >= self._until or not await self._feed.next():
            return None
        return self._feed.message(whole=False)


def _tick(feed: weakref.ref[Feed]) -> None:
    if (alive := feed()) is not None:
        alive.tick()
