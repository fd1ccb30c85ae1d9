"""Snapshots and counters."""

from __future__ import annotations

import dataclasses
from typing import Any

import psycopg_pool
import pytest

from asyncpool._core.counters import COUNTED, TIMES
from asyncpool._core.histogram import Histogram
from asyncpool.stats import PoolStats, Times, psycopg_keys, since, times, together

KNOWN: dict[str, Any] = {"name": "main", **dict.fromkeys(TIMES, Times())}
ZERO = PoolStats(
    **{field.name: KNOWN.get(field.name, 0) for field in dataclasses.fields(PoolStats)}
)


def test_a_snapshot_does_not_change() -> None:
    """A snapshot is frozen, so that it stays true for the instant when it was made."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ZERO.size = 1  # type: ignore[misc]


def test_every_counter_is_in_the_snapshot() -> None:
    """No counter is missing in `PoolStats`."""
    assert set(COUNTED) < {field.name for field in dataclasses.fields(PoolStats)}


def test_since_subtracts_counters_and_keeps_sizes() -> None:
    """Counters are subtracted; sizes are those of the later snapshot."""
    before = dataclasses.replace(ZERO, size=4, requests=10, wait_time=1.0, connects=4)
    now = dataclasses.replace(ZERO, size=5, requests=15, wait_time=1.5, connects=6)
    delta = since(now, before)
    assert (delta.size, delta.requests, delta.wait_time, delta.connects) == (5, 5, 0.5, 2)


def test_several_pools_together_are_summed() -> None:
    """But for what is no sum: then it is that of the pool where it is longest."""
    histogram = Histogram()
    histogram.add(0.5)
    one = dataclasses.replace(ZERO, size=4, requests=10, patience=2.0, wait=times(histogram))
    two = dataclasses.replace(ZERO, size=5, requests=15, patience=1.0, wait=times(histogram))
    both = together("both", [one, two])
    assert (both.name, both.size, both.requests, both.patience) == ("both", 9, 25, 2.0)
    assert (both.wait.count, both.wait.sum, both.wait.max) == (2, 1.0, 0.5)
    assert both.wait.p50 == times(histogram).p50
    assert both.use == Times()
    assert together("main", [ZERO]) == ZERO
    assert dataclasses.replace(together("", []), name="main") == ZERO


def test_since_covers_every_counter() -> None:
    """A new counter cannot be forgotten."""
    ones: dict[str, Any] = dict.fromkeys(COUNTED, 1)
    delta = since(ZERO, dataclasses.replace(ZERO, **ones))
    assert {name: getattr(delta, name) for name in ones} == dict.fromkeys(ones, -1)


def test_times_match_the_histogram() -> None:
    """Count, sum, maximum and quantiles come from the histogram."""
    histogram = Histogram()
    assert times(histogram) == Times()
    for number in range(1, 1001):
        histogram.add(number / 1000)
    found = times(histogram)
    assert (found.count, found.max) == (1000, 1.0)
    assert found.sum == pytest.approx(500.5)
    for q, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        assert value == histogram.quantile(q)
    assert list(found.buckets) == histogram.buckets()
    assert times(histogram, found) is found


def test_since_has_the_durations_of_the_interval() -> None:
    """The quantiles are those of the interval; its maximum is known to the bucket."""
    histogram = Histogram()
    histogram.add(10.0)
    before = dataclasses.replace(ZERO, use=times(histogram))
    for _ in range(100):
        histogram.add(0.01)
    delta = since(dataclasses.replace(ZERO, use=times(histogram)), before).use
    assert (delta.count, delta.buckets[-1][1]) == (100, 100)
    assert delta.sum == pytest.approx(1.0)
    assert 0.01 <= delta.max < 0.012
    assert 0.008 < delta.p50 < delta.p99 < 0.012
    assert since(before, before).use == Times()
    histogram.add(20.0)
    assert since(dataclasses.replace(ZERO, use=times(histogram)), before).use.max == 20.0


def test_times_under_psycopgs_keys_are_whole_milliseconds() -> None:
    """asyncpool's times are exact seconds; psycopg_pool's are not."""
    times = {"wait_time": 0.0126, "use_time": 2.0, "connect_time": 0.0004}
    keys = psycopg_keys(dataclasses.replace(ZERO, **times))  # type: ignore[arg-type]
    times_there = keys["requests_wait_ms"], keys["usage_ms"], keys["connections_ms"]
    assert times_there == (13, 2000, 0)


def test_the_keys_are_those_of_psycopg_pool() -> None:
    """Dashboards made for psycopg_pool continue to work."""
    theirs = set(psycopg_pool.AsyncConnectionPool("", open=False).get_stats())
    assert theirs <= psycopg_keys(ZERO).keys()
    documented = {
        "connections_num",
        "connections_ms",
        "connections_errors",
        "connections_lost",
        "requests_num",
        "requests_queued",
        "requests_wait_ms",
        "requests_errors",
        "returns_bad",
        "usage_ms",
        "pool_min",
        "pool_max",
        "pool_size",
        "pool_available",
        "requests_waiting",
    }
    assert psycopg_keys(ZERO).keys() == documented
