"""The feed of the page: one snapshot a tick for all its readers, and a timeline of ten minutes.

There is no task but for the health checks, and those run only while somebody reads: a timer ticks
from the first request on, while a pool is open. The timer holds the feed weakly, and the feed holds
the pools weakly.
"""

from __future__ import annotations

import asyncio
import json
import time
import weakref
from collections import deque
from contextlib import suppress
from contextvars import Context
from typing import Any

from ._minute import Minute
from ._places import shorter
from ._process import identity
from ._server import HealthChecks, database, sessions
from ._sources import Given, Pool, Sources

MINUTES = 10
SHARE = 0.05
"""The most of the event loop's time that snapshots take: big pools are shown less often."""
SAMPLES = 1200
"""The most samples of a timeline: two a second of ten minutes."""
ALIVE = "event: alive\ndata: alive\n\n"
"""The event of a tick without a snapshot: the page sees that the app still answers."""


class Feed:
    """The snapshots of some pools.

    Args:
        pools: one pool or cluster, or several, held weakly, or a callable that returns them.
        interval: seconds from one tick to the next.
        stream_duration: seconds after which a stream ends, since a server that stops waits for
            open streams; the page then opens the next one.
    """

    def __init__(self, pools: Given, interval: float = 1.0, stream_duration: float = 10.0) -> None:
        if not interval > 0:
            msg = f"interval must be more than 0 seconds: got {interval!r}"
            raise ValueError(msg)
        self._sources = Sources(pools)
        self._interval = interval
        self._stream_duration = stream_duration
        self._health = HealthChecks(interval)
        self._timelines: dict[str, deque[list[float]]] = {}
        self._minutes: dict[str, Minute] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ticked: asyncio.Future[None] | None = None
        self._snapshots: dict[bool, str] = {}
        self._due_at = 0.0
        """When the next snapshot may be made, in the time of `time.monotonic`."""
        self._known: tuple[int, list[str]] = (0, [])
        """The rounds of health checks and the pools that `_snapshots` is of."""

    async def snapshot(self) -> str:
        """Return the current snapshot as JSON, with the timelines."""
        self.start()
        await self.refresh()
        return self._serialize(whole=True)

    async def server(self) -> str:
        """Return as JSON how many sessions the server has for each pool's role."""
        pools = self._sources.current()
        found = await asyncio.gather(*(sessions(pool) for pool in pools.values()))
        answer = {"process": identity(), "pools": dict(zip(pools, found, strict=True))}
        return json.dumps(answer, separators=(",", ":"))

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

    @property
    def due(self) -> bool:
        """Whether a snapshot is ready, or may be made now."""
        return False in self._snapshots or time.monotonic() >= self._due_at

    async def refresh(self) -> None:
        """Check the pools' health, unless that was done recently."""
        await self._health.refresh(self._sources.current())

    def stream(self) -> Stream:
        """Return a stream of events for one reader."""
        self.start()
        return Stream(self, time.monotonic() + self._stream_duration)

    def tick(self) -> None:
        """Take a sample, and wake the readers."""
        loop = asyncio.get_running_loop()
        self._timer = None
        ticked, self._ticked = self._ticked, loop.create_future()
        # A callable of the app's may fail, such as when the app has ended; the next request then
        # raises its error.
        with suppress(Exception):
            if self._sample():
                self._start_timer(loop)
        if ticked is not None and not ticked.done():
            ticked.set_result(None)

    async def message(self, *, whole: bool) -> str:
        """Return an event of a stream; with `whole`, it has the complete timelines."""
        await self.refresh()
        return f"data: {self._serialize(whole=whole)}\n\n"

    def _start_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._interval, _tick, weakref.ref(self), context=Context())

    def _sample(self) -> bool:
        """Add to the timelines; return whether a pool is open."""
        self._snapshots.clear()
        pools = {name: pool for name, pool in self._sources.current().items() if not pool.closed}
        now, kept = time.time(), min(SAMPLES, int(MINUTES * 60 / self._interval))
        for name, pool in pools.items():
            stats = pool.stats()
            timeline = self._timelines.setdefault(name, deque(maxlen=kept))
            timeline.append([round(now, 2), stats.size, stats.leased, stats.waiting])
            self._minutes.setdefault(name, Minute()).add(time.monotonic(), stats)
        return bool(pools)

    def _serialize(self, *, whole: bool) -> str:
        pools = self._sources.current()
        if self._known != (known := (self._health.rounds, list(pools))):
            self._known = known
            self._snapshots.clear()
        if whole not in self._snapshots:
            started, hosts = time.monotonic(), self._sources.hosts()
            snapshot = {
                "asyncpool": 1,
                "at": time.time(),
                "whole": whole,
                "interval": self._interval,
                "process": identity(),
                "pools": [
                    self._shown(name, pool, whole=whole) | {"host": hosts.get(name)}
                    for name, pool in pools.items()
                ],
            }
            self._snapshots[whole] = json.dumps(snapshot, separators=(",", ":"))
            ended = time.monotonic()
            self._due_at = ended + (ended - started) / SHARE
        return self._snapshots[whole]

    def _shown(self, name: str, pool: Pool, *, whole: bool) -> dict[str, Any]:
        explained = pool.explain()
        shown = explained.as_dict()
        for lease in [*shown["leases"], *(each["lease"] for each in shown["connections"])]:
            if lease is not None:
                lease["borrowed_at"] = shorter(lease["borrowed_at"])
                lease["stack"] = [shorter(place) for place in lease["stack"]]
                lease["waits_at"] = [shorter(place) for place in lease["waits_at"]]
        for waiter in shown["waiters"]:
            waiter["waits_at"] = [shorter(place) for place in waiter["waits_at"]]
        for event in shown["events"]:
            event["text"] = shorter(event["text"])
        samples = list(self._timelines.get(name, ()))
        minute = self._minutes.get(name) or Minute()
        return {
            **shown,
            "name": name,
            "database": database(pool),
            "health": self._health.report(name),
            "minute": minute.until(time.monotonic(), explained.stats),
            "timeline": samples if whole else samples[-1:],
        }


class Stream:
    """The events for one reader, one a tick: always the latest, so a slow reader misses some."""

    def __init__(self, feed: Feed, until: float) -> None:
        self._feed = feed
        self._until = until
        self._started = False

    async def next(self) -> str | None:
        """Return the next event; None: the stream ends."""
        if not self._started:
            self._started = True
            return "retry: 500\n\n" + await self._feed.message(whole=True)
        if time.monotonic() >= self._until or not await self._feed.next():
            return None
        return await self._feed.message(whole=False) if self._feed.due else ALIVE


def _tick(feed: weakref.ref[Feed]) -> None:
    if (alive := feed()) is not None:
        alive.tick()
