"""A socket that the event loop watches, through a duplicate of its descriptor.

It knows how a registration comes and goes, on whichever loop, and what can be seen of the socket
with no wait. What is done when it is ready is another's to say: see `_psycopg/transport.py`.

What is registered with the event loop is a duplicate of the descriptor: libpq closes its own when
the server goes away, and the number may then be another's while the loop still has it.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from asyncio import get_running_loop
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context

from psycopg import waiting

READY_R, READY_W = int(waiting.READY_R), int(waiting.READY_W)

CORK: int | None = getattr(socket, "TCP_CORK", None)

HUNG_UP = 0
for _name in ("POLLHUP", "POLLERR", "POLLRDHUP"):
    HUNG_UP |= getattr(select, _name, 0)  # Windows has none of them, and no poll()


class SocketWatcher:
    """The registration of one socket with an event loop.

    Args:
        descriptor: the socket's, of which a duplicate is made.

    Raises:
        OSError: there is no descriptor left for the duplicate.
        NotImplementedError: the event loop cannot watch descriptors.
    """

    def __init__(self, descriptor: int) -> None:
        self.loop = get_running_loop()
        self.up = True
        """False once the server has hung up, or the connection is given up."""
        self.session_ended = False
        """Whether the server has said that it is about to hang up."""
        self.session_end_error: BaseException | None = None
        """What it said, as the error for who uses the connection next."""
        self.settled = False
        """Watched, and not in the middle of ending a cancelled query."""
        self.draining: asyncio.Task[None] | None = None
        """What brings a cancelled query to its end."""
        self.notify: Callable[..., None] | None = None
        """What is told, once, that the server has gone or is about to, and of errors before."""
        self.reading = False
        self._writing = False
        self._pid = os.getpid()
        self._thread = threading.get_ident()
        self._poll = select.poll()
        self.socket = socket.socket(fileno=socket.dup(descriptor))
        self._fd = self.socket.fileno()
        try:
            self.socket.setblocking(False)
            self._poll.register(self._fd, select.POLLIN | select.POLLOUT | HUNG_UP)
            self.resume()
        except BaseException:
            self.socket.close()
            raise

    def poll_events(self) -> int:
        """What the socket is ready for at this very moment, as `select.poll` says it."""
        for _, event in self._poll.poll(0):
            return event
        return 0

    def is_hung_up(self) -> bool:
        """Whether the other end is gone, be there still something to read or not.

        uvloop tells of that once and never again.
        """
        return bool(self.poll_events() & HUNG_UP)

    def report_session_end(self, error: BaseException) -> None:
        """The server is about to hang up, and answers nothing any more."""
        self.session_ended, self.session_end_error = True, error
        self._report_loss(error)

    def resume(self) -> None:
        """Watch again, or on another loop than before."""
        if not self.up or self.reading:
            return
        # The loop keeps the context of this call; a request's variables are not to stay with it.
        Context().run(self.loop.add_reader, self._fd, self._on_readable)
        self.reading = True
        self.settled = self.draining is None

    def move_to_running_loop(self) -> None:
        """Belong to the running loop from now on."""
        self._unwatch()
        self.loop = get_running_loop()
        self._thread = threading.get_ident()
        self.resume()

    def _on_readable(self) -> None:
        """What the loop calls when there is something to read."""
        raise AssertionError("bug: a watch with nobody to tell")

    def _on_writable(self) -> None:
        """What the loop calls when there is room to write, once that was asked for."""
        raise AssertionError("bug: a watch with nobody to tell")

    def _ready(self, want: int) -> int:
        """Which of these the socket is ready for, in psycopg's terms."""
        event = self.poll_events()
        ready = READY_R if event & ~select.POLLOUT else 0
        if event & (select.POLLOUT | select.POLLERR | select.POLLHUP):
            ready |= READY_W
        return ready & want

    def is_readable(self) -> bool:
        """Whether there is something to be read at this very moment."""
        return bool(self.poll_events() & ~select.POLLOUT)

    def hold(self, on: bool) -> None:
        """Let small packets wait for more, or send what there is; where TCP can do that."""
        if CORK is not None and self.socket.family != socket.AF_UNIX:
            with suppress(OSError):  # it is closed by now
                self.socket.setsockopt(socket.IPPROTO_TCP, CORK, on)

    def write_on(self) -> None:
        """Have `_on_writable` called when there is room to write."""
        if not self._writing:
            Context().run(self.loop.add_writer, self._fd, self._on_writable)
            self._writing = True

    def write_no_more(self) -> None:
        """All is written."""
        if self._writing:
            self._writing = False
            self.loop.remove_writer(self._fd)

    def lose(self) -> None:
        """The server is gone: watch no longer, and tell."""
        self.up = False
        self._unwatch()
        self._report_loss()

    def report_error(self, error: BaseException) -> None:
        """A statement has failed."""
        if self.notify is not None:
            self.notify(error, lost=False)

    def _report_loss(self, error: BaseException | None = None) -> None:
        notify, self.notify = self.notify, None
        if notify is not None:
            notify(error)

    def _stop_reading(self) -> None:
        if self.reading:
            self.reading = self.settled = False
            self.loop.remove_reader(self._fd)

    def _unwatch(self) -> None:
        if self.loop.is_closed() or os.getpid() != self._pid:
            # In a forked child the selector is the parent's too.
            self.reading = self.settled = self._writing = False
            return
        self._stop_reading()
        self.write_no_more()
