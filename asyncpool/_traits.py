"""What is known of one-shot statements by their text: may they share, and are they quick.

A statement that was sent to a shared connection cannot be taken back, so nobody is sent behind one
that may turn out slow: one that was never seen, or was slow of late. Those wait for no other, and
no other for them, as if each had borrowed a connection. Only what has shown itself quick is sent
in crowds.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

from psycopg.abc import Query
from psycopg.sql import Composable

KEPT = 1024
"""Texts of which this is remembered."""
LONG = 4096
"""Characters of a text that is worth remembering."""
PROBATION = 16
"""Quick runs until a statement that was slow is trusted again."""
SLOW = 0.003
"""Seconds of work for which nobody is to wait behind a statement."""
FARTHEST = 0.3
"""Seconds of a round trip to the most distant server; what takes longer, works."""
INERTIA = 64
"""Statements that it takes until a network that has become slower is known to be."""

HARMLESS = re.compile(
    r"(?:\s+|--[^\n]*\n|/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/|\()*"
    r"(?:SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES|TABLE|WITH)\b",
    re.IGNORECASE,
)


class Trait:
    """What is known of one text."""

    __slots__ = ("credit", "shares")

    def __init__(self, *, shares: bool, credit: int = -1) -> None:
        self.shares = shares
        """Whether it leaves the session as it is, by its first word; if in doubt, not."""
        self.credit = credit
        """Not negative: it is quick. Else so many quick runs are missing until it is thought so."""

    def was_slow(self) -> None:
        """It kept the server busy for long."""
        self.credit = -PROBATION


class Traits:
    """Those of all texts that one pool has seen of late, and how far away the server is."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Trait] = {}
        self.trip: float | None = None
        """Seconds of a round trip to the server with next to no work there; None: not known yet."""

    def timed(self, seconds: float) -> None:
        """A statement with none before it had its answer in this time."""
        trip, seconds = self.trip, min(seconds, FARTHEST)
        if trip is None or seconds < trip:
            self.trip = seconds
        else:
            # A statement that worked for long tells little of the network.
            self.trip = trip + min(seconds - trip, trip + SLOW) / INERTIA

    def look(self, query: Query) -> Trait:
        """What is known of a statement."""
        text = query if type(query) is str else _text(query)
        trait = self._known.get(text)
        if trait is None:
            trait = Trait(shares=_shares(text))
            if _length(text) <= LONG:
                if len(self._known) >= KEPT:
                    del self._known[next(iter(self._known))]  # the one that was known first
                self._known[text] = trait
        return trait


Text = str | bytes | tuple[str, ...]
"""A template's is the text around its values, with a "$" for each of them."""


def _text(query: Query) -> Text:
    if isinstance(query, str | bytes):
        return query
    if isinstance(query, Composable):
        return query.as_string(None)
    return tuple(_pieces(query))


def _pieces(template: Any) -> Iterator[str]:
    # Templates came with Python 3.14; what is not one either, psycopg will refuse.
    for piece in template if hasattr(template, "interpolations") else ():
        if isinstance(piece, str):
            yield piece
        elif isinstance(piece.value, Composable):
            yield piece.value.as_string(None)
        elif hasattr(piece.value, "interpolations"):
            yield from _pieces(piece.value)
        else:
            yield "$"


def _length(text: Text) -> int:
    return sum(map(len, text)) if isinstance(text, tuple) else len(text)


def _shares(text: Text) -> bool:
    if isinstance(text, tuple):
        return bool(text) and HARMLESS.match(text[0]) is not None and ";" not in "".join(text)
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return HARMLESS.match(text) is not None and ";" not in text.rstrip("; \t\n")
