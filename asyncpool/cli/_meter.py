"""Numbers of a running demo: the pool and the workers in the last second."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from time import perf_counter

from asyncpool.cli._workload import Workload


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of the pool now, and the counts of the second before."""

    at: float
    """Seconds since the start."""
    in_use: int
    idle: int
    opening: int
    waiting: int
    rate: float
    """Acknowledged transfers a second."""
    p50: float | None
    """The median wait for a connection in seconds; None: no request was served."""
    p99: float | None
    errors: int
    """Errors since the start; likewise the retries."""
    retries: int

    @property
    def second(self) -> int:
        """The second of this sample, counted from 1; a sample may come 0.2 s late."""
        return max(1, ceil(self.at - 0.2))


class Meter:
    """Samples of a running workload, with counts of about the last second.

    Args:
        workload: the source of the numbers.
        began: the instant of the run's start, by `perf_counter`.
    """

    def __init__(self, workload: Workload, began: float) -> None:
        self._workload = workload
        self._began = began
        self._marks: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return perf_counter() - self._began

    def sample(self) -> Sample:
        """Take a sample now."""
        stats, tally, at = self._workload.pool.stats(), self._workload.tally, self.elapsed
        while len(self._marks) > 1 and self._marks[1][0] <= at - 0.95:
            self._marks.popleft()
        since, acknowledged, waits = self._marks[0]
        self._marks.append((at, tally.acknowledged, len(tally.waits)))
        p50, p99 = percentiles(tally.waits[waits:])
        return Sample(
            at=at,
            in_use=stats.leased + stats.cleaning,
            idle=stats.idle,
            opening=stats.opening,
            waiting=stats.waiting,
            rate=(tally.acknowledged - acknowledged) / max(at - since, 0.001),
            p50=p50,
            p99=p99,
            errors=tally.errors,
            retries=tally.retries,
        )


def percentiles(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Return the 50th and the 99th percentile; None: there are no values."""
    ranked = sorted(values)
    if not ranked:
        return None, None
    return ranked[len(ranked) // 2], ranked[len(ranked) * 99 // 100]
