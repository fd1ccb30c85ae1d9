"""The driver for pools whose sessions have marks: a session that has lost its mark is not clean."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asyncpool._psycopg.driver import ACT, PsycopgDriver
from asyncpool._psycopg.marks import SupportsMarks
from asyncpool._psycopg.own_statements import ResetLevel
from asyncpool._psycopg.preparing import RunCounts
from asyncpool._psycopg.sources import Conninfo, Kwargs


class MarkedDriver(PsycopgDriver[ACT]):
    """A `PsycopgDriver` that looks at the mark of each returned session, without a round trip."""

    def is_clean(self, conn: ACT) -> bool:
        """Whether the connection is idle and needs no reset before the next lease."""
        return super().is_clean(conn) and not (self.marks is not None and self.marks.is_lost(conn))


def make_driver(  # noqa: PLR0917 - those of the pool, in its order
    marks: SupportsMarks | None,
    conninfo: Conninfo,
    kwargs: Kwargs | None,
    connection_class: type[ACT],
    configure: Callable[[ACT], Awaitable[None]] | None,
    reset: ResetLevel | Callable[[ACT], Awaitable[None]] | None,
    runs: RunCounts | None,
) -> PsycopgDriver[ACT]:
    """Return the driver of a pool, whose sessions get these marks, if any."""
    kind: type[PsycopgDriver[ACT]] = PsycopgDriver if marks is None else MarkedDriver
    return kind(conninfo, kwargs, connection_class, configure, reset, runs=runs, marks=marks)
