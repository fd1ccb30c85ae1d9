"""The marks of a fleet in `application_name`: within 63 bytes, with the user's own name kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpool import Fleet
from asyncpool._fleet.look import view_of
from asyncpool._fleet.mark import MAX_LENGTH, STAMPS, Mark, SessionMarks, own_name, parse
from asyncpool._fleet.rule import Member

FLEETS = st.text("shop-_9", min_size=1, max_size=20)


@given(FLEETS, st.floats(0.01, 99.99), st.text(max_size=80), st.integers(-9999, 99999))
def test_a_mark_is_read_as_it_was_made(fleet: str, weight: float, own: str, number: int) -> None:
    """It fits with whatever name the user has given, and numbers are cut."""
    marks = SessionMarks(fleet, round(weight, 2))
    name = marks.unstamped(own, number, abs(number)) + "ffffff"
    assert len(name.encode()) <= MAX_LENGTH
    want, claim = max(-999, min(number, 9999)), min(abs(number), 9999)
    assert parse(name, fleet) == Mark(marks.member, round(weight, 2), want, claim, 0xFFFFFF)
    first = marks.options({"application_name": own})["application_name"]
    assert parse(first, fleet) == Mark(marks.member, round(weight, 2))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
def test_the_name_of_the_user_is_kept(own: str) -> None:
    """As much of it as there is room for, and again in the next mark."""
    marks = SessionMarks("shop", 1.0)
    name = marks.unstamped(own, 0, 0) + "ffffff"
    if "fleet=" not in own:
        assert own_name(name) == own[:26].rstrip()
    assert marks.unstamped(name, 0, 0) + "ffffff" == name


def test_what_is_not_printable_ascii_is_replaced() -> None:
    """PostgreSQL 16 writes four characters for each such byte, which would push out the mark."""
    assert own_name(SessionMarks("shop", 1.0).unstamped("café\n", 0, 0) + "ff") == "caf??"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "psql",
        "fleet=shop",
        "fleet=shop/abc",
        "fleet=shop/abcdef/",
        "fleet=shop/abcdef/1/2",
        "fleet=shop/abcdef/1/2/3/xyz",
        "fleet=shops/abcdef/1",
        "fleet=shop/abcdef/1 psql",
        "fleet=shop/abcdef/0",
        "fleet=shop/abcdef/0.00/5/5/0",
        "fleet=shop/abcdef/100",
    ],
)
def test_other_names_are_no_marks(name: str) -> None:
    """Also those of another fleet, and those that were cut."""
    assert parse(name, "shop") is None


@pytest.mark.parametrize("name", ["svc fleet=eu-west", "fleet=shop/abcdef/1 psql", "fleet="])
def test_only_a_whole_mark_at_the_end_is_no_part_of_the_users_name(name: str) -> None:
    """The word may be the user's own."""
    assert own_name(name) == name
    assert own_name(f"{name} fleet=shop/abcdef/1/2/3/ff") == name


def test_stamps_wrap_around() -> None:
    """The age of a look is right across the end of the numbers."""
    assert Mark("abcdef", 1.0, 0, 0, STAMPS - 10).age(10) == 2.0


@pytest.mark.parametrize(
    ("variable", "given", "expected"),
    [
        ("", {}, ""),
        ("from the environment", {}, "from the environment"),
        ("from the environment", {"application_name": "given"}, "given"),
        ("from the environment", {"application_name": ""}, ""),
        ("", {"fallback_application_name": "fallback"}, "fallback"),
        ("from the environment", {"fallback_application_name": "fallback"}, "from the environment"),
    ],
)
def test_the_name_is_taken_as_libpq_takes_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, given: dict[str, str], expected: str
) -> None:
    """From the parameters, else the environment, else the fallback."""
    monkeypatch.delenv("PGAPPNAME", raising=False)
    if variable:
        monkeypatch.setenv("PGAPPNAME", variable)
    assert own_name(SessionMarks("shop", 1.0).options(given)["application_name"]) == expected


def facts(*marks: tuple[str, int, float], **changed: Any) -> dict[str, Any]:
    """Return what the server answers to a look."""
    limits = {
        "max_connections": 100,
        "for_superusers": 3,
        "reserved": 2,
        "superuser": False,
        "privileged": False,
        "role": -1,
        "database": -1,
    }
    others = {"all": 10, "role": 4, "database": 6}
    limits.update({name: value for name, value in changed.items() if name in limits})
    return {"limits": limits, "others": others, "marks": list(marks) or None, "now": 100}


class TestView:
    """`view_of`."""

    @pytest.mark.parametrize(
        ("limits", "places"),
        [
            ({}, 85),
            ({"privileged": True}, 87),
            ({"superuser": True, "role": 5}, 90),
            ({"role": 20}, 16),
            ({"database": 20}, 14),
            ({"role": 20, "database": 10}, 4),
        ],
    )
    def test_the_places_are_what_each_limit_leaves(
        self, limits: dict[str, Any], places: int
    ) -> None:
        """The lowest limit counts, less the backends that it counts and that are not ours."""
        assert view_of(facts(**limits), "shop").places == places

    def test_a_member_is_all_its_sessions_with_its_newest_mark(self) -> None:
        """A session keeps the mark of the last look that was made on it."""
        found = view_of(
            facts(
                ("fleet=shop/aaaaaa/2/3/8/5a", 1, 9.0),
                ("fleet=shop/aaaaaa/2/1/9/50", 2, 9.0),
                ("fleet=shop/aaaaaa/2", 1, 0.5),
                ("fleet=shop/bbbbbb/1", 1, 7.0),
            ),
            "shop",
        )
        assert found.members == {
            "aaaaaa": Member(4, 2.0, 3, 8, 1.0),
            "bbbbbb": Member(1, 1.0, None, 0, 7.0),
        }

    def test_no_number_in_a_mark_counts_for_more_than_there_is(self) -> None:
        """Else one session could claim all."""
        found = view_of(facts(("fleet=shop/aaaaaa/1/9999/9999/64", 1, 0.0)), "shop")
        assert found.members == {"aaaaaa": Member(1, 1.0, 85, 85, 0.0)}

    def test_a_mark_that_cannot_be_read_is_of_others(self) -> None:
        """Such as one that was cut."""
        found = view_of(facts(("fleet=shop/aaa", 3, 0.0)), "shop")
        assert (found.places, found.others, found.members) == (82, 13, {})


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"name": ""}, ValueError),
        ({"name": "a" * 21}, ValueError),
        ({"name": "a b"}, ValueError),
        ({"name": "ä"}, ValueError),
        ({"name": 5}, TypeError),
        ({"weight": 0}, ValueError),
        ({"weight": 100}, ValueError),
        ({"weight": float("nan")}, ValueError),
        ({"weight": "1"}, TypeError),
        ({"weight": True}, TypeError),
        ({"reserve": -1}, ValueError),
        ({"reserve": 1.5}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(given: dict[str, Any], error: type[Exception]) -> None:
    """The message has the name of the argument."""
    with pytest.raises(error, match=next(iter(given))):
        Fleet(**{"name": "shop", **given})
