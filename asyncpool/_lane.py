"""Which connection takes which one-shot statement: few connections, shared by many tasks.

The lane borrows connections like any other borrower, when there are statements for them, and gives
each back when nothing is under way on it any more. While others wait in the pool's line it sends
nothing new, but takes its own place there.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from psycopg.abc import Params, Query

from asyncpool._core import Core
from asyncpool._cursor import Cursor
from asyncpool._entry import Entry
from asyncpool._rider import Rider
from asyncpool._settings import duration
from asyncpool._track import OK, Track
from asyncpool.errors import PoolError
from asyncpool.stats import Counters

T = TypeVar("T")

PATIENCE = 0.005
"""Seconds that a statement may have to wait for those before it, as long as there is a way out."""
ENOUGH = 4
"""Connections beyond which more are taken for slow statements only, not for many."""


class Unfit(Exception):
    """A connection cannot be shared; who sees this takes one of its own."""


class Lane:
    """The connections of one pool that are shared now.

    Args:
        core: the pool.
        width: the most connections it may have; None: as many as the pool.
    """

    def __init__(self, core: Core[Any], width: int | None) -> None:
        self.core = core
        self._width = width
        self.unfit = False
        """Whether one of its connections could not be shared."""
        self.tracks: list[Track] = []
        self.queue: deque[Rider] = deque()
        """Those that were not sent yet, in the order in which they have come."""
        self._scout: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait for a connection, less the one that stands in the line for them."""
        return len(self.queue) - (self._scout is not None)

    @property
    def width(self) -> int:
        """The most connections it may have."""
        return self.core.settings.max_size if self._width is None else self._width

    async def ride(
        self,
        read: Callable[[Rider], T],
        query: Query,
        params: Params | None,
        timeout: float | None,
        *,
        prepare: bool | None,
        binary: bool,
    ) -> T:
        """Run a statement; returns what `read` makes of its results.

        Raises:
            PoolTimeout: there was no connection, or no answer, in time.
            TooManyRequests, PoolClosed, PoolWrongLoop: as for any borrower.
            Unfit: the pool's connections cannot be shared; nothing was sent.
            psycopg.Error: it failed.
        """
        core, loop = self.core, get_running_loop()
        if core.home is not loop or core.closed:
            core.admit()
        if timeout is not None:
            timeout = duration("timeout", timeout)
        rider = Rider(query, params, loop.create_future(), prepare, binary)
        rider.limited = timeout is not None
        track = self._pick() if not self.queue else None
        if track is not None:
            try:
                track.send(rider)
            except BaseException:
                self._moved(track)
                raise
            if timeout:
                self._limit(rider, timeout)
        else:
            self._enqueue(rider, timeout)
        try:
            await rider.future  # type: ignore[misc]
        except BaseException as error:
            self._left(rider, error)
            raise
        finally:
            if rider.timer is not None:
                rider.timer.cancel()
        core.stock.counters.requests_shared += 1
        return read(rider)

    def _pick(self) -> Track | None:
        """Where a statement is to go now; None: nowhere yet."""
        line = self.core.ledger.line.length
        if line and (line > 1 or self._scout is None):
            return None
        best, now = None, self.core.stock.time()
        for track in self.tracks:
            if track.entry.expires_at <= now or self.core.ledger.oversize:
                continue  # it is to come back, to be closed
            if track.room and (best is None or len(track.riders) < len(best.riders)):
                best = track
        if best is not None:
            slow = best.slow
            if not slow and (len(best.riders) * best.pace < PATIENCE or len(self.tracks) >= ENOUGH):
                return best
            if len(self.tracks) >= self.width:
                return None if slow else best
        elif len(self.tracks) >= self.width:
            return None
        if (entry := self.core.take_now()) is not None:
            return self._lay(entry)
        self._send_scout()
        return None if best is None or slow else best

    def _lay(self, entry: Entry[Any]) -> Track:
        conn = entry.conn
        if conn._wire is None or conn.cursor_factory is not Cursor:
            self._give_back(entry)
            self.unfit = True
            raise Unfit
        track = Track(entry, self._moved, self._spilled, self.core.stock.crew.spawn)
        track.lay()
        entry.holder, entry.shared = None, True
        self.core.ledger.shares += 1
        self.tracks.append(track)
        return track

    def _enqueue(self, rider: Rider, timeout: float | None) -> None:
        core = self.core
        limits = core.settings
        wait = limits.timeout if timeout is None else timeout
        counters = core.stock.counters
        if not wait or (limits.max_waiting and len(self.queue) >= limits.max_waiting):
            counters.requests_failed += 1
            refusals = core.refusals
            raise refusals.too_many(len(self.queue)) if wait else refusals.timed_out(wait)
        rider.joined_at = core.stock.time()
        counters.requests_queued += 1
        self.queue.append(rider)
        self._limit(rider, wait)
        if not self.tracks or len(self.tracks) < self.width:
            self._send_scout()

    def _limit(self, rider: Rider, timeout: float) -> None:
        if timeout != math.inf:
            rider.timer = get_running_loop().call_later(timeout, self._expire, rider, timeout)

    def _expire(self, rider: Rider, timeout: float) -> None:
        if rider.track is None:
            rider.fail(self.core.refusals.timed_out(timeout))
        else:
            rider.fail(self.core.refusals.unanswered(timeout))

    def _left(self, rider: Rider, error: BaseException) -> None:
        """Somebody does not wait any more."""
        counters = self.core.stock.counters
        if isinstance(error, PoolError):
            counters.requests_failed += 1
        elif rider.track is not None:
            counters.requests_shared += 1
        else:
            counters.requests_cancelled += isinstance(error, asyncio.CancelledError)
        if rider.track is not None:
            rider.track.end_unwanted()
        elif rider in self.queue:
            self.queue.remove(rider)
            if not self.queue and self._scout is not None:
                self._scout.cancel()
                self._scout = None

    def _send_scout(self) -> None:
        if self._scout is None:
            task = self.core.stock.crew.spawn(self._find(), "lane")
            self._scout = None if task.done() else task  # it may have started eagerly

    async def _find(self) -> None:
        """Stand in the pool's line for one more connection."""
        me = asyncio.current_task()
        try:
            entry = await self.core.acquire_entry(math.inf, Counters())
        except PoolError as error:
            self._fail_all(error)
            return
        except BaseException:
            if self._scout is me:
                # Not called back: this is the end of the pool or of its loop.
                self._fail_all(self.core.refusals.closed())
            raise
        finally:
            if self._scout is me:
                self._scout = None
        if not self.queue:
            self._give_back(entry)
            return
        try:
            track = self._lay(entry)
        except Unfit as error:
            self._fail_all(error)
            return
        # Whoever waits in the line behind the scout has its turn after those it stood there for.
        while self.queue and track.room:
            rider = self.queue.popleft()
            if rider.wanted:
                self._send(track, rider)
        self._moved(track)

    def _fail_all(self, error: BaseException) -> None:
        while self.queue:
            self.queue.popleft().fail(error)

    def _spilled(self, riders: list[Rider]) -> None:
        """Some have to be sent, again or elsewhere."""
        for rider in riders:
            rider.track = None
            rider.results = []
        self.queue.extendleft(reversed(riders))

    def _moved(self, track: Track) -> None:
        """Something has come to its end on a track: send the next, or give it back."""
        queue = self.queue
        if queue and self.core.closed:
            self._fail_all(self.core.refusals.closed())
        try:
            while queue:
                if not queue[0].wanted:
                    queue.popleft()
                elif (best := self._pick()) is None:
                    break
                else:
                    self._send(best, queue.popleft())
        except Unfit as error:
            self._fail_all(error)
        if not track.riders and not track.blocked:
            self._lift(track)
        if queue and len(self.tracks) < self.width:
            self._send_scout()

    def _send(self, track: Track, rider: Rider) -> None:
        if rider.timer is not None and not rider.limited:
            rider.timer.cancel()  # the pool's own limit is that of waiting for a connection
        if rider.joined_at:
            self.core.stock.counters.wait_time += self.core.stock.time() - rider.joined_at
            rider.joined_at = 0.0
        try:
            track.send(rider)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            rider.fail(error)

    def _lift(self, track: Track) -> None:
        if track not in self.tracks:
            return
        entry = track.entry
        self.tracks.remove(track)
        entry.shared = False
        if track.pgconn.status == OK:
            track.lift()
        self._give_back(entry)

    def _give_back(self, entry: Entry[Any]) -> None:
        core = self.core
        with suppress(PoolError):  # the pool was closed meanwhile
            core.release(entry.conn)
