"""The method of the pool that listens for notifications."""

from __future__ import annotations

from typing import Any, Literal, overload

from psycopg import Notify

from asyncpool._blocks.listener import Gap
from asyncpool._blocks.notifications import Notifications, SupportsListening
from asyncpool._core.settings import duration
from asyncpool._psycopg.driver import ACT
from asyncpool._psycopg.listening import check_channels


class Listening(SupportsListening[ACT]):
    """`listen`."""

    @overload
    def listen(
        self, *channels: str, gaps: Literal[False] = False, timeout: float | None = None
    ) -> Notifications[Notify]: ...

    @overload
    def listen(
        self, *channels: str, gaps: Literal[True], timeout: float | None = None
    ) -> Notifications[Notify | Gap]: ...

    def listen(
        self, *channels: str, gaps: bool = False, timeout: float | None = None
    ) -> Notifications[Any]:
        """Borrow a connection for a block that iterates over notifications.

        `async with pool.listen("orders") as notifications`, then `async for` in the block: each
        item is a `psycopg.Notify` with `channel`, `payload` and `pid`. The connection listens
        before the block begins. If it is lost then, the pool listens again on another one, as soon
        as it can; notifications sent meanwhile are missed. When the pool is closed, the iteration
        ends without an error. The connection counts in the pool's size, and its lease is not
        reported as a leak. Sessions and overridden methods are not used. Behind PgBouncer it needs
        session pooling; transaction mode is detected where the pool has a second connection.

        Args:
            channels: the names, exactly as written: they are not folded to lower case.
            gaps: whether the iteration also yields a `Gap` wherever notifications may be missing;
                if not, the log has a warning.
            timeout: seconds to wait for the first connection, and for another one if it is lost
                before it listens; None: the pool's `timeout`.

        Raises:
            TypeError: there is no channel, or one is not a str.
            ValueError: a name is empty, longer than 63 bytes, or has a NUL.
            PoolTimeout: on entry, if no connection became available in time, or the server did not
                answer.
            TooManyRequests, PoolClosed: on entry, as for `connection`.
            psycopg.NotSupportedError: on entry, if a pooler in between gives the session that
                listens to other clients.
            psycopg.Error: on entry, if the server refuses LISTEN, as a standby does.
        """
        if timeout is not None:
            timeout = duration("timeout", timeout)
        names = check_channels(channels)
        return Notifications(self, names, timeout, reports_gaps=bool(gaps))
