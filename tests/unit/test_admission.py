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

from asyncpool._core.admission import Refusal, judge
from asyncpool._core.lines import Line
from asyncpool._core.patience import ENOUGH, Patience
from asyncpool._core.service_rate import STEP, ServiceRate
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

    def test_waits_that_are_longer_disprove_it(self) -> None:
        """ENOUGH requests that were served after a longer wait, and it is forgotten."""
        patience = Patience()
        self.learn(patience, 1.0)
        for _ in range(ENOUGH - 1):
            patience.note_served()
        assert patience.limit == pytest.approx(1.0)
        patience.note_served()
        assert patience.limit == math.inf

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
