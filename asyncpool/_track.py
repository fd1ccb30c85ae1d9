"""One connection that the one-shot statements of many tasks share, in libpq's pipeline mode.

Each statement is followed by a Sync, so that it is a transaction of its own and its error touches
no other. They run on the server one after the other, in the order in which they were sent, and so
come the results. Which statements go here is another's to say: see `_lane.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg._preparing import Prepare
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus

from asyncpool._cancel import AGAIN, prepare, request
from asyncpool._entry import Entry
from asyncpool._rider import Rider
from asyncpool._statement_cache import cache_of
from asyncpool._traits import SLOW, Trait, Traits
from asyncpool._wire import DRAIN_TIMEOUT

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from asyncpool._wire import Wire

logger = logging.getLogger("asyncpool")

SYNC, FATAL = int(ExecStatus.PIPELINE_SYNC), int(ExecStatus.FATAL_ERROR)
ABORTED = int(ExecStatus.PIPELINE_ABORTED)
OK, BAD = int(ConnStatus.OK), int(ConnStatus.BAD)

DEPTH = 128
"""The most statements that are under way on one connection."""
BYTES = 1 << 20
"""The most bytes of parameters under way, but for a statement that is alone."""
BATCH = 64
"""The most statements that go out together: a packet for each would cost more than they do."""
RECENT = 1.0
"""Seconds for which a cancel request may reach a statement that it was not meant for."""

NO_SUCH_STATEMENT, CANCELLED = b"26000", b"57014"


class Track:
    """A leased connection in pipeline mode, from `lay` to `lift`.

    Args:
        entry: the pool's record of an idle `asyncpool.Connection`, which is lent to this.
        traits: what the pool knows of statements.
        moved: called whenever a statement has come to its end.
        spilled: called with those that have to go elsewhere, for they cannot have run here.
        spawn: starts a task of the pool's.
    """

    def __init__(
        self,
        entry: Entry[Any],
        traits: Traits,
        moved: Callable[[Track], None],
        spilled: Callable[[list[Rider]], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self.entry = entry
        self.conn = entry.conn
        self.pgconn = self.conn.pgconn
        self._cache = cache_of(entry)
        self._to_flush = self.conn._prepared._to_flush
        self.wire: Wire = self.conn._wire
        self.riders: deque[Rider] = deque()
        """Those under way, in the order in which they were sent; the first one is running."""
        self.since = 0.0
        """When the first one began to run."""
        self.pace = 0.0
        """Seconds that a statement took of late."""
        self.load = 0
        """Bytes of parameters under way."""
        self.blocked = False
        """Whether nothing may be sent: a cancel request is on its way."""
        self.cancelled_at = 0.0
        self._ending_since = 0.0
        """When the server was first asked to cancel the statement that runs, or 0."""
        self._held = 0
        """Statements that wait for the packet's departure, or 0 where each departs at once."""
        self._due = False
        """Whether results were seen to be there that are not taken in yet."""
        self._alone = False
        """Whether the one that runs was sent with none before it."""
        self._traits = traits
        self._moved = moved
        self._spilled = spilled
        self._spawn = spawn
        self._timer: asyncio.TimerHandle | None = None

    def lay(self) -> None:
        """Begin."""
        self.pgconn.enter_pipeline_mode()
        self.wire.resume()
        self.wire.track = self

    def lift(self) -> None:
        """Leave the connection as it was; nothing may be under way."""
        assert not self.riders, "bug: a track lifted under its riders"
        self._stop()
        self.pgconn.exit_pipeline_mode()
        if self.conn._notify_handlers:
            self.wire.catch_up()  # what came among the results

    @property
    def room(self) -> bool:
        """Whether it takes one more: nobody is sent behind what may be slow."""
        riders = self.riders
        return (
            not self.blocked
            and (not riders or (riders[-1].trait.credit >= 0 and len(riders) < DEPTH))
            and self.load < BYTES
            and self.pgconn.status == OK
        )

    def is_slow(self) -> bool:
        """Whether the statement that runs has taken so long that nobody should wait behind it.

        If so, that is noted of its text.
        """
        if self._due or not self.riders or self._time_left() > 0:
            return False
        self._due = self.wire.is_readable()  # this loop is what was slow
        first = self.riders[0]
        if not self._due and not first.tardy and self._traits.trip is not None:
            first.tardy = True
            first.trait.was_slow()
        return not self._due

    def send(self, rider: Rider) -> None:
        """Send a statement; if this raises, nothing of it was sent.

        Raises:
            psycopg.Error, TypeError, ...: its parameters cannot be converted.
        """
        if self._to_flush:
            for _ in self._cache.evict():
                self._sent(_ours())
        self._cache.convert(rider)
        try:
            self._cache.send(rider)
        except BaseException:
            self._sent(_ours())  # after what may have gone out
            raise
        self._sent(rider)

    def end_unwanted(self) -> None:
        """If nobody waits for the statement that runs any more, have the server cancel it."""
        if self.blocked or not self.riders or not self.riders[0].abandoned:
            return
        if self._time_left() > 0:
            # It may well be over before a request could be there.
            self._look_later()
        elif (cancel := prepare(self.pgconn)) is not None:
            self.blocked = True
            self._spawn(self._cancel(cancel), "cancel")

    def lost(self, why: str = "") -> None:
        """The connection is gone: tell all who wait."""
        self._stop()
        said = self._farewell()
        riders, self.riders = self.riders, deque()
        self.load = 0
        if riders:
            if said is not None:
                # Said while it had the first before it: at those behind it has not looked.
                riders.popleft().fail(said)
                self._spilled([rider for rider in riders if rider.wanted])
            else:
                why = why or self.pgconn.get_error_message() or "the connection was lost"
                for rider in riders:
                    rider.fail(psycopg.OperationalError(why))
        self._moved(self)

    # What follows runs in the loop's callbacks.

    def readable(self) -> None:
        """Take in what has come, and hand it out."""
        pgconn, done = self.pgconn, 0
        self._due = False
        with suppress(psycopg.Error):
            while True:
                pgconn.consume_input()
                done += self._take_in()
                # The server's last words and the end of file are two reads.
                if pgconn.status == BAD or not self.wire.is_hung_up():
                    break
        if done:
            self._cache.refresh()
            now = monotonic()
            spent = now - self.since
            self.pace += (spent / done - self.pace) / 8
            if self._alone:
                self._traits.timed(spent)
            self.since, self._ending_since, self._alone = now, 0.0, False
            if self.riders and self.riders[-1].trait.credit < 0:
                self._look_later()
        if pgconn.status == BAD:
            if (said := self._farewell()) is not None:
                self.wire.tell_of_error(said)
            self.wire.lose()
            self.lost()
        elif done or not self.riders:
            self._moved(self)
            self.end_unwanted()

    def writable(self) -> None:
        """Send on."""
        try:
            if self.pgconn.flush() == 0:
                self.wire.write_no_more()
        except psycopg.Error:
            self.readable()

    def _stop(self) -> None:
        self.wire.track = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_in(self) -> int:
        """Hand out the results that are complete; returns how many."""
        pgconn, riders, done = self.pgconn, self.riders, 0
        while riders and not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == BAD:
                    break  # it would be None for ever
            elif result.status == SYNC:
                done += 1
                self._arrived(riders.popleft())
            else:
                riders[0].results.append(result)
        return done

    def _sent(self, rider: Rider) -> None:
        pgconn = self.pgconn
        if not self.riders:
            self.since, self._alone = monotonic(), True
        else:
            self._gather()
        pgconn.pipeline_sync()
        self.load += rider.size
        rider.track = self
        self.riders.append(rider)
        if pgconn.flush():
            self.wire.write_on()
        if rider.trait.credit < 0:
            self._look_later()

    def _gather(self) -> None:
        """While the server is busy, let what is sent in one turn of the loop go out together."""
        if not self._held:
            self.wire.hold(True)
            self.wire.loop.call_soon(self._let_go)
        elif self._held % BATCH == 0:
            self.wire.hold(False)
            self.wire.hold(True)
        self._held += 1

    def _let_go(self) -> None:
        self._held = 0
        self.wire.hold(False)

    def _arrived(self, rider: Rider) -> None:
        self.load -= rider.size
        if rider.future is None:
            return
        if rider.trait.credit < 0 and not rider.tardy:
            rider.trait.credit += 1
        self._cache.arrived(rider)
        failure = rider.results[-1] if rider.results else None
        if failure is not None and failure.status == ABORTED:
            failure = rider.results[0]  # it was its PREPARE that failed
        if failure is None or failure.status != FATAL:
            failure = None
        elif self._heals(rider, failure):
            return
        if not rider.future.done():
            rider.future.set_result(None)
        if failure is not None:
            self.wire.tell_of_error(self._error(failure))

    def _heals(self, rider: Rider, error: PGresult) -> bool:
        """Whether a statement that has failed before it ran is sent once more."""
        if not rider.wanted:
            return False
        state = error.error_field(DiagnosticField.SQLSTATE)
        where = error.error_field(DiagnosticField.SOURCE_FUNCTION)
        if state == CANCELLED and rider.exposed:
            self._spilled([rider])  # each request of ours may have hit one that it was not for
            return True
        if rider.again:
            return False
        if rider.state is not Prepare.NO and (
            state == NO_SUCH_STATEMENT or where == b"RevalidateCachedQuery"
        ):
            # Its plan is of before a change to the tables, or its PREPARE had failed.
            self._cache.forget(rider)
            rider.prepare = False
        elif state != CANCELLED or monotonic() - self.cancelled_at > RECENT:
            return False
        rider.again = True
        self._spilled([rider])
        return True

    def _farewell(self) -> psycopg.Error | None:
        """The server's last words to the statement that runs, if there were any."""
        results = self.riders[0].results if self.riders else None
        return self._error(results[-1]) if results and _is_farewell(results[-1]) else None

    def _error(self, result: PGresult) -> psycopg.Error:
        return psycopg.errors.error_from_result(result, encoding=self.pgconn._encoding)

    def _look_later(self, pause: float = 0.0) -> None:
        if self._timer is None:
            after = max(self._time_left(), pause)
            self._timer = self.wire.loop.call_later(after, self._look_again)

    def _time_left(self) -> float:
        """Seconds until the one that runs is slow; its answer needs some for the way."""
        return self.since + SLOW + (self._traits.trip or 0.0) - monotonic()

    def _look_again(self) -> None:
        """See whether what runs is slow, and whether anybody still wants it."""
        self._timer = None
        slow = self.is_slow()
        self.end_unwanted()
        if not slow and self.riders and self.riders[-1].trait.credit < 0:
            self._look_later()

    async def _cancel(self, cancel: Any) -> None:
        hopeless = False
        first = self.riders[0] if self.riders else None
        for rider in self.riders:
            rider.exposed = True
        try:
            self.cancelled_at = monotonic()
            self._ending_since = self._ending_since or self.cancelled_at
            await request(cancel)
        except (psycopg.Error, TimeoutError) as error:
            logger.info("a cancel request failed: %r", error)
            hopeless = True
        finally:
            self.cancelled_at = now = monotonic()
            self.blocked = False
            if self.wire.loop.is_closed():
                pass  # nothing is to follow on it
            elif self._ending_since and (hopeless or now - self._ending_since > DRAIN_TIMEOUT):
                self._give_up()
            else:
                self._moved(self)
                if self.riders and self.riders[0] is first:
                    self._look_later(AGAIN)  # its end may be on its way
                else:
                    self.end_unwanted()

    def _give_up(self) -> None:
        """The statement that runs cannot be ended: let go of the connection."""
        self.pgconn.finish()
        self.wire.lose()
        self.lost("the connection was closed: a cancelled statement before this one did not end")


def _ours() -> Rider:
    """What the pool itself has to say."""
    return Rider(Trait(shares=True, credit=0), b"")


def _is_farewell(result: PGresult) -> bool:
    severity = result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
    return severity in (b"FATAL", b"PANIC")
