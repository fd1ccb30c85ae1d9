"""The order of a wait queue in which requests have priorities or flows.

There is a line for each priority, the highest first, and in a line the flows take turns. Within a
flow the order is first in, first out.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from itertools import zip_longest
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from asyncpool._core.patience import Patience
from asyncpool._core.service_rate import ServiceRate

KEPT_LINES = 8
"""The number of lines above which those without waiters are dropped."""


class Place(Protocol):
    """The part of a waiter that the order depends on."""

    ticket: int
    """Tickets number the requests in order of arrival."""
    joined_at: float
    waiting: bool
    """Whether it is in the queue."""
    place: tuple[int, Hashable] | None
    """Its priority and the key of its flow; None: it has neither."""


W = TypeVar("W", bound=Place)


class Flow(Generic[W]):
    """The waiters of one flow, first in, first out."""

    __slots__ = ("key", "length", "line", "places", "rate", "since", "takes_turns")

    def __init__(self, line: Line[W], key: Hashable) -> None:
        self.line = line
        self.key = key
        self.places: deque[W] = deque()
        """The waiters; those that have left stay until they reach the front or `compact` runs."""
        self.length = 0
        """The number of waiters that have not left; only an `Order` counts them."""
        self.rate = ServiceRate()
        """The flow's part of the line's rate; only an `Order` measures it."""
        self.since = math.inf
        """The instant from which it has had waiters without a break, in an `Order`."""
        self.takes_turns = False
        """Whether it is among the `turns` of its line."""

    @property
    def ahead(self) -> int:
        """The waiters of its line that will be served before a new one, as far as is known."""
        flows = len(self.line.turns) + (not self.takes_turns)
        return min(self.line.length, (self.length + 1) * flows - 1)

    def put(self, waiter: W) -> None:
        """Add a waiter; one that rejoins the flow has its old ticket, and its old position."""
        places = self.places
        if not places or places[-1].ticket <= waiter.ticket:
            places.append(waiter)
        else:
            insort(places, waiter, key=attrgetter("ticket"))

    def head(self) -> W | None:
        """Return the first waiter; drop those before it that have left."""
        places = self.places
        while places and not places[0].waiting:
            places.popleft()
        return places[0] if places else None

    def compact(self) -> None:
        """Drop the waiters that have left."""
        self.places = deque(each for each in self.places if each.waiting)


class Line(Generic[W]):
    """The waiters of one priority, and what was measured of them."""

    __slots__ = (
        "flows",
        "length",
        "may_be_late",
        "patience",
        "plain",
        "priority",
        "rate",
        "turns",
        "use",
    )

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.plain: Flow[W] = Flow(self, None)
        """The flow of the requests that name none."""
        self.patience = Patience()
        self.use = 0.0
        """The mean duration of a use in seconds, when it was last needed."""
        self.may_be_late = False
        """Whether a waiter may have waited too long to use a connection before its deadline."""
        # Only an `Order` uses these.
        self.rate = ServiceRate()
        """The rate at which higher priorities let it be served."""
        self.length = 0
        """The number of waiters."""
        self.flows: dict[Hashable, Flow[W]] = {None: self.plain}
        """The plain flow, and those that take turns, by key."""
        self.turns: deque[Flow[W]] = deque()
        """The flows that may have waiters; the first one is served next."""

    def flow(self, key: Hashable) -> Flow[W]:
        """Return the flow with this key; a new one is kept only once it has a waiter."""
        found = self.flows.get(key)
        return Flow(self, key) if found is None else found


class Order(Generic[W]):
    """The order of all waiters, from the first that has a place until the queue is empty.

    Args:
        usual: the line of priority 0.
        waiters: the waiters of its plain flow, which have joined already.
        now: the current instant.
        since: the instant from which they have waited without a break.
    """

    __slots__ = ("_lines", "_usual", "kept")

    def __init__(self, usual: Line[W], waiters: Iterable[W], now: float, since: float) -> None:
        self._usual = usual
        self._lines = [usual]
        plain = usual.plain
        plain.length = usual.length = self.kept = sum(1 for _ in waiters)
        plain.rate, usual.rate, plain.since = ServiceRate(), ServiceRate(), since
        if plain.length:
            plain.rate.begin(now)
            usual.rate.begin(now)
            self._begin_turns(plain)

    def __iter__(self) -> Iterator[W]:
        for line in self._lines:
            flows = ((each for each in flow.places if each.waiting) for flow in line.turns)
            for turn in zip_longest(*flows):
                yield from (each for each in turn if each is not None)

    def flow(self, place: tuple[int, Hashable] | None) -> Flow[W]:
        """Return the flow of a place."""
        if place is None:
            return self._usual.plain
        priority, key = place
        for line in self._lines:
            if line.priority == priority:
                return line.flow(key)
        return Line[W](priority).flow(key)

    def add(self, waiter: W, flow: Flow[W]) -> None:
        """Add a waiter to its flow."""
        line, now = flow.line, waiter.joined_at
        self.kept += 1
        if not line.length:
            line.rate.begin(now)
            line.patience.expire(now)
            if line not in self._lines:
                self._keep(line)
        if not flow.length:
            flow.rate.begin(now)
            flow.since = now
        if not flow.takes_turns:
            self._begin_turns(flow)
        flow.put(waiter)
        flow.length += 1
        line.length += 1

    def remove(self, flow: Flow[W], now: float) -> None:
        """Note that a waiter of a flow is no longer in the queue."""
        line = flow.line
        flow.length -= 1
        line.length -= 1
        if not flow.length:
            flow.rate.end(now)
        if not line.length:
            line.rate.end(now)

    def head(self) -> W:
        """Return the waiter that is served next; there is one as long as there is an order."""
        for line in self._lines:
            turns = line.turns
            while turns:
                if (head := turns[0].head()) is not None:
                    return head
                flow = turns.popleft()
                flow.takes_turns = False
                if flow.key is not None:
                    del line.flows[flow.key]
        raise AssertionError("bug: the queue counts a waiter that it does not have")

    def end_turn(self, flow: Flow[W], now: float) -> None:
        """Count a hand-over to the flow, and pass the turn to the next one of its line."""
        flow.line.turns.rotate(-1)
        flow.rate.note(now)
        flow.line.rate.note(now)

    def compact(self) -> None:
        """Drop the waiters that have left, and the flows that have no others."""
        for line in self._lines:
            for flow in line.turns:
                flow.takes_turns = flow.length > 0
                flow.compact()
            line.turns = deque(flow for flow in line.turns if flow.takes_turns)
            line.flows = {None: line.plain, **{flow.key: flow for flow in line.turns}}
        self.kept = sum(line.length for line in self._lines)

    def oldest(self, line: Line[W]) -> float:
        """Return when the earliest of a line's waiters joined; infinite: there is none."""
        heads = (flow.head() for flow in line.turns)
        return min((each.joined_at for each in heads if each is not None), default=math.inf)

    def end(self) -> None:
        """Forget the flows of the usual line, which outlives this order: nobody waits."""
        usual = self._usual
        usual.plain.takes_turns = False
        usual.turns.clear()
        usual.flows = {None: usual.plain}

    def _begin_turns(self, flow: Flow[W]) -> None:
        """Let a flow that has waiters again take turns, after all others."""
        flow.takes_turns = True
        flow.line.flows[flow.key] = flow
        flow.line.turns.append(flow)

    def _keep(self, line: Line[W]) -> None:
        """Add a line; lines are kept for what was measured of them, while they are few."""
        if len(self._lines) > KEPT_LINES:
            self._lines = [each for each in self._lines if each.length or each is self._usual]
        insort(self._lines, line, key=lambda each: -each.priority)
