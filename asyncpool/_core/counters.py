"""The numbers that a pool counts, from which snapshots are made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from asyncpool._core.histogram import Histogram


@dataclass(slots=True)
class Counters:
    """What a pool has counted since it was made; the core adds to them as things happen."""

    requests_queued: int = 0
    requests_shared: int = 0
    requests_failed: int = 0
    requests_timed_out: int = 0
    requests_cancelled: int = 0
    wait_time: float = 0.0
    use_time: float = 0.0
    returns_bad: int = 0
    connects: int = 0
    connects_failed: int = 0
    connect_time: float = 0.0
    lost: int = 0
    leaks: int = 0
    shared_time: float = 0.0
    """The part of the use in which one-shots shared connections."""
    wait: Histogram = field(default_factory=Histogram)
    """Of those who have waited for a connection, also in vain."""
    use: Histogram = field(default_factory=Histogram)
    """Of the leases but for those that one-shots share: such a one is as long as there are any, and
    no request's use.

    Both are only noted as they happen; `ConnectionStore.sort_times` sorts them in."""
    connect: Histogram = field(default_factory=Histogram)
    """Of those that succeeded."""
    ping: Histogram = field(default_factory=Histogram)
    """Of those that were answered."""
    snapshots: dict[str, Any] = field(default_factory=dict)
    """The last snapshot of each of these four."""

    def note_wait(self, duration: float) -> None:
        """Somebody has waited, so many seconds."""
        self.wait_time += duration
        self.wait.fresh.append(duration)


TIMES = ("wait", "use", "connect", "ping")
"""What of them is spread over buckets."""
COUNTED = tuple(
    each.name for each in fields(Counters) if each.name not in ("shared_time", "snapshots", *TIMES)
)
"""What of them is a number in the snapshots."""
