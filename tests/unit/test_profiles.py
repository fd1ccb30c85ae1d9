"""Profiles of one-shot statements by their text, and of the way to the server."""

from __future__ import annotations

import pytest

from asyncpool._pipeline.profiles import (
    MAX_ROUND_TRIP,
    MAX_TEXT_LENGTH,
    MAX_TEXTS,
    PROBATION,
    StatementProfile,
    StatementProfiles,
)
from asyncpool._pipeline.request import Request


def way(profile: StatementProfile) -> tuple[bool, bool]:
    """Whether a statement may be sent behind another's, and whether it needs a connection."""
    request = Request(profile, "")
    return request.shares, request.needs_own_connection


def test_a_plain_read_shares_once_it_has_shown_to_be_quick() -> None:
    """Until then it is not taken to need a connection of its own, but is sent behind none."""
    profile = StatementProfiles().get("SELECT 1")
    assert way(profile) == (False, False)
    profile.record_quick()
    assert way(profile) == (True, False)


def test_a_read_that_was_slow_is_on_probation() -> None:
    profile = StatementProfiles().get("SELECT 1")
    profile.record_slow()
    for _ in range(PROBATION - 1):
        assert way(profile) == (False, True)
        profile.record_quick()
    assert way(profile) == (False, False)
    profile.record_quick()
    assert way(profile) == (True, False)


@pytest.mark.parametrize(
    "query", ["INSERT INTO t VALUES (1)", "SELECT pg_sleep(0)", "SET x = 1", b"\xff", 1]
)
def test_all_else_never_shares(query: object) -> None:
    profile = StatementProfiles().get(query)  # type: ignore[arg-type]
    for _ in range(2 * PROBATION):
        profile.record_quick()
    assert way(profile) == (False, True)


def test_a_text_is_remembered_until_many_others_have_come() -> None:
    profiles = StatementProfiles()
    first = profiles.get("SELECT 1")
    assert profiles.get("SELECT 1") is first
    for n in range(MAX_TEXTS):
        profiles.get(f"SELECT 'other {n}'")
    assert profiles.get("SELECT 1") is not first
    assert profiles.get("SELECT " + "1" * MAX_TEXT_LENGTH) is not profiles.get(
        "SELECT " + "1" * MAX_TEXT_LENGTH
    )


def test_the_round_trip_is_the_least_that_was_seen() -> None:
    profiles = StatementProfiles()
    for seconds in (5.0, 0.2, 0.01, 2.0):
        profiles.record_time(seconds, rises=True)
    assert profiles.round_trip == pytest.approx(0.01, rel=0.05)


def test_a_network_that_becomes_slower_is_known_after_a_while() -> None:
    profiles = StatementProfiles()
    profiles.record_time(0.001, rises=True)
    for _ in range(400):
        profiles.record_time(0.04, rises=True)
    assert profiles.round_trip == pytest.approx(0.04, rel=0.1)


def test_no_round_trip_takes_as_long_as_work_does() -> None:
    profiles = StatementProfiles()
    profiles.record_time(60.0, rises=True)
    assert profiles.round_trip == MAX_ROUND_TRIP


def test_slow_statements_do_not_make_the_network_seem_slow() -> None:
    """Only the time of one that is known to be quick tells of a longer way."""
    profiles = StatementProfiles()
    profiles.record_time(0.001, rises=True)
    for _ in range(400):
        profiles.record_time(0.2, rises=False)
    assert profiles.round_trip == 0.001
