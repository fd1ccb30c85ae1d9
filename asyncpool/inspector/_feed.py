"""The feed of the page: one snapshot a tick for all its readers, and a timeline of ten minutes.

There is no task: a timer ticks from the first request on, while a pool is open. The timer holds the
feed weakly, and the feed holds the pools weakly.
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
"""The headers of every response: no outside resources, no caching."""
STREAM = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


def asset(path: str) -> tuple[bytes, str] | None:
    """Return a file of the page and its type; None: no file has this path."""
    if path not in FILES:
        return None
    name, kind = FILES[path]
    return Path(__file__).with_name(name).read_bytes(), kind


def check_pools(pools: Pool | Iterable[Pool]) -> list[Pool]:
    """Return the pools as a list.

    Raises:
        TypeError: an argument is no pool, or there are no pools.
        ValueError: two pools have the same name.
    """
    found = [pools] if isinstance(pools, AsyncConnectionPool) else list(pools)
    if not found or not all(isinstance(each, AsyncConnectionPool) for each in found):
        msg = f"an inspector takes one AsyncConnectionPool or several: got {pools!r}"
        raise TypeError(msg)
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        msg = f"two pools of an inspector have the same name: got {names}; give each its own name="
        raise ValueError(msg)
    return found


class Feed:
    """The snapshots of some pools.

    Args:
        pools: one pool or several; held weakly.
        interval: seconds from one tick to the next.
        stream_duration: seconds after which a stream ends, since a server that stops waits for
            open streams; the page then opens the next one.
    """

    def __init__(
        self, pools: Pool | Iterable[Pool], interval: float = 1.0, stream_duration: float = 10.0
    ) -> None:
        self._pools = [weakref.ref(pool) for pool in check_pools(pools)]
        self._interval = interval
        self._stream_duration = stream_duration
        self._timelines: dict[str, deque[list[float]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ticked: asyncio.Future[None] | None = None
        self._snapshots: dict[bool, str] = {}

    def snapshot(self) -> str:
        """Return the current snapshot as JSON, with the timelines."""
        self.start()
        return self._serialize(whole=True)

    def start(self) -> None:
        """Start the timer, unless it is running."""
        loop = asyncio.get_running_loop()
        if self._ticked is not None and self._ticked.get_loop() is not loop:
            self._timer = None  # the timer's event loop has ended
        if self._timer is None:
            self._ticked = loop.create_future()
            self._sample()
            self._start_timer(loop)

    async def next(self) -> bool:
        """Wait for the next tick; return False if there will be none."""
        if self._timer is None or self._ticked is None:
            return False
        await asyncio.shield(self._ticked)
        return self._timer is not None

    def stream(self) -> Stream:
        """Return a stream of events for one reader."""
        self.start()
        return Stream(self, time.monotonic() + self._stream_duration)

    def tick(self) -> None:
        """Take a sample, and wake the readers."""
        loop = asyncio.get_running_loop()
        self._timer = None
        ticked, self._ticked = self._ticked, loop.create_future()
        self._sample()
        if self._open():
            self._start_timer(loop)
        if ticked is not None and not ticked.done():
            ticked.set_result(None)

    def message(self, *, whole: bool) -> str:
        """Return an event of a stream; with `whole`, it has the complete timelines."""
        return f"data: {self._serialize(whole=whole)}\n\n"

    def _start_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._interval, _tick, weakref.ref(self), context=Context())

    def _open(self) -> list[Pool]:
        pools = (each() for each in self._pools)
        return [pool for pool in pools if pool is not None and not pool.closed]

    def _sample(self) -> None:
        self._snapshots.clear()
        now, kept = time.time(), int(MINUTES * 60 / self._interval)
        for pool in self._open():
            stats = pool.stats()
            timeline = self._timelines.setdefault(pool.name, deque(maxlen=kept))
            timeline.append([round(now, 2), stats.size, stats.leased, stats.waiting])

    def _serialize(self, *, whole: bool) -> str:
        if whole not in self._snapshots:
            pools = []
            for each in self._pools:
                if (pool := each()) is None:
                    continue
                shown = pool.explain().as_dict()
                samples = list(self._timelines.get(pool.name, ()))
                shown["timeline"] = samples if whole else samples[-1:]
                pools.append(shown)
            snapshot = {"asyncpool": 1, "at": time.time(), "whole": whole, "pools": pools}
            self._snapshots[whole] = json.dumps(snapshot, separators=(",", ":"))
        return self._snapshots[whole]


class Stream:
    """The events for one reader: always the latest, so a slow reader misses some."""

    def __init__(self, feed: Feed, until: float) -> None:
        self._feed = feed
        self._until = until
        self._started = False

    async def next(self) -> str | None:
        """Return the next event; None: the stream ends."""
        if not self._started:
            self._started = True
            return "retry: 500\n\n" + self._feed.message(whole=True)
        if time.monotonic() >= self._until or not await self._feed.next():
            return None
        return self._feed.message(whole=False)


def _tick(feed: weakref.ref[Feed]) -> None:
    if (alive := feed()) is not None:
        alive.tick()
