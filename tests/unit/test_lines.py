"""The order of waiters with priorities and flows, and what is measured of each."""

from __future__ import annotations

import math
from collections.abc import Hashable

import pytest

from asyncpool._core.lines import KEPT_LINES, Flow, Line, Order


class Request:
    """A waiter, as far as the order is concerned."""

    flow: Flow[Request]

    def __init__(self, ticket: int, place: tuple[int, Hashable] | None) -> None:
        self.ticket = ticket
        self.place = place
        self.joined_at = float(ticket)
        self.waiting = True


class Queue:
    """An order with requests, which arrive one second after the other."""

    def __init__(self, *places: tuple[int, Hashable] | None) -> None:
        self.line: Line[Request] = Line(0)
        self.order: Order[Request] = Order(self.line, [], 0.0, math.inf)
        self.now = 0.0
        self.requests: list[Request] = []
        for place in places:
            self.join(place)

    def join(self, place: tuple[int, Hashable] | None) -> Request:
        """Add a request."""
        self.now += 1.0
        request = Request(int(self.now), place)
        request.flow = self.order.flow(place)
        self.order.add(request, request.flow)
        self.requests.append(request)
        return request

    def leave(self, request: Request) -> None:
        """Let a request leave, as where its caller is cancelled."""
        request.waiting = False
        self.order.remove(request.flow, self.now)

    def serve(self) -> int:
        """Serve the next request, and return its ticket."""
        request = self.order.head()
        request.flow.places.popleft()
        self.order.end_turn(request.flow, self.now)
        self.leave(request)
        return request.ticket

    def lengths(self) -> list[int]:
        """The number of waiters in each flow of the plain line."""
        return [flow.length for flow in self.line.turns]


A, B, PLAIN = (0, "a"), (0, "b"), None


class TestOrder:
    """Who is served next."""

    def test_flows_take_turns_and_higher_priorities_are_first(self) -> None:
        """Within a flow the order is that of arrival; iteration shows the order."""
        queue = Queue(A, A, B, PLAIN, (1, None), (-1, None), (1, "a"))
        expected = [5, 7, 1, 3, 4, 2, 6]
        assert [each.ticket for each in queue.order] == expected
        assert [queue.serve() for _ in expected] == expected
        with pytest.raises(AssertionError, match="bug"):
            queue.order.head()

    def test_those_that_have_left_are_skipped(self) -> None:
        """A flow of which all have left is forgotten when its turn comes, the plain one is not."""
        queue = Queue(A, PLAIN, A, B)
        for request in queue.requests[:3]:
            queue.leave(request)
        assert [each.ticket for each in queue.order] == [4]
        assert queue.serve() == 4
        assert queue.line.flows.keys() == {None, "b"}
        again = queue.join(PLAIN)
        assert again.flow is queue.line.plain
        assert queue.serve() == again.ticket

    def test_a_request_that_rejoins_its_flow_has_its_old_position(self) -> None:
        """By its ticket."""
        queue = Queue(A, A)
        old = Request(0, A)
        old.flow = queue.order.flow(A)
        queue.order.add(old, old.flow)
        assert [queue.serve() for _ in range(3)] == [0, 1, 2]

    def test_a_flow_of_a_new_priority_has_its_key(self) -> None:
        """It is kept once it has a waiter."""
        queue = Queue(PLAIN)
        flow = queue.order.flow((7, "x"))
        assert (flow.key, flow.line.priority, flow.length) == ("x", 7, 0)
        assert queue.order.flow((7, "x")) is not flow
        assert queue.join((7, "x")).flow is queue.order.flow((7, "x"))


class TestAhead:
    """The waiters that are served before a new one."""

    def test_a_small_flow_waits_for_few(self) -> None:
        """At most one of each other flow for each of its own."""
        queue = Queue(*[A] * 10, B)
        places = (A, B, (0, "new"), PLAIN)
        assert [queue.order.flow(place).ahead for place in places] == [11, 3, 2, 2]

    def test_there_are_never_more_than_wait(self) -> None:
        """Whatever the turns."""
        queue = Queue(A, A, B, PLAIN)
        places = (A, B, PLAIN, (0, "new"), (1, "new"))
        assert [queue.order.flow(place).ahead for place in places] == [4, 4, 4, 3, 0]


class TestMeasures:
    """What is counted and measured of lines and flows."""

    def test_an_order_begins_with_those_that_wait_already(self) -> None:
        """They have waited since an earlier instant than that of the order's rates."""
        line: Line[Request] = Line(0)
        order = Order(line, [Request(1, None), Request(2, None)], 5.0, 3.0)
        assert (order.kept, line.length, line.plain.length) == (2, 2, 2)
        assert (line.plain.since, line.plain.rate.since, line.rate.since) == (3.0, 5.0, 5.0)
        assert list(line.turns) == [line.plain]

    def test_rates_are_measured_while_requests_wait(self) -> None:
        """From the first that joins to the last that leaves; hand-overs are counted."""
        queue = Queue(A, A, B)
        flow = queue.requests[0].flow
        assert (flow.since, flow.rate.since, queue.line.rate.since) == (1.0, 1.0, 1.0)
        assert queue.requests[2].flow.since == 3.0
        assert queue.serve() == 1
        assert (flow.rate.count, queue.line.rate.count) == (1, 1)
        assert flow.rate.since == 1.0
        queue.leave(queue.requests[1])
        assert (flow.rate.since, queue.line.rate.since) == (math.inf, 1.0)
        queue.leave(queue.requests[2])
        assert queue.line.rate.since == math.inf
        assert queue.line.length == 0
        assert queue.join(A).flow.since == 4.0

    def test_the_patience_of_a_line_is_forgotten_when_it_begins_anew(self) -> None:
        """If nothing has confirmed it for long."""
        queue = Queue(PLAIN)
        line = queue.join((1, None)).flow.line
        line.patience.limit = 0.01
        queue.join((1, None))
        assert line.patience.limit == 0.01
        for request in queue.requests[1:]:
            queue.leave(request)
        queue.join((1, None))
        assert line.patience.limit == math.inf


class TestMemory:
    """What has left is dropped."""

    def test_compacting_drops_requests_and_flows(self) -> None:
        """Those that wait stay, in their order."""
        queue = Queue(A, A, B, PLAIN, (1, "c"))
        assert queue.order.kept == 5
        for request in (queue.requests[0], queue.requests[2], queue.requests[4]):
            queue.leave(request)
        queue.order.compact()
        assert queue.order.kept == 2
        assert queue.lengths() == [1, 1]
        assert [len(flow.places) for flow in queue.line.turns] == [1, 1]
        assert queue.line.flows.keys() == {None, "a"}
        assert queue.join(B).flow.takes_turns
        assert [queue.serve() for _ in range(3)] == [2, 4, 6]

    def test_the_plain_flow_may_be_without_waiters(self) -> None:
        """It does not take turns then, and does so again with its next waiter."""
        queue = Queue(PLAIN, A)
        queue.leave(queue.requests[0])
        queue.order.compact()
        assert queue.lengths() == [1]
        assert not queue.line.plain.takes_turns
        queue.join(PLAIN)
        assert queue.lengths() == [1, 1]

    def test_few_lines_without_waiters_are_kept(self) -> None:
        """They are kept for what was measured of them, but any number may name a priority."""
        queue = Queue(PLAIN)
        for priority in range(1, 3 * KEPT_LINES):
            queue.leave(queue.join((priority, None)))
        assert len(queue.order._lines) <= KEPT_LINES + 1
        assert queue.line in queue.order._lines
        assert queue.order.flow(None) is queue.line.plain
        few = Queue(PLAIN)
        line = few.join((1, None)).flow.line
        few.leave(few.requests[1])
        for priority in range(2, KEPT_LINES):
            few.join((priority, None))
        assert few.order.flow((1, None)).line is line

    def test_lines_with_waiters_are_kept_however_many_there_are(self) -> None:
        """So is the usual one, without waiters too."""
        queue = Queue(*((priority, None) for priority in range(1, 3 * KEPT_LINES)))
        assert [queue.serve() for _ in range(3)] == [23, 22, 21]
        assert queue.line in queue.order._lines
        assert [each.ticket for each in queue.order] == list(range(20, 0, -1))

    def test_the_oldest_of_a_line_is_that_of_all_its_flows(self) -> None:
        """Those that have left do not count."""
        queue = Queue(A, B, A, PLAIN)
        assert queue.order.oldest(queue.line) == 1.0
        queue.leave(queue.requests[0])
        assert queue.order.oldest(queue.line) == 2.0
        for request in queue.requests[1:]:
            queue.leave(request)
        assert queue.order.oldest(queue.line) == math.inf

    def test_at_the_end_the_usual_line_is_as_before(self) -> None:
        """It outlives the order."""
        queue = Queue(PLAIN, A)
        for request in queue.requests:
            queue.leave(request)
        queue.order.end()
        plain = queue.line.plain
        assert not queue.line.turns
        assert (plain.takes_turns, queue.line.flows) == (False, {None: plain})
