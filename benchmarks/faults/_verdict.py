"""From what was seen to the figures of a cell: pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.faults._load import Request

if TYPE_CHECKING:
    from benchmarks.faults._stage import Seen

SLOW = 1.0
"""Seconds that a request waits for a connection once the pool is whole again, at most."""


@dataclass
class Cell:
    """One pool and one fault; times are seconds, None is never."""

    scene: str
    pool: str
    status: str = "done"
    """done, hung or "not run here"."""
    reason: str = ""
    requests: int = 0
    failed: int = 0
    avoidable: int = 0
    """Failed although they had no connection when the fault struck, and time enough."""
    errors: dict[str, int] = field(default_factory=dict)
    longest_wait: float = 0.0
    """For a connection, or until it failed without one."""
    longest: float = 0.0
    whole: float | None = None
    """From the end of the fault until requests neither failed nor waited for long."""
    full: float | None = None
    """From the end of the fault until there were as many backends as there are to be."""
    most: int = 0
    """Backends at once."""
    left: int = 0
    """Backends after the pool was closed."""
    close: float | None = None
    attempts: int | None = None
    """Connections that were begun during the fault, where that is counted."""
    late: float | None = None
    """The longest from a cancellation until the caller was let go, where there were any."""
    lost: int = 0
    """Acknowledged, and not in the ledger."""
    twice: int = 0
    """More than once in the ledger."""
    unknown: int = 0
    """In the ledger, although the request failed."""

    @property
    def balanced(self) -> bool:
        """Whether what was acknowledged is in the ledger, once."""
        return not self.lost and not self.twice

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "balanced": self.balanced}


def judge(scene: str, pool: str, seen: Seen, *, limit: float, size: int) -> Cell:
    """The figures.

    Args:
        scene, pool: the names.
        seen: all there is.
        limit: seconds that a request might wait for a connection.
        size: connections that the pool was to have.
    """
    requests = [Request(*each) for each in seen.finished["requests"]]
    bad = [each for each in requests if each.outcome == "failed"]
    asked = [each for each in requests if each.kind == "write"]
    cell = Cell(scene, pool, requests=len(requests), failed=len(bad))
    cell.avoidable = sum(not _excused(each, seen, limit) for each in bad)
    cell.errors = dict(Counter(each.error for each in bad).most_common())
    cell.longest_wait = max((_wait(each) for each in asked), default=0.0)
    cell.longest = max(((each.ended or 0) - each.due for each in asked), default=0.0)
    cell.whole = _whole([each for each in asked if each.due >= seen.back], seen.back)
    full = (at for at, count in seen.samples if at >= seen.back and count >= size)
    first = next(full, None)
    cell.full = None if first is None else first - seen.back
    cell.most = max((count for _, count in seen.samples), default=0)
    cell.left, cell.attempts = seen.left, seen.attempts
    cell.close = seen.finished["close"]
    if problem := seen.finished["close_error"]:
        cell.reason = f"close() raised {problem}"
    late = [(each.ended or 0.0) - each.left for each in requests if each.left is not None]
    cell.late = max(late, default=None)
    _balance(cell, requests, seen.ledger)
    return cell


def _balance(cell: Cell, requests: list[Request], ledger: list[int]) -> None:
    entered = Counter(ledger)
    written = {each.number for each in requests if (each.kind, each.outcome) == ("write", "ok")}
    cell.lost = len(written - entered.keys())
    cell.twice = sum(count > 1 for count in entered.values())
    cell.unknown = len(entered.keys() - written)


def _wait(request: Request) -> float:
    return (request.borrowed or request.ended or 0.0) - request.due


def _excused(request: Request, seen: Seen, limit: float) -> bool:
    """Whether no pool could have helped it: its own connection broke, or nobody was served."""
    ended = request.ended or 0.0
    broken = request.borrowed is not None and any(
        request.borrowed <= end and ended >= start for start, end in seen.strikes
    )
    refused = any(start <= request.due <= end for start, end in seen.errors)
    return (broken or refused) or any(
        request.due >= start and request.due + limit <= end for start, end in seen.outages
    )


def _whole(later: list[Request], back: float) -> float | None:
    bad = [each.due for each in later if each.outcome != "ok" or _wait(each) > SLOW]
    last = max(bad, default=back)
    good = [each.ended or 0.0 for each in later if each.outcome == "ok" and each.due >= last]
    return min(good) - back if good else None
