"""What is known of one-shot statements by their text, and of the way to the server."""

from __future__ import annotations

import pytest
from psycopg import sql

from asyncpool._traits import FARTHEST, KEPT, LONG, Traits


@pytest.mark.parametrize(
    "query",
    [
        "select 1",
        "-- why\n ( /* not */ VALUES (1))",
        "SELECT 1; ",
        b"TABLE t",
        sql.SQL("SELECT {}").format(sql.Identifier("x")),
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE",
    ],
)
def test_what_shares(query: object) -> None:
    assert Traits().look(query).shares  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "query",
    [
        "",
        ";",
        "SET x = 1",
        "selection",
        "SELECT 1; SET x = 1",
        "/* SELECT */ SET x = 1",
        "/* a /* SELECT */ */ LISTEN x",
        b"COPY t TO STDOUT",
        "EXPLAIN SELECT 1",
        1,
        None,
    ],
)
def test_what_does_not(query: object) -> None:
    """If in doubt, not; what is no query at all is psycopg's to refuse."""
    assert not Traits().look(query).shares  # type: ignore[arg-type]


def test_a_text_is_remembered_until_many_others_have_come() -> None:
    traits = Traits()
    first = traits.look("SELECT 1")
    assert traits.look("SELECT 1") is first
    for n in range(KEPT):
        traits.look(f"SELECT 'other {n}'")
    assert traits.look("SELECT 1") is not first
    assert traits.look("SELECT " + "1" * LONG) is not traits.look("SELECT " + "1" * LONG)


def test_the_round_trip_is_the_least_that_was_seen() -> None:
    traits = Traits()
    for seconds in (5.0, 0.2, 0.01, 2.0):
        traits.timed(seconds)
    assert traits.trip == pytest.approx(0.01, rel=0.05)


def test_a_network_that_becomes_slower_is_known_after_a_while() -> None:
    traits = Traits()
    traits.timed(0.001)
    for _ in range(400):
        traits.timed(0.04)
    assert traits.trip == pytest.approx(0.04, rel=0.1)


def test_no_round_trip_takes_as_long_as_work_does() -> None:
    traits = Traits()
    traits.timed(60.0)
    assert traits.trip == FARTHEST
