"""A histogram of durations: their number, sum and distribution.

Durations are collected in a list first, which is sorted and spread over the buckets as a whole.
That costs a fraction of finding the bucket of each one. There are four buckets per doubling, from
100 µs to 100 s.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque

LEAST, MOST, PER_DOUBLING = 100e-6, 100.0, 4
BOUNDS = [
    LEAST * 2 ** (step / PER_DOUBLING)
    for step in range(math.ceil(math.log2(MOST / LEAST) * PER_DOUBLING) + 1)
]
"""Upper bounds in seconds, inclusive; a bucket begins above the bound before it."""
RECENT = 1024
"""The capacity of `fresh`, and the number of latest durations that are kept unchanged."""


class Histogram:
    """All durations added since it was made.

    With `add`, everything is exact except the position within a bucket. Where a call costs too
    much, append to `fresh` instead, and pass the total number to `flush` from time to time.
    """

    __slots__ = ("_buckets", "_count", "_max", "_recent", "_sum", "fresh")

    def __init__(self) -> None:
        self.fresh: deque[float] = deque(maxlen=RECENT)
        """Durations not in the buckets yet; always the same deque, so that callers may keep it."""
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._buckets: list[int] = []
        self._count = 0
        self._sum = 0.0
        self._max = 0.0

    def add(self, duration: float) -> None:
        """Add one duration in seconds."""
        self.fresh.append(duration)
        if len(self.fresh) == RECENT:
            self.flush()

    @property
    def count(self) -> int:
        """The number of durations."""
        self.flush()
        return self._count

    @property
    def sum(self) -> float:
        """The sum in seconds."""
        self.flush()
        return self._sum

    @property
    def max(self) -> float:
        """The longest known duration in seconds; 0 if there are none."""
        self.flush()
        return self._max

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 if there are none."""
        return self.sum / self.count if self.count else 0.0

    def counts(self) -> list[int]:
        """Return the number in each bucket: one for each of `BOUNDS`, and one above them."""
        self.flush()
        return self._buckets or _empty()

    def buckets(self) -> list[tuple[float, int]]:
        """Return upper bounds in seconds and cumulative numbers; the last bound is infinite."""
        self.flush()
        total, found = 0, []
        for bound, count in zip([*BOUNDS, math.inf], self._buckets or _empty(), strict=True):
            total += count
            found.append((bound, total))
        return found

    def quantile(self, q: float) -> float:
        """Return the duration that a share `q` of all did not exceed; 0 if there are none.

        Exact to a bucket, a factor of 1.19; within a bucket an even distribution is assumed.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        rank = _share(q) * self.count
        before, lower = 0, 0.0
        for upper, count in zip([*BOUNDS, math.inf], self._buckets or _empty(), strict=True):
            if count and before + count >= rank:
                upto = min(upper, self._max)
                return lower + (upto - lower) * (rank - before) / count
            before += count
            lower = upper
        return self._max

    def recent_quantile(self, q: float) -> float:
        """Return the exact quantile of the latest durations, at most 1,024; 0 if there are none.

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        share, last = _share(q), sorted(self.recent())
        return last[max(math.ceil(share * len(last)) - 1, 0)] if last else 0.0

    def recent(self) -> list[float]:
        """Return the latest durations, at most 1,024, in order."""
        self.flush()
        return list(self._recent)

    def flush(self, count: int | None = None, total: float | None = None) -> None:
        """Move the durations in `fresh` into the buckets.

        Args:
            count: the number of all durations so far. If more were added since the last flush than
                `fresh` can hold, those in it represent the others too. None: none were dropped.
            total: the sum of all durations so far, in seconds; None: none were dropped.
        """
        if not self.fresh:
            return
        self._recent += self.fresh
        fresh = sorted(self.fresh)
        self.fresh.clear()
        known = len(fresh)
        new = known if count is None or known < RECENT else max(count - self._count, known)
        self._count += new
        self._sum = max(self._sum, self._sum + sum(fresh) if total is None else total)
        self._max = max(self._max, fresh[-1])
        self._buckets = buckets = self._buckets or _empty()
        before, booked, place = 0, 0, bisect_left(BOUNDS, fresh[0])
        while before < known:
            upto = known if place == len(BOUNDS) else bisect_right(fresh, BOUNDS[place], before)
            stand_for = upto * new // known
            buckets[place] += stand_for - booked
            before, booked, place = upto, stand_for, place + 1


def _empty() -> list[int]:
    return [0] * (len(BOUNDS) + 1)


def _share(q: float) -> float:
    if not 0 <= q <= 1:
        msg = f"a quantile must be between 0 and 1: got {q!r}"
        raise ValueError(msg)
    return q
