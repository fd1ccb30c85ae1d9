"""The pool's record of one connection, from the moment it starts opening until it is closed."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any, Generic

from asyncpool._core.driver import C
from asyncpool._core.lease import NO_LEASE, Lease
from asyncpool._core.lines import Line


class State(Enum):
    """The state of an entry. The size of the pool counts all entries but the CLOSED ones."""

    OPENING = "opening"
    IDLE = "idle"
    LEASED = "leased"
    CLEANING = "cleaning"
    CLOSING = "closing"
    CLOSED = "closed"
    """Removed from the ledger; no longer part of the size."""


RETIRED = -math.inf
"""The `expires_at` of a retired entry: it is past its lifetime at any instant."""


class Entry(Generic[C]):
    """The record of one connection; it exists before the connection does.

    Instants are `loop.time()`.
    """

    __slots__ = (
        "__weakref__",
        "conn",
        "expires_at",
        "healthy_at",
        "late",
        "lease",
        "leased_at",
        "left_at",
        "number",
        "opened_at",
        "predecessor",
        "state",
        "used_at",
        "uses",
        "wait_before",
        "watched",
    )

    conn: C

    def __init__(self, now: float) -> None:
        self.number = 0
        """The number of the connection in its pool, from 1, for logs and `explain()`."""
        self.state = State.OPENING
        self.opened_at = now
        self.expires_at = now
        self.used_at = now
        """End of the last lease, or when the connection was opened."""
        self.healthy_at = now
        """Last successful ping, or when the connection was opened."""
        self.left_at = now
        """Start of the last ping or close."""
        self.leased_at = now
        """Start of the last lease."""
        self.lease: Lease = NO_LEASE
        """The current lease; `NO_LEASE` also in the state LEASED, during a hand-over."""
        self.uses = 0
        """The number of leases so far."""
        self.wait_before: tuple[int, float, Line[Any]] | None = None
        """The last use that had to wait: its number, when it joined the queue, and its line."""
        self.late = False
        self.watched = False
        """Whether the driver reports a lost connection by itself; if not, ask `is_alive`."""
        self.predecessor: Entry[C] | None = None
        """The entry to retire once this one is open."""

    @property
    def is_retired(self) -> bool:
        """Whether it must not be leased again."""
        return self.expires_at == RETIRED

    def retire(self) -> None:
        """Forbid further leases: the connection or its server is lost, or the pool was drained."""
        self.expires_at = RETIRED

    def __repr__(self) -> str:
        return f"<Entry {self.state.value} uses={self.uses}>"
