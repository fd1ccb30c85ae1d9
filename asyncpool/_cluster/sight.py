"""The result of a look at a host, and the lag that follows from it. Nothing here does I/O.

A look is one statement. The server's clock is used for no more than the age of the last replayed
transaction; the lag is never more than the time since the standby was last seen to be current.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

LOOK = b"""\
SELECT r.standby,
  CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn()
    ELSE pg_catalog.pg_current_wal_flush_lsn() END,
  CASE WHEN r.standby
    THEN (SELECT pg_catalog.to_hex(received_tli) FROM pg_catalog.pg_stat_wal_receiver)
    ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END,
  r.standby AND EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver)
    AND pg_catalog.pg_last_wal_replay_lsn() >= pg_catalog.pg_last_wal_receive_lsn(),
  CASE WHEN r.standby THEN extract(epoch FROM
    pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()) END
FROM (SELECT pg_catalog.pg_is_in_recovery()) AS r(standby)"""
FRESH = 2.5
"""Seconds for which the primary's position counts as recent."""
KEPT = 600
"""Looks at the primary whose positions are kept: ten minutes."""
ON_ITS_WAY = 0.5
"""Seconds that a standby may lack what the primary has written, if it has replayed all else."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The result of one look."""

    at: float
    """The instant of the look, `loop.time()`, before it was sent."""
    is_primary: bool
    position: int
    """The replayed position of the log, or the flushed one of a primary."""
    timeline: int
    """The timeline of a primary, or the one that a standby receives or has received last; 0: that
    was not seen, for which the role needs the rights of `pg_read_all_stats`."""
    has_replayed_all: bool
    """Whether a standby receives the log and has replayed what it has received."""
    age: float
    """Seconds since the last replayed transaction was committed; infinite: none was replayed."""


def sight_of(row: Sequence[bytes | None], at: float) -> Sight:
    """Return what the row of a look says."""
    standby, position, timeline, current, age = row
    return Sight(
        at=at,
        is_primary=standby == b"f",
        position=0 if position is None else number_of(position.decode()),
        timeline=0 if timeline is None else int(timeline, 16),
        has_replayed_all=current == b"t",
        age=math.inf if age is None else max(float(age), 0.0),
    )


class Positions:
    """The positions of one primary at its last looks."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=KEPT)

    def note(self, sight: Sight) -> None:
        """Note an answered look at the primary."""
        if not self._looks or self._looks[-1][0] < sight.at:
            self._looks.append((sight.at, sight.position))

    def forget(self) -> None:
        """Forget them, since another host is the primary."""
        self._looks.clear()

    def before(self, at: float) -> tuple[float, int] | None:
        """Return the last look until an instant, if it is recent then: its instant and position."""
        found = next((each for each in reversed(self._looks) if each[0] <= at), None)
        return found if found is not None and at - found[0] < FRESH else None

    def reached_at(self, position: int) -> float:
        """Return the last look whose position a host has reached; minus infinity: none."""
        looks = reversed(self._looks)
        return next((at for at, there in looks if there <= position), -math.inf)


def progress(sight: Sight, primary: Positions, current_at: float) -> tuple[float, float]:
    """Return how many seconds a host lags, and when it was last known to be current.

    Args:
        sight: the last look at the host.
        primary: the positions of the primary.
        current_at: the instant at which the host was last known to be current.

    Returns:
        The lag, infinite if it is not known, and the new `current_at`.
    """
    if sight.is_primary:
        return 0.0, sight.at
    # What the primary has written a moment ago may be on its way.
    there = primary.before(sight.at - (ON_ITS_WAY if sight.has_replayed_all else 0.0))
    if there is None or sight.position >= there[1]:
        if sight.has_replayed_all:
            return 0.0, sight.at
        if there is not None:
            return 0.0, max(current_at, there[0])
    current_at = max(current_at, min(primary.reached_at(sight.position), sight.at))
    return min(sight.age, sight.at - current_at), current_at


def number_of(position: str) -> int:
    """Return a position of the log, such as "16/B374D848", as a number."""
    high, _, low = position.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def text_of(position: int) -> str:
    """Return a position of the log as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
