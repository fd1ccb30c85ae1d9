"""Compute the figures of a cell from what was observed; no I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.faults._load import Request

if TYPE_CHECKING:
    from benchmarks.faults._trial import Observations

SLOW = 1.0
"""The longest wait for a connection, in seconds, of a pool that has recovered."""


@dataclass
class Cell:
    """The figures of one pool under one fault; times are seconds, None means never."""

    fault: str
    pool: str
    status: str = "done"
    """"done", "hung" or "not run here"."""
    reason: str = ""
    requests: int = 0
    failed: int = 0
    avoidable: int = 0
    """Failed requests that could have been served."""
    errors: dict[str, int] = field(default_factory=dict)
    longest_wait: float = 0.0
    """Until a request had a connection, or failed without one."""
    longest: float = 0.0
    """From when a request was due to its end."""
    recovered: float | None = None
    """From the end of the fault until no request failed or waited for long any more."""
    full: float | None = None
    """From the end of the fault until all of the pool's connections were open."""
    most: int = 0
    """The most backends at the same time."""
    left: int = 0
    """Backends after the pool was closed."""
    close: float | None = None
    """The duration of `close()`."""
    attempts: int | None = None
    """Connects during the fault, where they are counted."""
    late: float | None = None
    """The longest time from a cancellation to its caller's return, where callers are cancelled."""
    lost: int = 0
    """Acknowledged numbers that are not in the ledger."""
    duplicated: int = 0
    """Numbers that are in the ledger more than once."""
    unknown: int = 0
    """Numbers in the ledger whose request failed."""

    @property
    def consistent(self) -> bool:
        """Whether each acknowledged number is in the ledger once."""
        return not self.lost and not self.duplicated

    def record(self) -> dict[str, Any]:
        """Return the figures as a dict of JSON types."""
        return {**asdict(self), "consistent": self.consistent}


def evaluate(fault: str, pool: str, observed: Observations, *, limit: float, size: int) -> Cell:
    """Compute the figures of a cell.

    Args:
        fault, pool: their names.
        observed: what the trial has recorded.
        limit: seconds that a request may wait for a connection.
        size: the pool's size.
    """
    requests = [Request(*each) for each in observed.finished["requests"]]
    bad = [each for each in requests if each.outcome == "failed"]
    asked = [each for each in requests if each.kind == "write"]
    cell = Cell(fault, pool, requests=len(requests), failed=len(bad))
    cell.avoidable = sum(not _excused(each, observed, limit) for each in bad)
    cell.errors = dict(Counter(each.error for each in bad).most_common())
    cell.longest_wait = max((_wait(each) for each in asked), default=0.0)
    cell.longest = max(((each.ended or 0) - each.due for each in asked), default=0.0)
    cell.recovered = _recovered(
        [each for each in asked if each.due >= observed.fault_end], observed.fault_end
    )
    full = (at for at, count in observed.samples if at >= observed.fault_end and count >= size)
    first = next(full, None)
    cell.full = None if first is None else first - observed.fault_end
    cell.most = max((count for _, count in observed.samples), default=0)
    cell.left, cell.attempts = observed.left, observed.attempts
    cell.close = observed.finished["close"]
    if problem := observed.finished["close_error"]:
        cell.reason = f"close() raised {problem}"
    late = [(each.ended or 0.0) - each.left for each in requests if each.left is not None]
    cell.late = max(late, default=None)
    _check_ledger(cell, requests, observed.ledger)
    return cell


def _check_ledger(cell: Cell, requests: list[Request], ledger: list[int]) -> None:
    entered = Counter(ledger)
    written = {each.number for each in requests if (each.kind, each.outcome) == ("write", "ok")}
    cell.lost = len(written - entered.keys())
    cell.duplicated = sum(count > 1 for count in entered.values())
    cell.unknown = len(entered.keys() - written)


def _wait(request: Request) -> float:
    return (request.borrowed or request.ended or 0.0) - request.due


def _excused(request: Request, observed: Observations, limit: float) -> bool:
    """Whether no pool could have served it: its connection broke, or the server refused all."""
    ended = request.ended or 0.0
    broken = request.borrowed is not None and any(
        request.borrowed <= end and ended >= start for start, end in observed.breaks
    )
    refused = any(start <= request.due <= end for start, end in observed.refusals)
    return (broken or refused) or any(
        request.due >= start and request.due + limit <= end for start, end in observed.outages
    )


def _recovered(later: list[Request], back: float) -> float | None:
    bad = [each.due for each in later if each.outcome != "ok" or _wait(each) > SLOW]
    last = max(bad, default=back)
    good = [each.ended or 0.0 for each in later if each.outcome == "ok" and each.due >= last]
    return min(good) - back if good else None
