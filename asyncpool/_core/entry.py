"""The pool's record of one connection, from the moment it starts opening until it is closed."""

from __future__ import annotations

import asyncio
import math
from enum import Enum
from typing import Any, Generic

from asyncpool._core.driver import C
from asyncpool._core.stacks import Trace, lines


class State(Enum):
    """Where an entry is; together they make up the size of the pool."""

    OPENING = "opening"
    IDLE = "idle"
    LEASED = "leased"
    CLEANING = "cleaning"
    CLOSING = "closing"
    CLOSED = "closed"
    """Struck off; it counts no more."""


RETIRED = -math.inf
"""The end of a life that was cut short."""


class Entry(Generic[C]):
    """One place in the pool; it exists before its connection does.

    Instants are `loop.time()`. `lent_at` and `holder` tell of the lease while the state is LEASED.
    """

    __slots__ = (
        "__weakref__",
        "conn",
        "expires_at",
        "healthy_at",
        "holder",
        "kept",
        "kept_in",
        "late",
        "left_at",
        "lent_at",
        "manual_in",
        "number",
        "opened_at",
        "predecessor",
        "reported_in",
        "shared",
        "state",
        "trace",
        "traced_in",
        "used_at",
        "uses",
        "watched",
    )

    conn: C

    def __init__(self, now: float, number: int = 0) -> None:
        self.number = number
        """By which a person can tell it from the pool's others."""
        self.state = State.OPENING
        self.opened_at = now
        self.expires_at = now
        self.used_at = now
        """When it last came back from a borrower."""
        self.healthy_at = now
        """When a ping last showed that it works, or it was opened."""
        self.left_at = now
        """When it last went out of service, idle, to be pinged or closed."""
        self.lent_at = now
        self.holder: asyncio.Task[Any] | str | None = None
        """Who has it; the name of a task that has ended; None: nobody yet."""
        self.uses = 0
        self.late = False
        self.shared = False
        """Whether it is lent to the one-shot statements of many tasks."""
        self.kept: object = None
        """What those want to find again, if nobody else had it since."""
        self.kept_in = 0
        """In which of its uses that was kept."""
        self.manual_in = 0
        """In which of its uses it was lent to no block, so that anybody may return it."""
        self.reported_in = 0
        """In which it was told that it is lent for too long."""
        self.trace: Trace = ()
        """Where it was borrowed."""
        self.traced_in = 0
        """In which of its uses that was noted."""
        self.watched = False
        """Whether its loss is told of, so that nobody has to ask."""
        self.predecessor: Entry[C] | None = None
        """The one to be retired once this one is open."""

    @property
    def is_retired(self) -> bool:
        """Whether it is never lent again."""
        return self.expires_at == RETIRED

    def retire(self) -> None:
        """Never lend it again: its server was seen to go, or the pool was drained."""
        self.expires_at = RETIRED

    @property
    def holder_name(self) -> str:
        """Who holds it, while it is lent."""
        if self.shared:
            return "(one-shot statements)"
        if self.holder is None:
            return "(being handed over)"
        if isinstance(self.holder, str):
            return f"{self.holder} (it has ended)"
        return self.holder.get_name()

    def borrowed_at(self) -> list[str]:
        """Where it was borrowed, innermost first; nothing where that was not noted."""
        return lines(self.trace) if self.traced_in == self.uses else []

    def __repr__(self) -> str:
        return f"<Entry {self.state.value} uses={self.uses}>"
