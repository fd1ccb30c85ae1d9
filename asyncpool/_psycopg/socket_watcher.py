"""A socket's registration with the event loop, and its state as seen without waiting.

A subclass decides what happens when the socket is ready: see `_psycopg/operation.py`.

The event loop watches a duplicate of the descriptor. libpq closes its own when the server hangs up,
and the number may then belong to another file while the loop still watches it.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from asyncio import get_running_loop
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from enum import IntEnum

from asyncpool._psycopg.internals import READY_R, READY_W

CORK: int | None = getattr(socket, "TCP_CORK", None)
MAX_CORKED = 64
"""Maximum number of statements in one packet; a packet each would cost more than the statement."""

HUNG_UP = 0
for _name in ("POLLHUP", "POLLERR", "POLLRDHUP"):
    HUNG_UP |= getattr(select, _name, 0)  # Windows has none of them, and no poll()


class SessionPhase(IntEnum):
    """The state of a session, as far as its connection's next operation is concerned."""

    READY = 0
    """The next operation may start."""
    LEFTOVERS = 1
    """The rest of a cancelled operation must be finished first."""
    DRAINING = 2
    """A task cancels a query on the server and reads it to its end."""
    ENDING = 3
    """The server has announced the end of the session; it answers nothing more."""
    LOST = 4
    """The server has hung up, or the connection is closed on this side."""


READY, LEFTOVERS, DRAINING, ENDING, LOST = SessionPhase


class SocketWatcher:
    """The registration of one socket with an event loop.

    Args:
        descriptor: the socket's descriptor; it is duplicated.

    Raises:
        OSError: no descriptor is left for the duplicate.
        NotImplementedError: the event loop cannot watch descriptors.
    """

    def __init__(self, descriptor: int) -> None:
        self.loop = get_running_loop()
        """The loop that watches the socket."""
        self.phase = READY
        """The session's state; nothing leads back from ENDING but LOST, and from LOST nothing."""
        self.session_end_error: BaseException | None = None
        """The announcement, as the error for the next use of the connection; raised once."""
        self.notify: Callable[..., None] | None = None
        """Called for each error of a statement, and a last time when the session ends."""
        self.reading = False
        """Whether the loop calls `_on_readable`; never once the session is LOST."""
        self._writing = False
        """Whether the loop calls `_on_writable`; only while the socket is full."""
        self._corked = 0
        """Calls of `cork` in this turn of the loop; 0 while each write is sent at once."""
        self._pid = os.getpid()
        """The process that owns the session; a forked child only closes the duplicate."""
        self._thread = threading.get_ident()
        """The thread of the loop."""
        self._poll = select.poll()
        """Has only this socket registered."""
        self.socket = socket.socket(fileno=socket.dup(descriptor))
        """The duplicate, which stays open after libpq has closed its own descriptor."""
        self._fd = self.socket.fileno()
        """Its number, also after it was closed."""
        try:
            self.socket.setblocking(False)
            self._poll.register(self._fd, select.POLLIN | select.POLLOUT | HUNG_UP)
            self.resume()
        except BaseException:
            self.socket.close()
            raise

    def poll_events(self) -> int:
        """Return the event bits of `select.poll` for the socket at this moment."""
        for _, event in self._poll.poll(0):
            return event
        return 0

    def is_hung_up(self) -> bool:
        """Whether the server has hung up, even if there is still something to read.

        uvloop reports a hang-up only once.
        """
        return bool(self.poll_events() & HUNG_UP)

    def report_session_end(self, error: BaseException) -> None:
        """Note that the server has announced the end of the session, and report the loss."""
        self.phase, self.session_end_error = max(self.phase, ENDING), error
        self._report_loss(error)

    def resume(self) -> None:
        """Watch the socket for reading, unless it is watched or the session is lost."""
        if self.phase is LOST or self.reading:
            return
        # The loop keeps the context of this call; an empty one keeps no caller's variables alive.
        Context().run(self.loop.add_reader, self._fd, self._on_readable)
        self.reading = True

    def move_to_running_loop(self) -> None:
        """Move the registration to the running event loop."""
        self._unwatch()
        self.loop = get_running_loop()
        self._thread = threading.get_ident()
        self.resume()

    def _on_readable(self) -> None:
        """Called by the loop when there is something to read."""
        raise AssertionError("bug: the subclass does not handle a readable socket")

    def _on_writable(self) -> None:
        """Called by the loop when there is room to write, after `watch_writable`."""
        raise AssertionError("bug: the subclass does not handle a writable socket")

    def _ready(self, want: int) -> int:
        """Return which of the wanted states the socket is ready for, as psycopg's flags."""
        event = self.poll_events()
        ready = READY_R if event & ~select.POLLOUT else 0
        if event & (select.POLLOUT | select.POLLERR | select.POLLHUP):
            ready |= READY_W
        return ready & want

    def is_readable(self) -> bool:
        """Whether there is something to read at this moment."""
        return bool(self.poll_events() & ~select.POLLOUT)

    def cork(self) -> None:
        """Send what this turn of the loop writes in few packets, if the socket can do that."""
        if not self._corked:
            self._set_cork(True)
            self.loop.call_soon(self._uncork)
        elif self._corked % MAX_CORKED == 0:
            self._set_cork(False)
            self._set_cork(True)
        self._corked += 1

    def _uncork(self) -> None:
        self._corked = 0
        self._set_cork(False)

    def _set_cork(self, on: bool) -> None:
        if CORK is not None and self.socket.family != socket.AF_UNIX:
            with suppress(OSError):  # the socket may be closed
                self.socket.setsockopt(socket.IPPROTO_TCP, CORK, on)

    def watch_writable(self) -> None:
        """Have `_on_writable` called when there is room to write."""
        if not self._writing:
            Context().run(self.loop.add_writer, self._fd, self._on_writable)
            self._writing = True

    def unwatch_writable(self) -> None:
        """Stop the calls of `_on_writable`."""
        if self._writing:
            self._writing = False
            self.loop.remove_writer(self._fd)

    def mark_lost(self) -> None:
        """Stop watching a session that has ended, and report the loss."""
        self.phase = LOST
        self._unwatch()
        self._report_loss()

    def report_error(self, error: BaseException) -> None:
        """Report the error of a statement."""
        if self.notify is not None:
            self.notify(error, lost=False)

    def _report_loss(self, error: BaseException | None = None) -> None:
        notify, self.notify = self.notify, None
        if notify is not None:
            notify(error)

    def _stop_reading(self) -> None:
        if self.reading:
            self.reading = False
            self.loop.remove_reader(self._fd)

    def _unwatch(self) -> None:
        if self.loop.is_closed() or os.getpid() != self._pid:
            # A forked child shares the selector with its parent.
            self.reading = self._writing = False
            return
        self._stop_reading()
        self.unwatch_writable()
