"""The pool's knowledge of one-shot statements by their text: may they share, are they quick.

Only plain reads (see `_sql/kinds.py`) are sent behind another's statement, and of these only the
ones that have shown to be quick: what has been sent cannot be taken back, so nobody is to wait
behind a read that was never seen, or was slow. Such a read has a connection to itself, as each
write has.
"""

from __future__ import annotations

from psycopg.abc import Query

from asyncpool._sql.kinds import Kind, advice, classify, text_of

KEPT = 1024
"""Texts of which this is remembered."""
LONG = 4096
"""Characters of a text that is worth remembering."""
PROBATION = 16
"""Quick runs until a read that was slow may share again."""
SLOW = 0.003
"""Seconds of work on the server beyond which nobody should wait behind a read."""
FARTHEST = 0.3
"""Seconds of a round trip to the most distant server; the rest of a longer wait is work."""
INERTIA = 64
"""Statements after which a network that has become slower is known to be."""


class StatementProfile:
    """The pool's knowledge of one text."""

    __slots__ = ("advice", "credit", "kind")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.credit = -1
        """0: a plain read known to be quick. Below: quick runs that are missing until then."""
        self.advice: str | None = None
        """A warning for the caller, which has not been logged yet."""

    @property
    def is_slow(self) -> bool:
        """Whether it was seen to be slow, and not often enough to be quick since."""
        return self.credit < -1

    def was_quick(self) -> None:
        """Note a run by itself that was quick."""
        if self.credit < 0 and self.kind is Kind.READ:
            self.credit += 1

    def was_slow(self) -> None:
        """Note a run that kept the server busy for long."""
        self.credit = -PROBATION


OWN = StatementProfile(Kind.SINGLE)
"""The profile of the pool's own statements."""


class StatementProfiles:
    """The profiles of the texts that a pool has seen lately, and the distance of the server."""

    def __init__(self) -> None:
        self._known: dict[str, StatementProfile] = {}
        self.round_trip: float | None = None
        """Seconds to the server and back with next to no work there; None: not known yet."""

    def timed(self, seconds: float, *, rises: bool) -> None:
        """Note how long a statement took that was sent with none before it.

        Args:
            seconds: from its departure until its results were there.
            rises: whether a longer time may be the network's: the statement is known as quick.
        """
        known, seconds = self.round_trip, min(seconds, FARTHEST)
        if known is None or seconds < known:
            self.round_trip = seconds
        elif rises:
            self.round_trip = known + min(seconds - known, known + SLOW) / INERTIA

    def look(self, query: Query) -> StatementProfile:
        """Return the profile of a statement."""
        text = query if type(query) is str else text_of(query)
        if text is None:
            return StatementProfile(Kind.OTHER)
        profile = self._known.get(text)
        if profile is None:
            profile = StatementProfile(classify(query))
            if profile.kind is Kind.OTHER:
                profile.advice = advice(text)
            if len(text) <= LONG:
                if len(self._known) >= KEPT:
                    del self._known[next(iter(self._known))]  # the one that was known first
                self._known[text] = profile
        return profile
