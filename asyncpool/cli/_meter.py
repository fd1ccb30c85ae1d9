"""Numbers of a running demo: what the pool and the clerks did in the last second."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from time import perf_counter

from asyncpool.cli._bank import Bank


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of the pool now, and what happened in the second before."""

    at: float
    """Seconds since the start."""
    in_use: int
    idle: int
    opening: int
    waiting: int
    rate: float
    """Transfers acknowledged, a second."""
    p50: float | None
    """Seconds that a request waited for a connection; None when none was served."""
    p99: float | None
    errors: int
    """Since the start, as are retries."""
    retries: int

    @property
    def second(self) -> int:
        """The one that this belongs to, counted from 1; a sample may come a little late."""
        return max(1, ceil(self.at - 0.2))


class Meter:
    """Samples of a bank at work, with what happened in about the last second.

    Args:
        bank: what to look at.
        began: the instant, of `perf_counter`, in which the run began.
    """

    def __init__(self, bank: Bank, began: float) -> None:
        self._bank = bank
        self._began = began
        self._marks: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return perf_counter() - self._began

    def sample(self) -> Sample:
        """The state now."""
        stats, tally, at = self._bank.pool.stats(), self._bank.tally, self.elapsed
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
    """The 50th and the 99th, None where there are no values."""
    ranked = sorted(values)
    if not ranked:
        return None, None
    return ranked[len(ranked) // 2], ranked[len(ranked) * 99 // 100]
