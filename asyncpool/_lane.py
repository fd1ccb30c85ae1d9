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
from contextlib import suppress
from typing import Any

import psycopg

from asyncpool._core import Core
from asyncpool._cursor import Cursor
from asyncpool._entry import Entry
from asyncpool._ledger import Stranded
from asyncpool._rider import Rider
from asyncpool._settings import duration
from asyncpool._track import OK, Track
from asyncpool._traits import Traits
from asyncpool.errors import PoolError, PoolTimeout
from asyncpool.stats import Counters

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

    def __init__(self, core: Core[Any], width: int | None, *, unfit: bool = False) -> None:
        self.core = core
        self._width = width
        self.unfit = unfit
        """Whether connections cannot be shared, or are not to be."""
        self.traits = Traits()
        self.tracks: list[Track] = []
        self.queue: deque[Rider] = deque()
        """Those that were not sent yet, in the order in which they have come."""
        self._scouts: list[asyncio.Task[None]] = []
        """Who stand in the pool's line for those in the queue."""
        self._alone = 0
        """How many in the queue need a connection each."""

    @property
    def waiting(self) -> int:
        """How many wait for a connection, less those who stand in the line for them."""
        return len(self.queue) - len(self._scouts)

    @property
    def width(self) -> int:
        """The most connections it may have."""
        return self.core.settings.max_size if self._width is None else self._width

    def stranded(self) -> list[Stranded]:
        """The tasks of those that wait, since when, and how each is told an error."""
        return [(each.task, each.joined_at, each.fail) for each in self.queue if each.wanted]

    async def ride(self, rider: Rider, timeout: float | None) -> Rider:
        """Run a statement; returns it with its results.

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
            rider.limited = True
        rider.future = future = loop.create_future()
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
            await future
        except BaseException as error:
            self._left(rider, error)
            raise
        finally:
            rider.task = None  # its exception's traceback has this frame
            if rider.timer is not None:
                rider.timer.cancel()
            if rider.waited >= core.slow_wait:
                core.tell_of_wait(rider.waited, core.stock.counters)
        core.stock.counters.requests_shared += 1
        return rider

    def _pick(self) -> Track | None:
        """Where a statement is to go now; None: nowhere yet."""
        if self.core.ledger.line.length > len(self._scouts):
            return None
        best, now = None, self.core.stock.time()
        for track in self.tracks:
            if track.entry.expires_at <= now or self.core.ledger.oversize:
                continue  # it is to come back, to be closed
            if track.room and (best is None or len(track.riders) < len(best.riders)):
                best = track
        if best is not None:
            slow = best.is_slow()
            if not slow and (len(best.riders) * best.pace < PATIENCE or len(self.tracks) >= ENOUGH):
                return best
            if len(self.tracks) >= self.width:
                return None if slow else best
        elif len(self.tracks) >= self.width:
            return None
        if (entry := self.core.take_now()) is not None:
            self.core.ledger.shares += 1
            return self._lay(entry)
        self._send_scouts()
        return None if best is None or slow else best

    def _lay(self, entry: Entry[Any]) -> Track:
        conn = entry.conn
        entry.holder, entry.shared = None, True
        if conn._wire is None or conn.cursor_factory is not Cursor:
            self._give_back(entry)
            self.unfit = True
            raise Unfit
        track = Track(entry, self.traits, self._moved, self._spilled, self.core.stock.crew.spawn)
        track.lay()
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
            if wait:
                raise refusals.too_many(len(self.queue))
            counters.requests_timed_out += 1
            raise refusals.timed_out(wait)
        rider.joined_at = core.stock.time()
        rider.task = asyncio.current_task()
        counters.requests_queued += 1
        self._note(rider)
        self.queue.append(rider)
        self._limit(rider, wait)
        self._send_scouts()

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
            counters.requests_timed_out += isinstance(error, PoolTimeout)
        elif rider.track is not None:
            counters.requests_shared += 1
        else:
            counters.requests_cancelled += isinstance(error, asyncio.CancelledError)
        if rider.track is not None:
            rider.track.end_unwanted()
        elif rider in self.queue:
            self._has_waited(rider)
            self.queue.remove(rider)
            self._alone -= rider.alone
            while self._scouts and not self.queue:
                with suppress(RuntimeError):  # its loop is closed: nothing runs there
                    self._scouts.pop().cancel()

    def _note(self, rider: Rider) -> None:
        rider.alone = rider.trait.credit < 0
        self._alone += rider.alone

    def _popleft(self) -> Rider:
        rider = self.queue.popleft()
        self._alone -= rider.alone
        return rider

    def _send_scouts(self) -> None:
        """See that as many stand in the line as the queue needs connections, and one at least."""
        wanted = min(max(self._alone, 1), self.width - len(self.tracks))
        while len(self._scouts) < wanted:
            task = self.core.stock.crew.spawn(self._find(), "lane")
            if task.done():
                break  # it has started eagerly, and found what is wrong
            self._scouts.append(task)

    async def _find(self) -> None:
        """Stand in the pool's line for one more connection."""
        me = asyncio.current_task()
        try:
            entry = await self.core.acquire_entry(math.inf, Counters())
        except PoolError as error:
            self._fail_all(error)
            return
        except BaseException:
            if me in self._scouts:
                # Not called back: this is the end of the pool or of its loop.
                self._fail_all(self.core.refusals.closed())
            raise
        finally:
            if me in self._scouts:
                self._scouts.remove(me)
        self.core.ledger.shares += 1
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
            rider = self._popleft()
            if rider.wanted:
                self._send(track, rider)
        self._moved(track)

    def _fail_all(self, error: BaseException) -> None:
        while self.queue:
            self._popleft().fail(error)

    def _spilled(self, riders: list[Rider]) -> None:
        """Some have to be sent, again or elsewhere."""
        for rider in riders:
            rider.track = None
            rider.results = []
            rider.exposed = False
        for rider in reversed(riders):
            self._note(rider)
            self.queue.appendleft(rider)

    def _moved(self, track: Track) -> None:
        """Something has come to its end on a track: send the next, or give it back."""
        queue = self.queue
        if queue and self.core.closed:
            self._fail_all(self.core.refusals.closed())
        try:
            while queue:
                if not queue[0].wanted:
                    self._popleft()
                elif (best := self._pick()) is None:
                    break
                else:
                    self._send(best, self._popleft())
        except Unfit as error:
            self._fail_all(error)
        if not track.riders and not track.blocked:
            self._lift(track)
        if queue:
            self._send_scouts()

    def _send(self, track: Track, rider: Rider) -> None:
        if rider.timer is not None and not rider.limited:
            rider.timer.cancel()  # the pool's own limit is that of waiting for a connection
        if rider.joined_at:
            self._has_waited(rider)
        try:
            track.send(rider)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            rider.fail(error)

    def _has_waited(self, rider: Rider) -> None:
        rider.waited = self.core.stock.time() - rider.joined_at
        self.core.stock.counters.note_wait(rider.waited)
        rider.joined_at = 0.0

    def _lift(self, track: Track) -> None:
        if track not in self.tracks:
            return
        entry = track.entry
        self.tracks.remove(track)
        if track.pgconn.status == OK:
            with suppress(psycopg.Error):  # it is busy, at the exit of the interpreter
                track.lift()
        self._give_back(entry)

    def _give_back(self, entry: Entry[Any]) -> None:
        with suppress(PoolError):  # the pool was closed meanwhile
            self.core.release_shared(entry)
