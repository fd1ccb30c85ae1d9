"""The schedule of a run: when each request comes, computed in advance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from benchmarks.overload._rows import Phase, Row, Stream


@dataclass(slots=True)
class Request:
    """A request, and what became of it; instants are seconds since the start of the run."""

    stream: Stream
    due: float
    use: float
    started: float = 0.0
    ended: float = 0.0
    outcome: str = ""
    """"answered", "refused", "timed out" or the name of an error."""

    @property
    def good(self) -> bool:
        """Whether it was answered before its deadline."""
        return self.outcome == "answered" and self.ended - self.due <= self.stream.deadline


@dataclass(frozen=True)
class Span:
    """A phase with its place in the run."""

    start: float
    end: float
    phase: Phase

    def holds(self, instant: float) -> bool:
        """Whether an instant is in the phase."""
        return self.start <= instant < self.end


def spans(phases: list[Phase]) -> list[Span]:
    """Return the phases with their places."""
    ends = accumulate(phase.seconds for phase in phases)
    return [Span(end - phase.seconds, end, phase) for phase, end in zip(phases, ends, strict=True)]


def schedule(row: Row, places: list[Span], capacity: float, random: Random) -> list[Request]:
    """Return the requests of a run, in order.

    Args:
        row: who asks.
        places: the phases.
        capacity: requests a second.
        random: the source of instants and uses.
    """
    found: list[Request] = []
    for stream in row.streams:
        instants = [*_first(row, stream, capacity), *_instants(stream, places, capacity, random)]
        found += [Request(stream, due, random.choice(stream.uses)) for due in instants]
    return sorted(found, key=lambda request: request.due)


def _first(row: Row, stream: Stream, capacity: float) -> list[float]:
    """The burst with which an overload begins: for each deadline, as many as fit in it."""
    if not row.queues:
        return []
    same = sum(each.load for each in row.streams if each.deadline == stream.deadline)
    return [0.0] * round(capacity * stream.deadline * stream.load / same)


def _instants(
    stream: Stream, places: list[Span], capacity: float, random: Random
) -> Iterator[float]:
    if stream.every is not None:
        due = places[0].end
        while due < places[-1].start:
            yield from [due] * round(stream.load * stream.every * capacity)
            due += stream.every
        return
    for place in places:
        rate = stream.load * place.phase.factor * capacity
        due = place.start + random.expovariate(rate)
        while due < place.end:
            yield due
            due += random.expovariate(rate)
