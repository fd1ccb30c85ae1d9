"""Compute the figures of a cell from its requests; no I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from math import ceil
from typing import Any

from benchmarks.cluster._load import ANSWERED, PAIR, READ, WRITE, Request
from benchmarks.cluster._peers import MAX_LAG
from benchmarks.cluster._trial import Observations

WARM = 1.0
"""Seconds of load that are not measured."""
LOOK = 1.0
"""Seconds until a lag is known, which a pool may add to the lag that it allows."""
STALE = MAX_LAG + LOOK
"""Seconds since the commit of a row that a read does not see, from which the read is stale."""
BIN = 1.0
"""Seconds over which a share is taken."""
ENOUGH_READS = 50
"""Answers of a second whose share counts; there are fewer while no pool is open."""
STEP = 0.1
"""Seconds between two instants at which a share is asked for."""
ENOUGH = 0.6
"""The part of its fair share with which a host takes part again."""


@dataclass
class Cell:
    """The figures of one pool in one row; times are seconds, None means none."""

    row: str
    pool: str
    reason: str = ""
    """Why there are no figures."""
    reads: int = 0
    writes: int = 0
    failed_reads: dict[str, int] = field(default_factory=dict)
    """Reads with no answer, by the names of errors."""
    failed_writes: dict[str, int] = field(default_factory=dict)
    p50: float | None = None
    p99: float | None = None
    """Of the answered reads; of pairs, the whole of a write and its read."""
    share: tuple[float, float] | None = None
    """The lowest and the highest share of one standby in a second."""
    stale: float | None = None
    """The share of answered reads that were stale; of pairs, that did not see their own write."""
    fair: float | None = None
    """From the return of a host until its share was fair again."""
    returned: bool = False
    """Whether a host returned."""
    without: float | None = None
    """The longest time in which no write was answered."""
    lost: int = 0
    """Writes that were answered but are not in the ledger."""
    double: int = 0
    """Numbers that are in the ledger twice."""

    def record(self) -> dict[str, Any]:
        """Return the figures as a dict of JSON types."""
        return asdict(self)


def evaluate(row: str, pool: str, observed: Observations, *, balance: bool) -> Cell:
    """Compute the figures of a cell.

    Args:
        row, pool: their names.
        observed: what the trial has recorded.
        balance: whether the share of the host in each second is a figure.
    """
    begin = observed.begin + WARM
    some = [each for each in observed.requests if begin <= each.start < observed.end]
    reads = [each for each in some if each.kind in {READ, PAIR}]
    writes = [each for each in some if each.kind == WRITE]
    answered = [each for each in reads if each.outcome == ANSWERED]
    cell = Cell(row, pool, reads=len(reads), writes=len(writes))
    cell.failed_reads, cell.failed_writes = _failed(reads), _failed(writes)
    times = sorted(each.end - each.start for each in answered)
    cell.p50, cell.p99 = _percentile(times, 0.5), _percentile(times, 0.99)
    if answered:
        cell.stale = _stale(observed.requests, answered)
    if balance:
        bins = (begin + number * BIN for number in range(int((observed.end - begin) / BIN)))
        found = (_share(answered, observed.host, start, ENOUGH_READS) for start in bins)
        shares = [share for share in found if share is not None]
        cell.share = (min(shares), max(shares)) if shares else None
    if observed.back is not None:
        cell.returned = True
        cell.fair = _fair(answered, observed)
    cell.without = None if balance else _without(writes, begin, observed.end)
    done = {each.number for each in observed.requests if each.number and each.outcome == ANSWERED}
    entered = Counter(observed.ledger)
    cell.lost = len(done - entered.keys())
    cell.double = sum(count > 1 for count in entered.values())
    return cell


def _failed(requests: Iterable[Request]) -> dict[str, int]:
    return dict(Counter(each.outcome for each in requests if each.outcome != ANSWERED))


def _stale(requests: list[Request], answered: list[Request]) -> float:
    """The share of reads that did not see what they had to see."""
    pairs = [each for each in answered if each.kind == PAIR]
    if pairs:
        return sum(not each.found for each in pairs) / len(pairs)
    writes = sorted(
        (each.end, each.number)
        for each in requests
        if each.kind == WRITE and each.outcome == ANSWERED
    )
    ends = [end for end, _ in writes]
    highest = [0, *accumulate((number for _, number in writes), max)]
    stale = [each.newest < highest[bisect_left(ends, each.start - STALE)] for each in answered]
    return sum(stale) / len(stale)


def _share(answered: list[Request], host: int, start: float, least: int = 1) -> float | None:
    """The share of a host in the reads answered in a second; None: there were too few."""
    ports = [each.port for each in answered if start <= each.end < start + BIN]
    return ports.count(host) / len(ports) if len(ports) >= least else None


def _fair(answered: list[Request], observed: Observations) -> float | None:
    """From when the share of the host is enough for a second, counted from its return."""
    assert observed.back is not None, "bug: no host returned"
    at = observed.back
    while at + BIN <= observed.end:
        share = _share(answered, observed.host, at)
        if share is not None and share >= ENOUGH * observed.fair:
            return at - observed.back
        at += STEP
    return None


def _without(writes: list[Request], begin: float, end: float) -> float | None:
    if not writes:
        return None
    ends = sorted(each.end for each in writes if each.outcome == ANSWERED and each.end < end)
    return max(later - earlier for earlier, later in pairwise([begin, *ends, end]))


def _percentile(ordered: list[float], share: float) -> float | None:
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None
