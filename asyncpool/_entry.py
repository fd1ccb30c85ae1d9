"""The pool's record of one connection, from the moment it starts opening until it is closed."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Generic

from asyncpool._connector import C


class State(Enum):
    """Where an entry is; together they make up the size of the pool."""

    OPENING = "opening"
    IDLE = "idle"
    LEASED = "leased"
    CLEANING = "cleaning"
    CLOSING = "closing"
    CLOSED = "closed"
    """Struck off; it counts no more."""


class Entry(Generic[C]):
    """One place in the pool; it exists before its connection does.

    Instants are `loop.time()`. `lent_at` and `holder` tell of the lease while the state is LEASED.
    """

    __slots__ = (
        "conn",
        "expires_at",
        "generation",
        "holder",
        "lent_at",
        "lost",
        "opened_at",
        "predecessor",
        "proved_at",
        "state",
        "used_at",
        "uses",
    )

    conn: C

    def __init__(self, generation: int, now: float) -> None:
        self.state = State.OPENING
        self.generation = generation
        self.opened_at = now
        self.expires_at = now
        self.used_at = now
        """When it last came back from a borrower."""
        self.proved_at = now
        """When it was last known to work: a return or a ping."""
        self.lent_at = now
        self.holder: asyncio.Task[Any] | None = None
        self.uses = 0
        self.predecessor: Entry[C] | None = None
        """The one to be retired once this one is open."""
        self.lost = False
        """The watch saw the server go while it was lent out."""

    def __repr__(self) -> str:
        return f"<Entry {self.state.value} uses={self.uses} generation={self.generation}>"
