"""Durations by the thousand."""

from __future__ import annotations

import math
from random import Random

import pytest

from asyncpool._core.histogram import BOUNDS, RECENT, Histogram


def filled(durations: list[float]) -> Histogram:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    return histogram


def test_nothing_is_zero_everywhere() -> None:
    """And no error."""
    empty = Histogram()
    assert (empty.count, empty.sum, empty.max, empty.mean) == (0, 0.0, 0.0, 0.0)
    assert empty.quantile(0.99) == empty.recent_quantile(0.5) == 0.0
    assert empty.recent() == []
    assert {count for _, count in empty.buckets()} == {0}


def test_the_bounds_go_from_100_microseconds_to_100_seconds() -> None:
    """Four to each doubling."""
    assert BOUNDS[0] == 100e-6
    assert BOUNDS[-2] < 100.0 <= BOUNDS[-1]
    assert BOUNDS[4] == pytest.approx(200e-6)


@pytest.mark.parametrize("many", [1, RECENT - 1, RECENT, RECENT + 1, 5000])
def test_count_sum_and_max_are_exact(many: int) -> None:
    """This holds however many are sorted in at once."""
    rng = Random(many)
    durations = [rng.lognormvariate(-6, 2) for _ in range(many)]
    histogram = filled(durations)
    assert histogram.count == many
    assert histogram.sum == pytest.approx(sum(durations))
    assert histogram.max == max(durations)
    assert histogram.mean == pytest.approx(sum(durations) / many)
    assert histogram.recent() == durations[-RECENT:]


def test_each_is_in_the_bucket_that_it_belongs_to() -> None:
    """A bound is the largest of its bucket; the counts are cumulative, and the last has all."""
    rng = Random(1)
    durations = [0.0, *BOUNDS, 1000.0, *(rng.uniform(0, 0.2) for _ in range(3000))]
    buckets = filled(durations).buckets()
    assert [bound for bound, _ in buckets] == [*BOUNDS, math.inf]
    for bound, count in buckets:
        assert count == sum(duration <= bound for duration in durations)


@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_a_quantile_is_exact_to_a_bucket(q: float) -> None:
    """Of all of them, and exact of the last ones."""
    rng = Random(2)
    durations = [rng.lognormvariate(-5, 1.5) for _ in range(10_000)]
    histogram = filled(durations)
    exact = sorted(durations)[max(math.ceil(q * len(durations)) - 1, 0)]
    assert exact / 1.2 <= histogram.quantile(q) <= exact * 1.2 or exact < BOUNDS[0]
    last = sorted(durations[-RECENT:])
    assert histogram.recent_quantile(q) == last[max(math.ceil(q * RECENT) - 1, 0)]
    assert histogram.quantile(1.0) == max(durations)


def test_a_quantile_lies_within_what_was_seen() -> None:
    """One duration is all of them, below the first bound and above the last."""
    for only in (1e-6, 0.003, 500.0):
        histogram = filled([only])
        assert histogram.quantile(1.0) == only
        assert 0 <= histogram.quantile(0.5) <= only


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_share_is_from_0_to_1(q: float) -> None:
    """Anything else makes no sense, with durations or without."""
    for histogram in (Histogram(), filled([1.0])):
        with pytest.raises(ValueError, match="between 0 and 1"):
            histogram.quantile(q)
        with pytest.raises(ValueError, match="between 0 and 1"):
            histogram.recent_quantile(q)


def test_those_that_are_kept_stand_for_the_others() -> None:
    """Where more come between two looks than are kept: the totals are right, the spread theirs."""
    histogram = Histogram()
    for number in range(10_000):
        histogram.fresh.append(0.001 if number % 2 else 0.1)
    histogram.flush(10_000, 505.0)
    assert (histogram.count, histogram.sum) == (10_000, 505.0)
    below = dict(histogram.buckets())
    assert below[next(bound for bound in BOUNDS if bound >= 0.001)] == 5000
    assert below[math.inf] == 10_000


def test_those_that_are_all_there_stand_for_themselves() -> None:
    """This holds whatever number the others report."""
    histogram = Histogram()
    histogram.fresh.extend([0.5, 0.25])
    histogram.flush(7, 0.75)
    assert (histogram.count, histogram.sum) == (2, 0.75)
    histogram.flush(7, 0.75)
    assert histogram.count == 2


def test_the_sum_never_goes_back() -> None:
    """Not by rounding, nor by what is said of it."""
    rng = Random(3)
    histogram, before = Histogram(), 0.0
    for _ in range(3000):
        histogram.add(rng.expovariate(1e9))
        assert histogram.sum >= before
        before = histogram.sum
    histogram.add(0.0)
    histogram.flush(histogram.count, 0.0)
    assert histogram.sum >= before
