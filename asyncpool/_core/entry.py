"""The pool's record of one connection, from the moment it starts opening until it is closed."""

from __future__ import annotations

import asyncio
import math
from enum import Enum
from typing import Any, Generic

from asyncpool._core.driver import C
from asyncpool._core.stacks import Trace, lines


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

    Instants are `loop.time()`. `leased_at` and `holder` describe the lease in the state LEASED.
    A `..._in` attribute stores the value of `uses`, which numbers the entry's leases.
    """

    __slots__ = (
        "__weakref__",
        "cached_in_lease",
        "conn",
        "expires_at",
        "healthy_at",
        "holder",
        "late",
        "leased_at",
        "left_at",
        "manual_in",
        "number",
        "opened_at",
        "predecessor",
        "reported_in",
        "shared",
        "state",
        "statement_cache",
        "trace",
        "traced_in",
        "used_at",
        "uses",
        "watched",
    )

    conn: C

    def __init__(self, now: float, number: int = 0) -> None:
        self.number = number
        """The number of the entry in its pool, for logs and `explain()`."""
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
        self.holder: asyncio.Task[Any] | str | None = None
        """The task that holds the lease; its name, if it has ended; None during a hand-over."""
        self.uses = 0
        self.late = False
        self.shared = False
        """Whether one-shot statements of several tasks share the lease."""
        self.statement_cache: object = None
        """State that one-shot statements keep from one shared lease to the next."""
        self.cached_in_lease = 0
        """The lease that stored `statement_cache`; after any later lease it is out of date."""
        self.manual_in = 0
        """The last lease made outside a context manager; any task may return it."""
        self.reported_in = 0
        """The last lease that was reported as a leak."""
        self.trace: Trace = ()
        """The call site of `acquire`."""
        self.traced_in = 0
        """The lease that `trace` belongs to."""
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

    @property
    def holder_name(self) -> str:
        """The holder of the lease, for messages."""
        if self.shared:
            return "(one-shot statements)"
        if self.holder is None:
            return "(being handed over)"
        if isinstance(self.holder, str):
            return f"{self.holder} (ended)"
        return self.holder.get_name()

    def borrowed_at(self) -> list[str]:
        """Return the call sites of `acquire`, innermost first; empty if not recorded."""
        return lines(self.trace) if self.traced_in == self.uses else []

    def __repr__(self) -> str:
        return f"<Entry {self.state.value} uses={self.uses}>"
