"""Durations by the thousand: how many, how long in all, and how they are spread.

They lie in a list first, which is sorted into buckets at once: that costs each a fraction of what
finding its own bucket would. The buckets are four to each doubling from 100 µs to 100 s.
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
"""Seconds; a bucket has what is above the bound before it, and not above its own."""
RECENT = 1024
"""The most that lie unsorted, and the most of the last ones that are kept as they are."""


class Histogram:
    """Durations since it was made; nothing is ever taken out.

    By `add` everything is exact but the place within a bucket. Where even a call is too dear,
    append to `fresh` and tell `flush`, now and then, how many there were.
    """

    __slots__ = ("_buckets", "_count", "_max", "_recent", "_sum", "fresh")

    def __init__(self) -> None:
        self.fresh: deque[float] = deque(maxlen=RECENT)
        """What is not sorted in yet; always the same one."""
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._buckets: list[int] = []
        self._count = 0
        self._sum = 0.0
        self._max = 0.0

    def add(self, duration: float) -> None:
        """One more, of so many seconds."""
        self.fresh.append(duration)
        if len(self.fresh) == RECENT:
            self.flush()

    @property
    def count(self) -> int:
        """How many there were."""
        self.flush()
        return self._count

    @property
    def sum(self) -> float:
        """Seconds in all."""
        self.flush()
        return self._sum

    @property
    def max(self) -> float:
        """Seconds of the longest that was seen; 0 where there were none."""
        self.flush()
        return self._max

    @property
    def mean(self) -> float:
        """Seconds of one, on average; 0 where there were none."""
        return self.sum / self.count if self.count else 0.0

    def counts(self) -> list[int]:
        """How many there were in each bucket: one for each of `BOUNDS`, and one above them."""
        self.flush()
        return self._buckets or _empty()

    def buckets(self) -> list[tuple[float, int]]:
        """Upper bounds in seconds, and how many were not above each; the last bound is infinite."""
        self.flush()
        total, found = 0, []
        for bound, count in zip([*BOUNDS, math.inf], self._buckets or _empty(), strict=True):
            total += count
            found.append((bound, total))
        return found

    def quantile(self, q: float) -> float:
        """Seconds that a share `q` of all was not longer than; 0 where there were none.

        Exact to a bucket, a factor of 1.19, within which they are taken to be spread evenly.

        Raises:
            ValueError: `q` is not from 0 to 1.
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
        """The same of the last ones only, 1,024 at most, and exact.

        Raises:
            ValueError: `q` is not from 0 to 1.
        """
        share, last = _share(q), sorted(self.recent())
        return last[max(math.ceil(share * len(last)) - 1, 0)] if last else 0.0

    def recent(self) -> list[float]:
        """The last ones, 1,024 at most, the latest at the end."""
        self.flush()
        return list(self._recent)

    def flush(self, count: int | None = None, total: float | None = None) -> None:
        """Sort in what is fresh.

        Args:
            count: how many there were in all. Where more have come since the last time than are
                kept, those that are stand for the others too. None: there were no others.
            total: seconds of all of them; None: as for `count`.
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
        msg = f"a quantile must be from 0 to 1: got {q!r}"
        raise ValueError(msg)
    return q
