"""The doctor's looks, on facts that few servers have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from psycopg import capabilities

from asyncpool.cli import _capacity, _server_checks, _timeouts
from asyncpool.cli._facts import Asked, Facts
from asyncpool.cli._findings import Finding, span, worst
from asyncpool.cli._pooler import Pooler
from asyncpool.cli._refused import refused

HEALTHY = Facts(
    place="db:5432/app",
    hosts=1,
    way="network",
    options={"sslmode": "verify-full", "connect_timeout": "10", "keepalives_idle": "10"},
    given=frozenset(),
    tls=True,
    tls_version="TLSv1.3",
    server=160004,
    standby=False,
    settings={
        "max_connections": 100.0,
        "superuser_reserved_connections": 3.0,
        "reserved_connections": 5.0,
    },
    user="app",
    superuser=False,
    uses_reserved=False,
    role_limit=-1,
    database_limit=-1,
    in_use=10,
    in_use_by_role=4,
    in_use_in_database=6,
    round_trip=0.001,
    clock=0.0,
    pooler=None,
)


def look(what: Any, asked: Asked | None = None, **changes: Any) -> Finding:
    """The one finding of a look at a server that differs from a healthy one."""
    (finding,) = what(replace(HEALTHY, **changes), asked or Asked(max_size=10, workers=1))
    assert isinstance(finding, Finding)
    assert bool(finding.advice) == (finding.level != "ok")
    return finding


@pytest.mark.parametrize(
    ("size", "workers", "level", "words"),
    [
        (10, 1, "ok", "10 wanted: the server has 92 (max_connections=100, less 8 reserved)"),
        (10, 9, "warning", "90 wanted (9 workers x 10)"),
        (10, 10, "problem", "100 wanted (10 workers x 10)"),
        (1, 93, "problem", "93 wanted"),
    ],
)
def test_connections_are_held_against_the_limit_and_what_is_in_use(
    size: int, workers: int, level: str, words: str
) -> None:
    """More than there may ever be is a problem, more than are free now a warning."""
    found = look(_capacity.connections, Asked(max_size=size, workers=workers))
    assert (found.level, found.facts["free"]) == (level, 82)
    assert words in found.found


def test_reserved_connections_count_for_those_who_may_have_them() -> None:
    """A superuser has all, a member of pg_use_reserved_connections its own."""
    limits = [
        look(_capacity.connections, uses_reserved=member, superuser=superuser).facts["limit"]
        for member, superuser in ((False, False), (True, False), (True, True))
    ]
    assert limits == [92, 97, 100]


def test_too_many_workers_for_one_connection_each_are_told_how_many() -> None:
    """max_size=0 is no advice."""
    found = look(_capacity.role_limit, Asked(max_size=1, workers=5), role_limit=3)
    assert found.level == "problem"
    assert found.advice.startswith("3 workers at most")


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [
        (0.2, "ok", "less than 200 ms"),
        (-5.0, "note", "5 s behind"),
        (3600.0, "warning", "60 min ahead"),
    ],
)
def test_clocks_that_differ_are_told_of(seconds: float, level: str, words: str) -> None:
    """By how much, and in which direction."""
    found = look(_server_checks.clock, clock=seconds)
    assert found.level == level
    assert words in found.found


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "ok", "TLSv1.3, with sslmode=verify-full"),
        ({"options": {}}, "note", "sslmode=prefer: it may be anybody's certificate"),
        ({"tls": False}, "warning", "the network sees all"),
        ({"tls_version": "TLSv1.1"}, "warning", "TLSv1.1, which is broken"),
        ({"tls": False, "way": "loopback"}, "ok", "nothing leaves this machine"),
        ({"tls": False, "way": "unix"}, "ok", "a Unix socket"),
    ],
)
def test_tls_is_judged_by_where_it_goes(changes: Any, level: str, words: str) -> None:
    """On this machine none is needed; over a network, one that is checked."""
    found = look(_server_checks.tls, **changes)
    assert found.level == level
    assert words in found.found


def test_prepared_statements_last_where_the_pooler_takes_them_along() -> None:
    """As PgBouncer does with max_prepared_statements, if libpq can close them."""
    found = look(_server_checks.prepared_statements, pooler=Pooler("transaction", True))
    assert found.facts["kept"]
    assert found.level == ("ok" if capabilities.has_send_close_prepared() else "warning")


def test_a_pooler_that_tells_no_limits_is_a_note() -> None:
    """The server's own would be the wrong ones."""
    found = look(_capacity.connections, pooler=Pooler("transaction", False))
    assert found.level == "note"
    assert "does not tell its limits" in found.found


@pytest.mark.parametrize(
    ("options", "level", "words"),
    [
        ({"keepalives": "0"}, "warning", "off"),
        ({"keepalives_idle": "600", "keepalives_count": "3"}, "note", "after 10 min of silence"),
        ({}, "note", "after 2 h of silence"),
    ],
)
def test_keepalives_that_come_late_are_told_of(options: Any, level: str, words: str) -> None:
    """Those of the connection string, where it has its own."""
    found = look(_timeouts.keepalives, options=options, given=frozenset(options))
    assert found.level == level
    assert words in found.found


@pytest.mark.parametrize(
    ("seconds", "level"), [("0", "warning"), ("10", "ok"), ("31", "note"), ("soon", "warning")]
)
def test_a_connect_should_not_outlast_the_request_for_it(seconds: str, level: str) -> None:
    """A pool's timeout is 30 s by default."""
    found = look(_timeouts.connect_timeout, options={"connect_timeout": seconds})
    assert found.level == level


@pytest.mark.parametrize(("seconds", "level"), [(0, "ok"), (20, "warning"), (300, "ok")])
def test_idle_sessions_should_outlast_the_pings(seconds: float, level: str) -> None:
    """They come every 30 s by default."""
    found = look(_timeouts.idle_session_timeout, settings={"idle_session_timeout": seconds})
    assert found.level == level


def test_many_hosts_with_no_wish_are_a_note() -> None:
    """The first that is reached need not be the primary."""
    found = look(_server_checks.role, hosts=2)
    assert found.level == "note"
    assert "target_session_attrs=read-write" in found.advice


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ('FATAL:  password authentication failed for user "app"', "the user and the password"),
        ("server does not support SSL, but SSL was required", "relax sslmode"),
        ("FATAL:  unsupported startup parameter: options", "ignore_startup_parameters"),
        ("FATAL:  the database system is starting up", "wait"),
        ("connection timeout expired", "a firewall"),
        ("something new", ""),
    ],
)
def test_what_was_refused_comes_with_what_may_help(said: str, advice: str) -> None:
    """By the words of the server, libpq and PgBouncer."""
    found = refused(OSError(said))
    assert found.level == "problem"
    assert advice in found.advice


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00012, "0.1 ms"),
        (0.25, "250 ms"),
        (5, "5 s"),
        (90, "90 s"),
        (600, "10 min"),
        (7200, "2 h"),
        (7875, "2 h 11 min"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    """In the unit that fits."""
    assert span(seconds) == text


def test_the_worst_finding_is_the_level_of_all() -> None:
    """None at all is ok."""
    notes = [Finding("a", "note", ""), Finding("b", "ok", "")]
    assert worst([]) == "ok"
    assert worst(notes) == "note"
    assert worst([Finding("c", "problem", ""), *notes, Finding("d", "warning", "")]) == "problem"
