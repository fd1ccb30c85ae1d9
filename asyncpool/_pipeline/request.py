"""A request: one one-shot statement, and the future on which its caller waits."""

from __future__ import annotations

import asyncio
import math
from copy import copy
from typing import TYPE_CHECKING, Any

from psycopg.abc import Params, Query

from asyncpool._psycopg.direct_future import DirectFuture
from asyncpool._psycopg.sending import BINARY, TEXT, Execution
from asyncpool._sql.kinds import Kind

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from asyncpool._pipeline.profiles import StatementProfile

AGAIN = object()
"""The outcome of a request that must be sent again."""


class Request(Execution):
    """One one-shot statement.

    Args:
        profile: the profile of its text.
        query, params, prepare, binary: as for a cursor's `execute`.
    """

    # Set when the request is sent:
    conn: Any
    """The connection."""
    row_factory: Any
    """The connection's row factory when the request was sent."""
    results: list[PGresult]
    may_be_cancelled: bool
    """Whether a cancel request may have hit this request in place of one before it."""

    future: DirectFuture | None = None
    """Done with AGAIN if the request must be sent again, else with None.

    None for the pool's own requests."""
    started_at = 0.0
    """The instant of the call."""
    limit = math.inf
    """Seconds from `started_at` for all of it, the wait for a connection included."""
    timer: asyncio.TimerHandle | None = None
    """Ends the wait for the results if there is a limit."""
    entry: Any = None
    """The entry of a connection on which the caller has to run the statement itself."""
    channel: Any = None
    """The `Channel` on which the request is in flight, or None."""
    ended: asyncio.Future[None] | None = None
    """Done when the request has left its channel; None unless it is being cancelled there."""
    shared = False
    """Whether that channel is, or was, shared."""
    size = 0
    """Bytes of its text and parameters."""
    slow = False
    """Whether the running statement was slow."""
    retried = False
    """Whether the request was sent a second time because the server had refused to run it."""

    def __init__(
        self,
        profile: StatementProfile,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> None:
        # Execution.__init__() is not called to save the time of a call.
        self.query = query
        self.params = params
        self.prepare = prepare
        self.format = BINARY if binary else TEXT
        self.profile = profile

    @property
    def shares(self) -> bool:
        """Whether it may be sent behind another request: a plain read, known quick, not large."""
        return not self.profile.credit and self.size <= LARGE

    @property
    def needs_own_connection(self) -> bool:
        """Whether it is expected to need a connection to itself; a new read is not."""
        profile = self.profile
        return profile.kind is not Kind.READ or profile.credit < -1 or self.size > LARGE

    @property
    def is_awaited(self) -> bool:
        """Whether the caller still waits."""
        return self.future is not None and not self.future.done()

    @property
    def is_abandoned(self) -> bool:
        """Whether the caller no longer waits."""
        return self.future is not None and self.future.done()

    def discarded_copy(self) -> Request:
        """Return an abandoned copy, to stay on a channel while this is sent on another one."""
        other = copy(self)
        other.abandon()
        return other

    def abandon(self) -> None:
        """Mark the request as abandoned, and drop the caller's error."""
        assert self.future is not None, "bug: a request without a caller is abandoned"
        self.future = DirectFuture(loop=self.future.get_loop())
        self.future.cancel()

    def end(self, outcome: object = None) -> None:
        """Wake the caller with an outcome, see `future`; an exception is raised in the caller."""
        future = self.future
        if future is None or future.done() or future.get_loop().is_closed():
            return
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


LARGE = 1 << 16
"""Bytes of text and parameters above which a request does not share a channel."""
