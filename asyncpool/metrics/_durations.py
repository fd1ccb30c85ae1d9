"""Single durations from a pool's buckets, for histograms that take one after the other."""

from __future__ import annotations

from asyncpool import Times


def durations(now: Times, before: Times | None) -> list[float]:
    """Estimate the durations recorded between two snapshots from the buckets; the sum is exact."""
    if before is None or now.count < before.count:
        before = Times()  # the pool was reopened on another event loop
    found: list[tuple[float, float, int]] = []
    lower, upto = 0.0, 0
    for (edge, count), (_, known) in zip(now.buckets, before.buckets, strict=True):
        new = count - known - upto
        upto += new
        if new > 0:
            found.append((lower, min(edge, max(now.max, lower)), new))
        lower = edge
    least = sum(low * new for low, _, new in found)
    room = sum((high - low) * new for low, high, new in found)
    share = min(max((now.sum - before.sum - least) / room, 0.0), 1.0) if room else 0.0
    return [low + share * (high - low) for low, high, new in found for _ in range(new)]
