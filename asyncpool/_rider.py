"""One statement of the lane on its way, and who waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from psycopg._preparing import Prepare
from psycopg.abc import Params, Query
from psycopg.pq import Format

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from asyncpool._statement import Statement
    from asyncpool._traits import Trait

TEXT, BINARY = Format.TEXT, Format.BINARY


class Rider:
    """One statement on its way, and who waits for its results.

    Args:
        trait: what is known of it.
        query, params, prepare, binary: as for a cursor's `execute`.
    """

    __slots__ = (
        "again",
        "alone",
        "exposed",
        "format",
        "future",
        "joined_at",
        "key",
        "limited",
        "name",
        "new",
        "params",
        "prepare",
        "query",
        "results",
        "size",
        "state",
        "statement",
        "tardy",
        "task",
        "timer",
        "track",
        "trait",
        "waited",
    )

    # From the moment it is sent:
    statement: Statement
    key: tuple[bytes, tuple[int, ...]]
    """By which psycopg's prepared statements know it."""
    state: Prepare
    name: bytes
    """As which it is prepared."""

    def __init__(
        self,
        trait: Trait,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> None:
        self.trait = trait
        self.query = query
        self.params = params
        self.future: asyncio.Future[None] | None = None
        """Done when its results are there; None for what the pool itself has to say."""
        self.task: asyncio.Task[Any] | None = None
        """Who waits until it is sent."""
        self.prepare = prepare
        self.format = BINARY if binary else TEXT
        self.joined_at = 0.0
        """When it began to wait to be sent, or 0."""
        self.waited = 0.0
        """Seconds that it has waited to be sent."""
        self.alone = False
        """Whether it waits to be sent, to where nobody is sent behind it."""
        self.limited = False
        """Whether its caller has set a limit for all of the call."""
        self.results: list[PGresult] = []
        self.new = False
        """Whether psycopg's prepared statements did not know it."""
        self.again = False
        """Whether it was sent a second time, which is done where it cannot have run."""
        self.exposed = False
        """Whether a cancel request for one before it may have hit it."""
        self.tardy = False
        """Whether it was seen to be slow."""
        self.size = 0
        self.track: Any = None
        """The `Track` that it was sent on; None: it was not."""
        self.timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return self.future is not None and not self.future.done()

    @property
    def abandoned(self) -> bool:
        """Whether somebody waited for it, and does not any more."""
        return self.future is not None and self.future.done()

    def fail(self, error: BaseException) -> None:
        """Tell who waits, if there is a loop left to do so on."""
        future = self.future
        if future is not None and not future.done() and not future.get_loop().is_closed():
            future.set_exception(error)
