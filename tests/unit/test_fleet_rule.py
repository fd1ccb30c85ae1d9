"""The rule of a fleet: fair parts by weight, claims that fit, and what is given back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpool._fleet.rule import STALE, Member, grant, share, split, targets

NAMES = st.text("abc", min_size=1, max_size=4)
WEIGHTS = st.sampled_from([0.01, 0.5, 1.0, 2.0, 99.99])
DEMANDS = st.dictionaries(NAMES, st.tuples(st.integers(0, 60), WEIGHTS), min_size=1, max_size=12)


SEEN = st.dictionaries(
    NAMES,
    st.builds(
        Member,
        st.integers(1, 20),
        WEIGHTS,
        st.none() | st.integers(-20, 40),
        st.integers(0, 40),
        st.sampled_from([0.0, 1.0, STALE + 1]),
    ),
    min_size=1,
    max_size=12,
)
"""Members of any kind, some of which have not looked yet or not for a while."""


def looking(seen: dict[str, Member]) -> list[tuple[str, Member]]:
    """Return the members that may be the one which looks: it knows what it needs."""
    return [(who, each) for who, each in seen.items() if each.want is not None and each.takes_part]


class TestTargets:
    """`targets`."""

    @given(st.integers(0, 300), DEMANDS)
    def test_nobody_gets_more_than_it_needs_and_all_together_no_more_than_there_is(
        self, places: int, demands: dict[str, tuple[int, float]]
    ) -> None:
        """And nothing is left over that somebody needs."""
        found = targets(places, demands)
        assert all(0 <= found[who] <= demand for who, (demand, _) in demands.items())
        assert sum(found.values()) == min(places, sum(demand for demand, _ in demands.values()))

    @given(st.integers(0, 300), DEMANDS)
    def test_who_gets_less_than_it_needs_has_as_much_by_weight_as_anybody(
        self, places: int, demands: dict[str, tuple[int, float]]
    ) -> None:
        """To within one connection; only one's first connection is not measured."""
        found = targets(places, demands)
        for who, (demand, weight) in demands.items():
            if found[who] < demand:
                for other, (_, its_weight) in demands.items():
                    if found[other] > 1:
                        assert (found[who] + 1) / weight >= (found[other] - 1) / its_weight - 1e-6

    @given(st.integers(0, 300), DEMANDS)
    def test_everybody_in_need_gets_one_while_there_are_enough(
        self, places: int, demands: dict[str, tuple[int, float]]
    ) -> None:
        """However small its weight is."""
        needy = [who for who, (demand, _) in demands.items() if demand]
        found = targets(places, demands)
        if len(needy) <= places:
            assert all(found[who] for who in needy)

    @pytest.mark.parametrize(
        ("places", "demands", "expected"),
        [
            (27, {"a": (10, 1), "b": (10, 1), "c": (2, 1)}, {"a": 10, "b": 10, "c": 2}),
            (20, {"a": (50, 1), "b": (50, 1), "c": (2, 1)}, {"a": 9, "b": 9, "c": 2}),
            (30, {"a": (50, 2), "b": (50, 1)}, {"a": 20, "b": 10}),
            (10, {"a": (9, 1), "b": (9, 1), "c": (9, 1)}, {"a": 4, "b": 3, "c": 3}),
            (2, {"a": (9, 1), "b": (9, 1), "c": (9, 1)}, {"a": 1, "b": 1, "c": 0}),
            (0, {"a": (9, 1)}, {"a": 0}),
        ],
    )
    def test_examples(self, places: int, demands: Any, expected: dict[str, int]) -> None:
        """Worked out by hand."""
        assert targets(places, demands) == expected


class TestSplit:
    """`split`."""

    @given(st.integers(0, 100), st.dictionaries(NAMES, st.floats(0.01, 50), min_size=1))
    def test_the_parts_add_up_and_are_rounded_by_less_than_one(
        self, number: int, parts: dict[str, float]
    ) -> None:
        """For any parts that are not all zero."""
        found = split(number, parts)
        assert sum(found.values()) == number
        for who, part in parts.items():
            assert abs(found[who] - number * part / sum(parts.values())) < 1 + 1e-6

    def test_without_parts_nobody_gets_anything(self) -> None:
        """There is no proportion then."""
        assert split(5, {"a": 0.0, "b": 0.0}) == {"a": 0, "b": 0}


class TestShare:
    """`share` and `grant`."""

    @given(st.integers(-5, 200), SEEN)
    def test_all_claims_made_from_one_view_fit_together(
        self, places: int, seen: dict[str, Member]
    ) -> None:
        """With the claims that are published already; unless the places are exceeded already."""
        held = sum(each.held for each in seen.values())
        for me, own in looking(seen):
            claim = share(places, seen, me).claim
            others = held - own.held
            if claim > own.size:
                assert others + claim <= places

    @given(st.integers(-5, 200), SEEN, st.integers(0, 60))
    def test_a_member_uses_only_what_it_has_published_and_what_fits(
        self, places: int, seen: dict[str, Member], published: int
    ) -> None:
        """It keeps what it has, or gives some back, but never the last one."""
        for me, own in looking(seen):
            found = grant(places, seen, me, published)
            assert found.limit >= 1
            if found.limit > own.size:
                others = sum(each.held for who, each in seen.items() if who != me)
                assert found.limit <= published
                assert found.limit + others <= places

    @given(st.integers(0, 200), SEEN)
    def test_nobody_gives_back_while_nobody_lacks_anything(
        self, places: int, seen: dict[str, Member]
    ) -> None:
        """What lies idle stays where it is."""
        if sum(each.size + max(each.want or 0, 0) for each in seen.values()) <= places and all(
            each.want is not None for each in seen.values()
        ):
            assert all(share(places, seen, me).claim >= seen[me].size for me, _ in looking(seen))

    def test_one_member_alone_may_have_all(self) -> None:
        """Whatever it needs now."""
        assert share(97, {"a": Member(1, want=0)}, "a").claim == 97
        assert grant(97, {"a": Member(1, want=0)}, "a", 40).limit == 40
        assert grant(97, {"a": Member(1, want=0)}, "a", 40).next == 97

    def test_a_newcomer_counts_as_one_that_wants_its_share(self) -> None:
        """Until its first look."""
        seen = {"a": Member(27, want=10, claim=27), "b": Member(1)}
        assert share(27, seen, "a").target == 14
        assert share(27, seen, "a").claim == 14

    def test_who_has_not_looked_for_long_keeps_what_it_has_and_claims_nothing(self) -> None:
        """Such as a process that was suspended."""
        seen = {"a": Member(5, want=20, claim=5), "b": Member(10, want=9, claim=19, age=6.0)}
        assert share(30, seen, "a").claim == 20

    def test_idle_connections_are_given_back_to_who_needs_them(self) -> None:
        """In proportion to what each has too many of."""
        seen = {"a": Member(9, want=-8), "b": Member(5, want=-4), "c": Member(2, want=6)}
        assert [share(16, seen, who).claim for who in "abc"] == [5, 3, 2]

    def test_a_member_may_grow_beyond_its_fair_share_while_others_need_less(self) -> None:
        """It is lent what nobody needs."""
        seen = {"a": Member(5, want=15, claim=5), "b": Member(2, want=0, claim=2)}
        assert share(20, seen, "a").claim == 18
