"""One one-shot statement on its way, and the caller that waits for its results."""

from __future__ import annotations

import asyncio
import math
from copy import copy
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import adapt
from psycopg._preparing import Prepare
from psycopg._queries import PostgresQuery
from psycopg.abc import Params, Query
from psycopg.pq import Format

from asyncpool._sql.kinds import Kind

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from asyncpool._pipeline.profiles import StatementProfile

TEXT, BINARY = Format.TEXT, Format.BINARY
AGAIN = object()
"""The outcome of a statement that is to be sent again."""


class Statement:
    """A query in PostgreSQL's terms, with what writes its values and reads its rows.

    Raises:
        psycopg.Error, TypeError, ...: the values cannot be converted.
    """

    __slots__ = ("pgq", "tx")

    def __init__(
        self, conn: psycopg.AsyncConnection[Any], query: Query, params: Params | None
    ) -> None:
        self.tx = adapt.Transformer(conn)
        self.pgq = PostgresQuery(self.tx)
        self.pgq.convert(query, params)


class Request:
    """One statement on its way.

    Args:
        profile: what is known of its text.
        query, params, prepare, binary: as for a cursor's `execute`.
    """

    # Set when it is sent:
    statement: Statement
    key: tuple[bytes, tuple[int, ...]]
    """The key of psycopg's map of prepared statements."""
    state: Prepare
    name: bytes
    """The name under which it is prepared."""
    conn: Any
    """The connection."""
    row_factory: Any
    """The connection's at that moment."""
    results: list[PGresult]
    exposed: bool
    """Whether a cancel request for a statement before it may have hit it."""
    new: bool
    """Whether psycopg's map of prepared statements did not know it."""

    future: asyncio.Future[Any] | None = None
    """Done with AGAIN when it is to be sent again, else with None. None: it is the pool's own."""
    began = 0.0
    """The instant at which its caller has come."""
    limit = math.inf
    """Seconds from then on for all of it, the wait for a connection included."""
    timer: asyncio.TimerHandle | None = None
    """Ends the wait for its results, where its caller has set a limit."""
    entry: Any = None
    """The entry of a connection that its caller is given to run it on."""
    channel: Any = None
    """The `Channel` on which it is under way; None: it is not."""
    shared = False
    """Whether that channel is, or was, a shared one."""
    size = 0
    """Bytes of its text and parameters."""
    slow = False
    """Whether it was seen to be slow."""
    again = False
    """Whether it was sent a second time because the server had refused to run it."""

    def __init__(
        self,
        profile: StatementProfile,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> None:
        self.profile = profile
        self.query = query
        self.params = params
        self.prepare = prepare
        self.format = BINARY if binary else TEXT

    @property
    def shares(self) -> bool:
        """Whether it may be sent behind another's: a plain read, neither slow nor large."""
        return not self.profile.credit and self.size <= LARGE

    @property
    def needs(self) -> bool:
        """Whether it is taken to need a connection to itself; an unseen read is not."""
        profile = self.profile
        return profile.kind is not Kind.READ or profile.is_slow or self.size > LARGE

    @property
    def wanted(self) -> bool:
        """Whether its caller still waits."""
        return self.future is not None and not self.future.done()

    @property
    def abandoned(self) -> bool:
        """Whether its caller has left."""
        return self.future is not None and self.future.done()

    def left_behind(self) -> Request:
        """Return what stays where this was sent, when it is sent elsewhere: nobody wants it."""
        other = copy(self)
        other.leave()
        return other

    def leave(self) -> None:
        """Note that its caller has left; the error that it got, if any, is not kept."""
        assert self.future is not None, "bug: nobody has ever waited for it"
        self.future = self.future.get_loop().create_future()
        self.future.cancel()

    def end(self, outcome: object = None) -> None:
        """Wake the caller: the results are there, or it is to do something else; see `future`.

        An outcome that is an exception is raised there.
        """
        future = self.future
        if future is None or future.done() or future.get_loop().is_closed():
            return
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


LARGE = 1 << 16
"""Bytes of text and parameters from which on a statement is not sent with others."""
