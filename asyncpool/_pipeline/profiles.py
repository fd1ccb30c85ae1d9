"""Profiles of one-shot statements by their text: whether they may share a channel.

Only plain reads (see `_sql/kinds.py`) that have run quickly before are sent behind another
caller's statement. A sent statement cannot be taken back, so a read that is new or was slow gets a
connection to itself, as each write does.
"""

from __future__ import annotations

from psycopg.abc import Query

from asyncpool._sql.kinds import Kind, advice, classify, text_of

MAX_TEXTS = 1024
"""Maximum number of texts with a profile."""
MAX_TEXT_LENGTH = 4096
"""Characters beyond which a text gets no lasting profile."""
PROBATION = 16
"""Quick runs after which a slow read may share again."""
SLOW = 0.003
"""Seconds of work on the server beyond which a read counts as slow."""
MAX_ROUND_TRIP = 0.3
"""Seconds of the longest plausible round trip; the rest of a longer wait is the server's work."""
SMOOTHING = 64
"""Statements over which the estimated round trip follows a network that has become slower."""


class StatementProfile:
    """The profile of one text."""

    __slots__ = ("advice", "credit", "kind")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.credit = -1 if kind is Kind.READ else 1
        """0 for a plain read known to be quick; negative: minus the quick runs still missing;
        positive: it never shares."""
        self.advice: str | None = None
        """A warning about the text that has not been logged yet."""

    def record_quick(self) -> None:
        """Record a quick run."""
        if self.credit < 0 and self.kind is Kind.READ:
            self.credit += 1

    def record_slow(self) -> None:
        """Record a slow run."""
        self.credit = -PROBATION


INTERNAL = StatementProfile(Kind.SINGLE)
"""The profile of the pool's own statements."""


class StatementProfiles:
    """The profiles of the recent texts of a pool, and the round trip to its server."""

    def __init__(self) -> None:
        self._known: dict[str, StatementProfile] = {}
        self.round_trip: float | None = None
        """Estimated seconds of a round trip to the server; None: unknown yet."""

    def record_time(self, seconds: float, *, rises: bool) -> None:
        """Record the time of a statement that was sent with none before it.

        Args:
            seconds: the time from sending until the results arrived.
            rises: whether a longer time may raise the estimate: the statement is known to be quick.
        """
        known, seconds = self.round_trip, min(seconds, MAX_ROUND_TRIP)
        if known is None or seconds < known:
            self.round_trip = seconds
        elif rises:
            self.round_trip = known + min(seconds - known, known + SLOW) / SMOOTHING

    def get(self, query: Query) -> StatementProfile:
        """Return the profile of a statement."""
        text = query if type(query) is str else text_of(query)
        if text is None:
            return StatementProfile(Kind.OTHER)
        profile = self._known.get(text)
        if profile is None:
            profile = StatementProfile(classify(query))
            if profile.kind is Kind.OTHER:
                profile.advice = advice(text)
            if len(text) <= MAX_TEXT_LENGTH:
                if len(self._known) >= MAX_TEXTS:
                    del self._known[next(iter(self._known))]  # the oldest
                self._known[text] = profile
        return profile
