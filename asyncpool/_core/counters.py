"""The counters of a pool, from which snapshots are made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from asyncpool._core.histogram import Histogram


@dataclass(eq=False, repr=False, slots=True)
class Counters:
    """Counts since the pool was made; durations are seconds."""

    requests_queued: int = 0
    requests_shared: int = 0
    requests_failed: int = 0
    requests_timed_out: int = 0
    requests_cancelled: int = 0
    refused_full: int = 0
    refused_deadline: int = 0
    refused_patience: int = 0
    refused_standing: int = 0
    wait_time: float = 0.0
    use_time: float = 0.0
    returns_bad: int = 0
    connects: int = 0
    connects_failed: int = 0
    connect_time: float = 0.0
    lost: int = 0
    leaks: int = 0
    shared_time: float = 0.0
    """The part of `use_time` in which one-shots shared connections."""
    waits: int = 0
    """The number of durations noted in `wait`."""
    wait: Histogram = field(default_factory=Histogram)
    """Durations of waits, including those that ended in an error."""
    use: Histogram = field(default_factory=Histogram)
    """Durations of leases except shared ones, which last as long as any one-shot uses them.

    Durations of `wait` and `use` are only noted; `flush_times` adds them to the buckets.
    """
    connect: Histogram = field(default_factory=Histogram)
    """Durations of successful connects."""
    ping: Histogram = field(default_factory=Histogram)
    """Durations of answered pings."""
    snapshots: dict[str, Any] = field(default_factory=dict)
    """The last snapshots of these four histograms, by name."""

    def note_wait(self, duration: float) -> None:
        """Note the duration of a wait in seconds."""
        self.waits += 1
        self.wait_time += duration
        self.wait.fresh.append(duration)

    def note_use(self, duration: float, is_shared: bool = False) -> None:
        """Note the duration of a lease in seconds."""
        self.use_time += duration
        if is_shared:
            self.shared_time += duration
        else:
            self.use.fresh.append(duration)

    def flush_times(self, ended_leases: int) -> None:
        """Move the noted durations into their histograms.

        Args:
            ended_leases: the number of leases that have ended, without shared ones.
        """
        self.use.flush(ended_leases, self.use_time - self.shared_time)
        self.wait.flush(self.waits, self.wait_time)


TIMES = ("wait", "use", "connect", "ping")
"""The histograms."""
UNREPORTED = ("shared_time", "waits", "snapshots")
"""Fields that snapshots do not contain."""
COUNTED = tuple(each.name for each in fields(Counters) if each.name not in (*UNREPORTED, *TIMES))
"""The counters that snapshots contain as numbers."""
