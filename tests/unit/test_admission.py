"""What the wait queue learns from its own past, and that no past makes it refuse for ever."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpool._core.admission import QueuePace, Refusal, judge, pace
from asyncpool._core.lines import Flow, Line
from asyncpool._core.patience import ENOUGH, Patience
from asyncpool._core.service_rate import MARKS, STEP, ServiceRate
from asyncpool._core.settings import UNBOUNDED
from asyncpool.errors import PoolTimeout, TooManyRequests
from tests._tools import acquire_now, few
from tests.unit._load import USE, Load
from tests.unit._tools import Driver, running, use, virtual_time


class TestServiceRate:
    """`ServiceRate`: hand-overs a second while requests wait."""

    def test_it_is_unknown_at_first(self) -> None:
        """Fewer than STEP hand-overs make no rate."""
        rate = ServiceRate()
        rate.begin(0.0)
        for number in range(STEP - 1):
            rate.note(number * 0.1)
        assert rate.measure(1.0, 2.0) == 0.0

    def test_it_is_that_of_the_window(self) -> None:
        """A change shows as soon as the window has passed."""
        rate, now = ServiceRate(), 0.0
        rate.begin(now)
        for pause in [0.1] * 200 + [0.01] * 200:
            now += pause
            rate.note(now)
        assert rate.measure(1.0, now) == pytest.approx(100, rel=0.02)
        assert rate.measure(22.0, now) == pytest.approx(400 / 22, rel=0.1)

    def test_time_without_waiters_does_not_count(self) -> None:
        """The queue is empty for as long as it was not; the rate is that of the waits."""
        rate, now = ServiceRate(), 0.0
        for _ in range(10):
            rate.begin(now)
            for _ in range(20):
                now += 0.1
                rate.note(now)
            rate.end(now)
            now += 1.0
        rate.begin(now)
        assert rate.measure(100.0, now) == pytest.approx(10, rel=0.01)

    def test_it_is_forgotten_after_a_pause(self) -> None:
        """What was measured before a pause longer than itself says nothing."""
        rate = ServiceRate()
        rate.begin(0.0)
        for number in range(4 * STEP):
            rate.note(number * 0.1)
        rate.end(6.4)
        rate.begin(20.0)
        assert rate.measure(1.0, 20.0) == 0.0

    def test_a_stall_shows(self) -> None:
        """Without a hand-over the rate falls; it rises again with the next ones."""
        rate = ServiceRate()
        rate.begin(0.0)
        for number in range(100):
            rate.note(number * 0.01)
        assert rate.measure(0.5, 1.0) == pytest.approx(100, rel=0.05)
        assert rate.measure(0.5, 11.0) < 4
        for number in range(2 * STEP):
            rate.note(11.0 + number * 0.01)
        assert rate.measure(0.1, 11.0 + 2 * STEP * 0.01) == pytest.approx(100, rel=0.1)

    def test_its_first_value_is_that_of_the_first_hand_overs(self) -> None:
        """STEP of them, from the instant at which requests began to wait."""
        rate = ServiceRate()
        assert rate.begin(10.0)
        for number in range(STEP):
            rate.note(10.5 + number / 2)
        assert rate.measure(1.0, 18.0) == pytest.approx(2.0)
        assert rate.measure(1.0, 26.0) == pytest.approx(1.0)
        assert rate.measure_or_bound(1.0, 1.0, 18.0) == pytest.approx(2.0)

    def test_without_a_value_a_long_wait_bounds_it(self) -> None:
        """There were fewer than STEP hand-overs in it."""
        rate = ServiceRate()
        rate.begin(10.0)
        assert rate.measure_or_bound(1.0, 4.0, 14.0) == 0.0
        assert rate.measure_or_bound(1.0, 4.0, 15.0) == pytest.approx(STEP / 5.0)

    def test_a_short_pause_keeps_it_and_a_long_one_begins_anew(self) -> None:
        """Of the count too, so that the marks stay STEP hand-overs apart."""
        rate = ServiceRate()
        rate.begin(0.0)
        for number in range(STEP + 3):
            rate.note(float(number + 1))
        rate.end(19.0)
        assert rate.since == math.inf
        assert not rate.begin(37.0)
        rate.end(37.0)
        assert rate.measure(100.0, 37.0) == pytest.approx(1.0)
        assert rate.count == STEP + 3
        assert rate.begin(57.0)
        assert (rate.measure(100.0, 57.0), rate.count) == (0.0, 0)

    def test_a_request_that_rejoins_came_before_the_end(self) -> None:
        """Time is not counted twice."""
        rate = ServiceRate()
        rate.begin(0.0)
        for number in range(STEP):
            rate.note(float(number + 1))
        rate.end(16.0)
        rate.begin(3.0)
        assert rate.since == 16.0
        assert rate.measure(100.0, 16.0) == pytest.approx(1.0)

    def test_its_memory_is_limited(self) -> None:
        """It is kept for each flow."""
        rate = ServiceRate()
        rate.begin(0.0)
        for number in range(MARKS * STEP * 2):
            rate.note(number * 0.01)
        assert len(rate._marks) == MARKS


class TestPatience:
    """`Patience`: the age at which callers cancel."""

    def learn(
        self,
        patience: Patience,
        age: float,
        number: int = ENOUGH,
        *,
        until: float = 0.0,
        **more: float,
    ) -> None:
        """Let some requests be cancelled at an age, a hundredth of it apart, until an instant."""
        for each in range(number):
            now = until + (each + 1 - number) * age / 100
            facts: dict[str, Any] = {"served": each, "oldest": age} | more
            patience.note_cancelled(now - age, now, **facts)

    def test_it_is_learnt_from_many_cancellations(self) -> None:
        """ENOUGH are needed; it is near the age of the earliest of them."""
        patience = Patience()
        self.learn(patience, 1.0, ENOUGH - 1)
        assert patience.limit == math.inf
        patience.note_cancelled(-1.9, 0.1, served=20, oldest=1.0)
        assert patience.limit == pytest.approx(1.0)

    def test_it_is_near_the_earliest_of_the_ages(self) -> None:
        """A quarter of them is below it, and the last ENOUGH count."""
        patience = Patience()
        for age in range(ENOUGH):
            now = 10.0 * age
            patience.note_cancelled(now - (100 + age), now, served=0, oldest=100.0)
        assert patience.limit == 100 + ENOUGH // 4
        for age in range(ENOUGH):
            now = 1000.0 + 10 * age
            patience.note_cancelled(now - (900 + age), now, served=0, oldest=900.0)
        assert patience.limit == 900 + ENOUGH // 4

    @pytest.mark.parametrize("more", [0, 1])
    def test_fewer_than_four_hand_overs_for_each_are_no_accidents(self, more: int) -> None:
        """Those together count too, as they are cancellations."""
        patience = Patience()
        for number in range(ENOUGH):
            last = number == ENOUGH - 1
            served = 4 * ENOUGH - 1 + more if last else 0
            patience.note_cancelled(number - 1.0, float(number), served=served, oldest=1.0)
        assert patience.limit == (math.inf if more else 1.0)

    def test_a_new_count_of_hand_overs_begins_anew(self) -> None:
        """Cancellations before the queue was empty for long are not counted with those after."""
        patience = Patience()
        self.learn(patience, 1.0, ENOUGH - 1, served=100.0)
        patience.note_cancelled(99.0, 100.0, served=0, oldest=1.0)
        assert patience.limit == math.inf
        self.learn(patience, 1.0, ENOUGH - 1, until=200.0, served=0)
        assert patience.limit == pytest.approx(1.0)

    def test_rare_cancellations_are_accidents(self) -> None:
        """Where most requests are served, some clients that disconnect teach nothing."""
        patience = Patience()
        for number in range(200):
            patience.note_cancelled(number - 0.1, number, served=number * 10, oldest=0.1)
        assert patience.limit == math.inf

    @pytest.mark.parametrize("together", ["came", "went"])
    def test_a_group_is_one_caller(self, together: str) -> None:
        """Tasks of one group that is cancelled, or all clients of a gateway that restarts."""
        patience = Patience()
        for number in range(100):
            joined_at = -0.5 if together == "came" else number / 200 - 0.5
            now = number / 200 if together == "came" else 0.0
            patience.note_cancelled(joined_at, now, served=number, oldest=0.5)
        assert patience.limit == math.inf

    def test_one_that_still_waits_disproves_it(self) -> None:
        """Callers cannot all give up at an age that another has outlived."""
        patience = Patience()
        self.learn(patience, 1.0, oldest=1.3)
        assert patience.limit == math.inf
        patience = Patience()
        self.learn(patience, 1.0, oldest=1.2)
        assert patience.limit == pytest.approx(1.0)
        patience = Patience()
        self.learn(patience, 4.0, oldest=4.8)
        assert patience.limit == pytest.approx(4.0)
        patience.extend(100.0, oldest=4.8)
        assert patience.limit == pytest.approx(8.0)
        patience.extend(300.0, oldest=4.8)
        assert patience.limit == pytest.approx(16.0)

    def test_waits_that_are_longer_disprove_it(self) -> None:
        """ENOUGH requests that were served after a longer wait, and it is forgotten."""
        patience = Patience()
        self.learn(patience, 1.0)
        for _ in range(ENOUGH - 1):
            patience.note_served()
        assert patience.limit == pytest.approx(1.0)
        patience.note_served()
        assert patience.limit == math.inf

    def test_a_cancellation_confirms_it_against_longer_waits(self) -> None:
        """The longer waits are counted anew; so they are once it was forgotten and learnt again."""
        patience = Patience()
        self.learn(patience, 1.0)
        for _ in range(ENOUGH - 1):
            patience.note_served()
        patience.note_cancelled(49.0, 50.0, served=20, oldest=1.0)
        for _ in range(ENOUGH - 1):
            patience.note_served()
        assert patience.limit == pytest.approx(1.0)
        patience.note_served()
        assert patience.limit == math.inf
        patience.note_cancelled(59.0, 60.0, served=20, oldest=1.0)
        assert patience.limit == math.inf, "one is not enough, though there were others before"
        self.learn(patience, 1.0, until=80.0, served=20)
        for _ in range(ENOUGH - 1):
            patience.note_served()
        assert patience.limit == pytest.approx(1.0)

    def test_it_is_forgotten_when_nothing_confirms_it(self) -> None:
        """Where requests wait again much later, the callers may be others."""
        patience = Patience()
        self.learn(patience, 1.0)
        patience.expire(10.0)
        assert patience.limit == pytest.approx(1.0)
        patience.expire(50.0)
        assert patience.limit == math.inf

    def test_it_is_extended_while_requests_wait(self) -> None:
        """It is what prevents cancellations; so it doubles after 16 times its length."""
        patience = Patience()
        self.learn(patience, 1.0)
        assert [patience.is_doubtful(now) for now in (15.0, 17.0)] == [False, True]
        patience.extend(17.0, oldest=1.2)
        assert patience.limit == pytest.approx(2.0)
        assert [patience.is_doubtful(now) for now in (48.0, 50.0)] == [False, True]
        self.learn(patience, 1.0, until=80.0)
        assert patience.limit == pytest.approx(1.0)
        assert not patience.is_doubtful(90.0)

    def test_one_that_still_waits_disproves_a_doubtful_limit(self) -> None:
        """Nobody was cancelled for long, although a request has waited for longer."""
        patience = Patience()
        self.learn(patience, 1.0)
        patience.extend(17.0, oldest=1.3)
        assert patience.limit == math.inf
        assert not patience.is_doubtful(1000.0)


def rate_of(rate: float, *, stands: float = 100.0) -> ServiceRate:
    """The rate of a queue that has served for 100 s until the instant 0, and stands for some."""
    found = ServiceRate()
    found.begin(-100.0)
    began = stands == 100.0
    for number in range(int(rate * 100)):
        now = (number + 1) / rate - 100.0
        if not began and now > -stands:
            began = True
            found.end(-stands)
            found.begin(-stands)
        found.note(now)
    return found


def asked(
    total: ServiceRate, ahead: int, limit: float, *, leased: int = 1, refuses: bool = False
) -> Refusal | int:
    """Judge a request in the plain flow of a queue that has no order."""
    flow = Line[Any](0).plain
    return judge(
        total,
        flow,
        ahead,
        limit,
        0.0,
        patience=math.inf,
        leased=leased,
        coming=0,
        refuses=refuses,
    )


class TestJudge:
    """`judge`: the rule itself."""

    @given(
        rate=st.floats(0.5, 50),
        limit=st.floats(0.01, 100),
        ahead=st.integers(0, 2000),
        leased=st.integers(0, 100),
        refuses=st.booleans(),
    )
    def test_it_is_consistent(
        self, rate: float, limit: float, ahead: int, leased: int, refuses: bool
    ) -> None:
        """Who may join may do so with fewer ahead; a refusal says a wait, and when to return."""
        total = rate_of(rate)

        def verdict_of(ahead: int) -> Refusal | int:
            return asked(total, ahead, limit, leased=leased, refuses=refuses)

        verdict = verdict_of(ahead)
        if isinstance(verdict, Refusal):
            assert verdict.expected_wait is not None
            assert verdict.retry_after is not None
            assert verdict.expected_wait > 0
            assert limit <= verdict.retry_after <= 4 * limit
            assert isinstance(verdict_of(ahead + 1), Refusal)
        else:
            assert verdict > ahead
            assert not isinstance(verdict_of(verdict - 1), Refusal)
            assert ahead == 0 or not isinstance(verdict_of(ahead - 1), Refusal)

    def test_an_infinite_limit_refuses_nobody(self) -> None:
        """Nor does a rate that is not known."""
        for refuses in (False, True):
            verdict = asked(rate_of(0.5), 10**6, math.inf, refuses=refuses)
            assert not isinstance(verdict, Refusal)
            verdict = asked(ServiceRate(), 10**6, 0.001, refuses=refuses)
            assert not isinstance(verdict, Refusal)

    def test_three_uses_are_reserved_but_at_most_half(self) -> None:
        """With ten connections and ten hand-overs a second a use takes a second."""
        for limit, allowed in ((10.0, 7.0), (100.0, 97.0), (4.0, 2.0)):
            room = int((math.sqrt(1 + 10 * allowed) - 1) ** 2)
            assert asked(rate_of(10), 0, limit, leased=10) == room

    def test_a_standing_queue_refuses_more_and_more(self) -> None:
        """After one and a half limits a newcomer may wait a tenth of its limit."""

        def most(stands: float) -> Refusal | int:
            return asked(rate_of(100, stands=stands), 0, 1.0, refuses=True)

        assert most(0.1) == most(0.4) == int((math.sqrt(1 + 97) - 1) ** 2)
        assert most(1.0) == int((math.sqrt(1 + 50) - 1) ** 2)
        assert most(1.5) == most(90.0) == int((math.sqrt(1 + 10) - 1) ** 2)
        for stands, allowed in ((0.5, 3.97), (5.0, 1.0), (90.0, 0.4)):
            room = int((math.sqrt(1 + 100 * allowed) - 1) ** 2)
            assert asked(rate_of(100, stands=stands), 0, 4.0, refuses=True) == room

    def test_connections_that_are_being_opened_will_serve_too(self) -> None:
        """Each does what one of those in use does."""
        flow = Line[Any](0).plain
        rest: dict[str, Any] = {"patience": math.inf, "refuses": False}
        for leased, coming, times in ((1, 0, 1), (1, 1, 2), (2, 1, 1.5), (0, 2, 3)):
            verdict = judge(rate_of(10), flow, 0, 100.0, 0.0, leased=leased, coming=coming, **rest)
            allowed = 100.0 - 3 * max(leased, 1) / 10
            assert verdict == int((math.sqrt(1 + times * 10 * allowed) - 1) ** 2)

    def test_the_shorter_of_limit_and_patience_decides(self) -> None:
        """The refusal names it, and when to come again."""
        flow = Line[Any](0).plain
        rest: dict[str, Any] = {"leased": 1, "coming": 0, "refuses": False}
        for patience, rule, limit in ((0.5, "patience", 0.5), (2.0, "deadline", 1.0)):
            verdict = judge(rate_of(10), flow, 19, 1.0, 0.0, patience=patience, **rest)
            assert isinstance(verdict, Refusal)
            assert verdict.rule == rule
            assert verdict.expected_wait == pytest.approx(2.0)
            assert verdict.retry_after == pytest.approx(min(2.0, 4 * limit))
        assert asked(rate_of(10), 5, math.inf) == UNBOUNDED
        assert asked(ServiceRate(), 5, 1.0) == 5 + STEP

    @staticmethod
    def in_order(line_rate: float, flow_rate: float = 0.0, waiting: int = 1) -> Flow[Any]:
        """A flow of a line with an order, of which nobody waits."""
        line = Line[Any](0)
        line.length, line.rate = 40, rate_of(line_rate)
        flow = line.flow("flow")
        if flow_rate:
            flow.length, flow.rate, flow.since = waiting, rate_of(flow_rate), -100.0
        return flow

    def ordered(self, flow: Flow[Any], ahead: int, *, refuses: bool = False) -> Refusal | int:
        """Judge a request in an order, where the queue serves a hundred a second."""
        rest: dict[str, Any] = {"patience": math.inf, "leased": 1, "coming": 0}
        return judge(rate_of(100), flow, ahead, 1.0, 0.0, refuses=refuses, **rest)

    def test_in_an_order_the_lines_own_rate_counts(self) -> None:
        """Higher priorities leave it only a part of all."""
        assert self.ordered(self.in_order(10), 0) == int((math.sqrt(1 + 9.7) - 1) ** 2)
        assert self.ordered(self.in_order(200), 0) == int((math.sqrt(1 + 97) - 1) ** 2)
        late = self.ordered(self.in_order(10), 9)
        assert isinstance(late, Refusal)
        assert late.expected_wait == pytest.approx(1.0)

    def test_in_an_order_a_flow_that_is_served_rarely_counts(self) -> None:
        """If it says a longer wait than the line does."""
        late = self.ordered(self.in_order(10, 2, waiting=3), 9)
        assert isinstance(late, Refusal)
        assert late.expected_wait == pytest.approx(4 / 2, rel=0.1)
        late = self.ordered(self.in_order(10, 8, waiting=3), 19)
        assert isinstance(late, Refusal)
        assert late.expected_wait == pytest.approx(20 / 10)

    def test_in_an_order_a_flow_stands_for_itself(self) -> None:
        """One that has just begun to wait, or that nobody waits in, does not stand."""
        full = int((math.sqrt(1 + 97) - 1) ** 2)
        flow = self.in_order(100)
        assert self.ordered(flow, 0, refuses=True) == full
        flow = self.in_order(100, 100)
        assert self.ordered(flow, 0, refuses=True) == int((math.sqrt(1 + 10) - 1) ** 2)
        flow.since = -0.1
        assert self.ordered(flow, 0, refuses=True) == full
        flow.length, flow.since, flow.rate = 0, -100.0, rate_of(1)  # all have left
        assert self.ordered(flow, 0, refuses=True) == full


class TestPace:
    """`pace`: how a line waits and is served, for `stats()`."""

    @staticmethod
    def of(line: Line[Any], total: ServiceRate, limit: float = 1.0, **more: int) -> QueuePace:
        """The pace at the instant 0, with 19 waiters before a new one."""
        numbers = {"leased": 1, "coming": 0} | more
        return pace(total, line, 19, limit, 0.0, **numbers)

    def test_it_is_zero_where_nobody_waits(self) -> None:
        """But for the patience."""
        line = Line[Any](0)
        assert self.of(line, ServiceRate()) == QueuePace()
        line.patience.limit = 0.5
        assert self.of(line, ServiceRate()) == QueuePace(patience=0.5)

    def test_it_is_that_of_the_queue_or_in_an_order_of_the_line(self) -> None:
        """The wait is shorter for connections that are being opened."""
        line = Line[Any](0)
        found = self.of(line, rate_of(10, stands=7.0))
        assert (found.service_rate, found.expected_wait, found.standing) == pytest.approx(
            (10, 2.0, 7.0), rel=0.02
        )
        assert self.of(line, rate_of(10), coming=1).expected_wait == pytest.approx(1.0)
        assert self.of(line, rate_of(10), leased=3, coming=1).expected_wait == pytest.approx(1.5)
        assert self.of(line, rate_of(10), leased=0, coming=1).expected_wait == pytest.approx(1.0)
        line.rate = rate_of(5)
        assert self.of(line, rate_of(10)).service_rate == pytest.approx(10)
        line.length = 1
        assert self.of(line, rate_of(10)).service_rate == pytest.approx(5)

    def test_it_is_measured_over_half_of_the_shorter_limit(self) -> None:
        """A change shows as soon as that has passed."""
        total = ServiceRate()
        total.begin(-100.0)
        for number in range(900):
            total.note(-100.0 + number / 10)
        for number in range(1000):
            total.note(-10.0 + number / 100)
        line = Line[Any](0)
        assert self.of(line, total, 4.0).service_rate == pytest.approx(100, rel=0.05)
        assert self.of(line, total, 40.0).service_rate == pytest.approx(55, rel=0.1)
        line.patience.limit = 4.0
        assert self.of(line, total, 40.0).service_rate == pytest.approx(100, rel=0.05)


@dataclass(frozen=True)
class Burst:
    """Requests at one instant of a history."""

    number: int
    use: float
    """The duration of each use in seconds; a long one is a server that hangs."""
    timeout: float
    cancel_after: float | None
    pause: float
    """Seconds until the next burst."""


DURATIONS = st.sampled_from([0.0, 0.001, 0.02, 0.5, 5.0])
BURSTS = st.builds(
    Burst,
    number=st.integers(1, 60),
    use=DURATIONS,
    timeout=st.sampled_from([0.001, 0.1, 1.0, 30.0, math.inf]),
    cancel_after=st.sampled_from([None, 0.0, 0.01, 0.3, 2.0]),
    pause=st.sampled_from([0.0, 0.01, 1.0, 10.0]),
)


@pytest.mark.parametrize("examples", few([20, 150]))
def test_no_history_makes_a_pool_refuse_for_ever(examples: int) -> None:
    """Whatever was before: at 0.7 of the capacity all are soon served, and a burst that fits."""

    @settings(max_examples=examples, deadline=None)
    @given(history=st.lists(BURSTS, max_size=12), mode=st.sampled_from(["wait", "refuse"]))
    def holds(history: list[Burst], mode: str) -> None:
        @virtual_time
        async def run() -> None:
            async with running(Driver(), 4, 4, overload=mode, timeout=30.0) as core:

                async def request(burst: Burst) -> None:
                    try:
                        async with asyncio.timeout(burst.cancel_after):
                            conn = acquire_now(core) or await core.acquire(burst.timeout)
                            conn.clean = False
                            try:
                                await asyncio.sleep(burst.use)
                            finally:
                                core.release(conn)
                    except (TimeoutError, PoolTimeout, TooManyRequests):
                        pass

                async with asyncio.TaskGroup() as group:
                    for burst in history:
                        for _ in range(burst.number):
                            group.create_task(request(burst))
                        await asyncio.sleep(burst.pause)
                found = await Load(core, random=Random(3)).run(0.7, 6.0, skip=3.0)
                assert set(found.ends) == {"in time"}
                await asyncio.gather(*(use(core, USE, timeout=2.0) for _ in range(150)))

        run()

    holds()
