"""LISTEN on a connection that is leased for it, and what undoes that before the next lease."""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import psycopg

from asyncpool._psycopg.handle import Baseline, forget_notifications, notify_handlers
from asyncpool._psycopg.own_statements import run

C = TypeVar("C", bound=psycopg.AsyncConnection[Any])

MAX_BYTES = 63
"""The longest name of a channel: PostgreSQL cuts a longer identifier off without an error."""


def check_channels(names: tuple[str, ...]) -> tuple[str, ...]:
    """Check the names of channels and return each once.

    Raises:
        TypeError: there is none, or one is not a str.
        ValueError: PostgreSQL has no channel of that name.
    """
    if not names:
        msg = "listen() needs the name of at least one channel"
        raise TypeError(msg)
    for name in names:
        if not isinstance(name, str):
            msg = f"the name of a channel must be a str, not {name!r}: write listen('a', 'b')"
            raise TypeError(msg)
        size = len(name.encode(errors="surrogatepass"))
        if not 0 < size <= MAX_BYTES:
            msg = f"the name of a channel must have 1 to {MAX_BYTES} bytes: {name!r} has {size}"
            raise ValueError(msg)
        if re.search("[\0\ud800-\udfff]", name):
            msg = f"the name of a channel must have no NUL and no surrogate: got {name!r}"
            raise ValueError(msg)
    return tuple(dict.fromkeys(names))


class Subscription(Generic[C]):
    """The channels on which one connection listens, and its attributes before that.

    psycopg passes a notification either to handlers or to `notifies()`, so that the connection has
    no handlers while it listens.

    Args:
        conn: a leased connection, with nothing open on it.
        channels: the names, checked.
    """

    def __init__(self, conn: C, channels: tuple[str, ...]) -> None:
        self.conn = conn
        self._channels = channels
        self._before = Baseline.of(conn)

    async def start(self) -> None:
        """Listen; notifications for earlier borrowers are dropped."""
        forget_notifications(self.conn)
        notify_handlers(self.conn).clear()
        await self.conn.set_autocommit(True)
        await self._run("LISTEN", self._channels)

    async def add(self, channel: str) -> None:
        """Listen on one more channel."""
        self._channels = (*self._channels, channel)
        await self._run("LISTEN", (channel,))

    async def notify(self, channel: str) -> None:
        """Send a notification without a payload."""
        await self._run("NOTIFY", (channel,))

    async def stop(self) -> None:
        """Listen no more, drop what was not read, and restore the attributes.

        No transaction may be open.
        """
        await self._run("UNLISTEN", self._channels)
        await self._before.restore(self.conn)

    async def _run(self, command: str, channels: tuple[str, ...]) -> None:
        """Run a command for each channel, all in one round trip."""
        text = "; ".join(f"{command} {_quoted(name)}" for name in channels)
        await run(self.conn, text.encode(self.conn.info.encoding))


def is_end_of_session(error: psycopg.OperationalError) -> bool:
    """Whether an error of a statement is the end of its session: not every one has a message."""
    return error.sqlstate is None or error.diag.severity_nonlocalized in ("FATAL", "PANIC")


def _quoted(name: str) -> str:
    """Return a name as an identifier that keeps its case."""
    return '"' + name.replace('"', '""') + '"'
