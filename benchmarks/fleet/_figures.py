"""Compute the figures of a cell from what its processes printed; no I/O."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.fleet._processes import Line
from benchmarks.fleet._rows import Row

BIN = 0.5
"""Seconds of a part of the time in which a recovery is looked for."""
ENOUGH = 0.9
"""The part of the final throughput with which the processes have recovered."""


@dataclass
class Cell:
    """The figures of one pool in one row; None means none."""

    row: str
    pool: str
    reason: str = ""
    """Why there are no figures."""
    rate: float = 0.0
    """Answers a second of all processes, in the measured time."""
    jain: float | None = None
    """Jain's index of the answers of the busy processes in the measured time: 1 is equal."""
    newcomers: list[float | None] = field(default_factory=list)
    """For each newcomer the seconds to its first answer; None: it got none."""
    recovered: float | None = None
    """Seconds from the change until nearly the final throughput is reached."""
    most: int = 0
    """The most sessions that the processes had at any time, after a restart if there is one."""
    places: int = 0
    """The places for ordinary roles at the end."""
    connects: int = 0
    refused: int = 0
    """The bystander's connects, and those for which the server had no place."""
    errors: dict[str, int] = field(default_factory=dict)
    """Requests that failed, by the names of errors."""
    cpu: float | None = None
    """CPU seconds of the processes for an answer, in the measured time."""
    left: int = 0
    """Sessions that are left after the end of all processes."""
    hung: int = 0
    """Processes that had to be killed at the end."""

    def record(self) -> dict[str, Any]:
        """Return the figures as a dict of JSON types."""
        return asdict(self)


def evaluate(cell: Cell, row: Row, members: list[list[Line]], start: float, scale: float) -> None:
    """Compute what the lines of the processes say.

    Args:
        cell: the figures to complete.
        row: what was played.
        members: the lines of each process.
        start: when the row began.
        scale: by which all times of the row were multiplied.
    """
    end = start + row.seconds * scale
    begin = end - row.measured * scale
    busy = [_between(members[number], begin, end) for number in row.busy]
    total = sum(busy)
    cell.rate = total / (end - begin)
    cell.jain = jain(busy) if len(busy) > 1 else None
    cell.newcomers = [next((x.first for x in members[n] if x.first), None) for n in row.newcomers]
    errors: Counter[str] = Counter()
    for lines in members:
        errors.update(lines[-1].errors)
    cell.errors = dict(errors)
    used = sum(_cpu(members[number], begin, end) for number in row.busy)
    cell.cpu = used / total if total else None
    if row.event is not None:
        cell.recovered = _recovered(members, start + row.event * scale, end, cell.rate)


def jain(numbers: list[int]) -> float | None:
    """Return Jain's index of fairness: 1 if all are equal, 1 / n if one has all."""
    squares = sum(number * number for number in numbers)
    return sum(numbers) ** 2 / (len(numbers) * squares) if squares else None


def _recovered(members: list[list[Line]], event: float, end: float, rate: float) -> float | None:
    """The end of the first part of the time after the event with nearly the final throughput."""
    bins = int((end - event) / BIN)
    for number in range(bins):
        at = event + number * BIN
        answers = sum(_between(lines, at, at + BIN) for lines in members)
        if answers >= ENOUGH * rate * BIN:
            return (number + 1) * BIN
    return None


def _between(lines: list[Line], begin: float, end: float) -> int:
    return _at(lines, end).answers - _at(lines, begin).answers


def _cpu(lines: list[Line], begin: float, end: float) -> float:
    return _at(lines, end).cpu - _at(lines, begin).cpu


def _at(lines: list[Line], at: float) -> Line:
    """The last line before an instant, or the first one."""
    return lines[max(0, bisect_right(lines, at, key=lambda line: line.at) - 1)]
