"""One statement of the lane on its way, and who waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from psycopg._preparing import Prepare
from psycopg.abc import Params, Query

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult


class Rider:
    """One statement on its way, and who waits for its results."""

    __slots__ = (
        "again",
        "cur",
        "future",
        "key",
        "limited",
        "name",
        "params",
        "prepare",
        "query",
        "results",
        "size",
        "state",
        "timer",
        "track",
    )

    cur: Any
    """A `Cursor`, from the moment it is sent; its insides are used here."""
    key: Any

    def __init__(
        self, query: Query, params: Params | None, future: asyncio.Future[Any] | None
    ) -> None:
        self.query = query
        self.params = params
        self.future = future
        """Of its cursor; None for what the pool itself has to say to the server."""
        self.prepare: bool | None = None
        self.limited = False
        """Whether its caller has set a limit for all of the call."""
        self.results: list[PGresult] = []
        self.again = False
        """Whether it was sent a second time, which is done where it cannot have run."""
        self.state = Prepare.NO
        self.name = b""
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
        """Tell who waits."""
        if self.wanted:
            self.future.set_exception(error)  # type: ignore[union-attr]
