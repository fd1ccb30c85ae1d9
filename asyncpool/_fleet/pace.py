"""How often a member looks, and other numbers."""

from __future__ import annotations

import random

INTERVAL = 1.0
"""Seconds between looks, less up to a tenth, so that members do not look together."""
PAUSES = 0.1, 0.5
"""The shortest and the longest time between looks while requests wait for room."""
BLIND_INTERVAL = 30.0
"""Seconds between looks where they show nothing."""
RECENT = 5.0
"""Seconds since its last use after which others may have an idle connection."""
RETRY = 1.0
"""Seconds after which a connection to look on is asked for again."""
TURNS = 3
"""The most looks one after another, on one connection; from the second, claims may be used."""
FAILURES = 3
"""Failed statements in a row after which a member that has never seen the others goes on without
looks."""
UNLIMITED = 2**30
"""The limit of a member that sees nobody."""


class Pace:
    """The time between the looks of one member, in seconds."""

    def __init__(self) -> None:
        self.pause = PAUSES[0]
        """The time until the next look while requests wait for room."""

    def after_look(self, *, blind: bool, short: bool, grows: bool) -> float:
        """Return the time until the next look.

        Args:
            blind: whether looks show nothing.
            short: whether requests wait for room.
            grows: whether the next look will allow more connections.
        """
        if short and not blind:
            pause = PAUSES[0] if grows else self.pause
            self.pause = min(pause * 2, PAUSES[1])
            return pause
        self.pause = PAUSES[0]
        return BLIND_INTERVAL if blind else INTERVAL * random.uniform(0.9, 1.0)
