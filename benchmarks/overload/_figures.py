"""Compute the figures of a cell from its requests; no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

from benchmarks.overload._rows import SIZE
from benchmarks.overload._schedule import Request, Span

BIN = 0.25
"""Seconds of a point of the curve."""
ENOUGH = 0.95
"""The share of requests answered in time with which a pool has recovered."""


@dataclass
class Cell:
    """The figures of one pool in one row; times are seconds, None means none.

    Shares are of the requests that came in the measured time.
    """

    row: str
    pool: str
    reason: str = ""
    """Why there are no figures."""
    capacity: float = 0.0
    """Requests a second in a closed loop."""
    offered: float = 0.0
    """Requests a second."""
    goodput: float = 0.0
    """Answers in time that came in the measured time, in parts of those that were possible."""
    good: float = 0.0
    """The share answered in time."""
    late: float = 0.0
    """The share answered after the deadline."""
    refused: float = 0.0
    """The share refused, at once or while it waited."""
    timed_out: float = 0.0
    """The share that reached a time limit."""
    errors: dict[str, int] = field(default_factory=dict)
    """Other outcomes, by the names of errors."""
    p50: float | None = None
    p99: float | None = None
    """Of the answers in time, from when a request was due."""
    refused_p50: float | None = None
    refused_p99: float | None = None
    """From the start of a request to its refusal."""
    recovered: float | None = None
    """From the end of the spike until 95 % were answered in time again."""
    streams: dict[str, float] = field(default_factory=dict)
    """For each stream the share answered in time, if there are several."""
    curve: list[float] = field(default_factory=list)
    """The share answered in time, for each quarter of a second; a row with phases has one."""
    lag: float = 0.0
    """99th percentile of the time by which requests started too late."""
    cpu: float = 0.0
    """The CPU time of the process, in parts of the time."""
    cost: float | None = None
    """CPU seconds of a request that got no connection; only of the row that measures it."""

    def record(self) -> dict[str, Any]:
        """Return the figures as a dict of JSON types."""
        return asdict(self)


def evaluate(
    row: str, pool: str, requests: list[Request], places: list[Span], capacity: float
) -> Cell:
    """Compute the figures of a cell.

    Args:
        row, pool: their names.
        requests: all requests of the run, in order.
        places: the phases.
        capacity: requests a second in a closed loop.
    """
    measured = [place for place in places if place.phase.measured]
    start, end = measured[0].start, measured[-1].end
    some = [each for each in requests if start <= each.due < end]
    outcomes = Counter(each.outcome for each in some)
    cell = Cell(row, pool, capacity=capacity, offered=len(some) / (end - start))
    if not some:
        return cell
    good = [each for each in some if each.good]
    answers = sum(each.good and start <= each.ended < end for each in requests)
    cell.goodput = answers / _possible(some, measured, capacity)
    cell.good = len(good) / len(some)
    cell.late = (outcomes.pop("answered", 0) - len(good)) / len(some)
    cell.refused = outcomes.pop("refused", 0) / len(some)
    cell.timed_out = outcomes.pop("timed out", 0) / len(some)
    cell.errors = dict(outcomes)
    times = sorted(each.ended - each.due for each in good)
    cell.p50, cell.p99 = _percentile(times, 0.5), _percentile(times, 0.99)
    told = sorted(each.ended - each.started for each in some if each.outcome == "refused")
    cell.refused_p50, cell.refused_p99 = _percentile(told, 0.5), _percentile(told, 0.99)
    cell.lag = _percentile(sorted(each.started - each.due for each in some), 0.99) or 0.0
    streams = sorted({each.stream.name for each in some})
    if len(streams) > 1:
        for name in streams:
            cell.streams[name] = _share(each for each in some if each.stream.name == name) or 0.0
    if len(measured) > 1:
        cell.curve = _curve(some, start, end)
    if any(place.phase.factor > 1 for place in measured):
        last = measured[-1]
        cell.recovered = _recovered(_curve(some, last.start, last.end))
    return cell


def _possible(requests: list[Request], places: list[Span], capacity: float) -> float:
    """How many requests a pool can answer that wastes nothing.

    Those for the hot row cannot be answered faster than one after another. What is left of a phase
    may be answered in the next one, as far as its deadline allows.
    """
    most = capacity * max(each.stream.deadline for each in requests)
    answered = left = 0.0
    for place in places:
        room = capacity / place.phase.slower * place.phase.seconds
        some = [each for each in requests if place.holds(each.due)]
        hot = sum(each.stream.hot for each in some)
        asked = left + len(some) - hot + min(hot, room / SIZE)
        answered += min(room, asked)
        left = min(most, max(0.0, asked - room))
    return answered


def _share(requests: Iterable[Request]) -> float | None:
    good = [each.good for each in requests]
    return sum(good) / len(good) if good else None


def _curve(requests: list[Request], start: float, end: float) -> list[float]:
    bins: list[list[Request]] = [[] for _ in range(ceil((end - start) / BIN))]
    for each in requests:
        if start <= each.due < end:
            bins[min(len(bins) - 1, int((each.due - start) / BIN))].append(each)
    shares = (_share(each) for each in bins)
    return [1.0 if share is None else share for share in shares]


def _recovered(curve: list[float]) -> float | None:
    """The end of the last part of a curve that is below `ENOUGH`; None: it is the last of all."""
    bad = [number for number, share in enumerate(curve, 1) if share < ENOUGH]
    last = max(bad, default=0)
    return last * BIN if last < len(curve) else None


def _percentile(ordered: list[float], share: float) -> float | None:
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None
