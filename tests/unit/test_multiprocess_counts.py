"""What is added to the files of Prometheus's multiprocess mode, from one snapshot to the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from asyncpool.metrics.prometheus_multiprocess import _Written


def snapshot(connects: int, uses: int) -> Any:
    """The numbers of a pool by which its restart is noticed."""
    return SimpleNamespace(connects=connects, use=SimpleNamespace(count=uses))


def test_a_number_that_falls_for_a_moment_is_counted_once() -> None:
    """As that of requests, when one has left the wait queue and has not ended."""
    written = _Written()
    assert [written.new("requests", value) for value in (1005, 1004, 1005, 1007)] == [1005, 0, 0, 2]
    assert written.new("failed", 3) == 3


def test_a_pool_that_begins_anew_counts_from_zero() -> None:
    """Another pool of the name has fewer connects, or fewer uses."""
    for later in (snapshot(1, 90), snapshot(5, 10)):
        written = _Written()
        assert written.follow(snapshot(5, 90)) is None
        assert written.new("requests", 100) == 100
        assert written.follow(snapshot(5, 90)) is not None
        assert written.new("requests", 101) == 1
        assert written.follow(later) is None
        assert written.new("requests", 7) == 7
