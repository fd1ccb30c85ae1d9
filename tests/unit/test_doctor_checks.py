"""The doctor's checks, on facts that few servers have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from psycopg import capabilities

from asyncpool.cli import _capacity, _server_checks, _timeouts
from asyncpool.cli._facts import Facts, FleetSeen, Plan
from asyncpool.cli._findings import Finding, span, worst
from asyncpool.cli._pooler import Pooler
from asyncpool.cli._refused import refused

HEALTHY = Facts(
    place="db:5432/app",
    hosts=1,
    route="network",
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


def finding_of(check: Any, plan: Plan | None = None, **changes: Any) -> Finding:
    """Return a check's only finding on a server that differs from a healthy one."""
    (finding,) = check(replace(HEALTHY, **changes), plan or Plan(max_size=10, workers=1))
    assert isinstance(finding, Finding)
    assert bool(finding.advice) == (finding.level != "ok")
    return finding


@pytest.mark.parametrize(
    ("size", "workers", "level", "words"),
    [
        (10, 1, "ok", "10 wanted: the server allows 92 (max_connections=100, minus 8 reserved)"),
        (10, 9, "warning", "90 wanted (9 workers x 10)"),
        (10, 10, "problem", "100 wanted (10 workers x 10)"),
        (1, 93, "problem", "93 wanted"),
    ],
)
def test_connections_are_compared_with_the_limit_and_those_in_use(
    size: int, workers: int, level: str, words: str
) -> None:
    """More than the limit is a problem, more than are free now is a warning."""
    found = finding_of(_capacity.connections, Plan(max_size=size, workers=workers))
    assert (found.level, found.facts["free"]) == (level, 82)
    assert words in found.found


def test_reserved_connections_count_for_roles_that_may_use_them() -> None:
    """A superuser may use all, a member of pg_use_reserved_connections only that setting's."""
    limits = [
        finding_of(_capacity.connections, uses_reserved=member, superuser=superuser).facts["limit"]
        for member, superuser in ((False, False), (True, False), (True, True))
    ]
    assert limits == [92, 97, 100]


def test_with_too_many_workers_the_advice_is_their_number() -> None:
    """The advice is never max_size=0."""
    found = finding_of(_capacity.role_limit, Plan(max_size=1, workers=5), role_limit=3)
    assert found.level == "problem"
    assert found.advice.startswith("3 workers at most")


@pytest.mark.parametrize(
    ("size", "workers", "changes", "level", "words"),
    [
        (10, 4, {}, "ok", "80 wanted while old and new processes overlap (8 workers x 10)"),
        (10, 5, {}, "warning", "the server allows 92"),
        (10, 4, {"role_limit": 60}, "warning", "the role app allows 60"),
        (10, 4, {"role_limit": 60, "superuser": True}, "ok", "the server allows 95"),
        (10, 4, {"database_limit": 70}, "warning", "the database app allows 70"),
        (
            10,
            5,
            {"pooler": Pooler("transaction", True, config={"max_client_conn": "99"})},
            "warning",
            "a pooler allows 99 clients",
        ),
    ],
)
def test_a_rolling_deploy_has_twice_the_workers(
    size: int, workers: int, changes: Any, level: str, words: str
) -> None:
    """They are compared with the lowest limit; what is in use may be the workers themselves."""
    plan = Plan(max_size=size, workers=workers)
    found = finding_of(_capacity.rolling_deploy, plan, **changes)
    assert found.level == level
    assert words in found.found
    assert found.facts["wanted"] == 2 * size * workers


def test_the_advice_for_a_deploy_fits_twice_the_workers() -> None:
    """The size that it names is one with which there would be no warning."""
    found = finding_of(_capacity.rolling_deploy, Plan(max_size=10, workers=6))
    assert found.advice.startswith("max_size=7 at most; ")
    assert finding_of(_capacity.rolling_deploy, Plan(max_size=7, workers=6)).level == "ok"
    found = finding_of(_capacity.rolling_deploy, Plan(max_size=10, workers=50))
    assert found.advice.startswith("46 workers at most; ")


def test_members_of_a_fleet_share_what_there_is() -> None:
    """More than the limit is no problem of theirs, unless there is not one for each."""
    fleets = (FleetSeen("shop", 6, 24), FleetSeen("jobs", 1, 1))
    plan = Plan(max_size=10, workers=20)
    found = finding_of(_capacity.connections, plan, fleets=fleets)
    assert (found.level, found.facts["wanted"]) == ("note", 200)
    assert "about 4 each" in found.advice
    deploy = finding_of(_capacity.rolling_deploy, plan, fleets=fleets)
    assert deploy.level == "ok"
    assert "about 2 each" in deploy.found
    many = Plan(max_size=10, workers=93)
    assert finding_of(_capacity.connections, many, fleets=fleets).level == "problem"
    assert finding_of(_capacity.rolling_deploy, many, fleets=fleets).level == "warning"
    said = [each.found for each in _capacity.fleet(replace(HEALTHY, fleets=fleets), plan)]
    assert said == [
        "6 members of the fleet 'shop' have 24 connections",
        "1 member of the fleet 'jobs' has 1 connection",
    ]


def test_what_a_pooler_hides_is_not_judged() -> None:
    """A deploy is not compared with the server's limit, which is not the pooler's."""
    facts = replace(HEALTHY, pooler=Pooler("transaction", False))
    assert list(_capacity.rolling_deploy(facts, Plan(max_size=10, workers=50))) == []


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [
        (0.2, "ok", "less than 200 ms"),
        (-5.0, "note", "5 s behind"),
        (3600.0, "warning", "60 min ahead"),
    ],
)
def test_clocks_that_differ_are_reported(seconds: float, level: str, words: str) -> None:
    """The finding shows by how much, and in which direction."""
    found = finding_of(_server_checks.clock, clock=seconds)
    assert found.level == level
    assert words in found.found


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "ok", "TLSv1.3, with sslmode=verify-full"),
        ({"options": {}}, "note", "sslmode=prefer: the certificate is not verified"),
        ({"tls": False}, "warning", "the network can read all"),
        ({"tls_version": "TLSv1.1"}, "warning", "TLSv1.1, which is insecure"),
        ({"tls": False, "route": "loopback"}, "ok", "does not leave this machine"),
        ({"tls": False, "route": "unix"}, "ok", "a Unix socket"),
    ],
)
def test_tls_is_judged_by_the_route(changes: Any, level: str, words: str) -> None:
    """No TLS is needed on one machine; over a network it must verify the certificate."""
    found = finding_of(_server_checks.tls, **changes)
    assert found.level == level
    assert words in found.found


def test_prepared_statements_persist_if_the_pooler_supports_them() -> None:
    """PgBouncer does with max_prepared_statements, if libpq can close them."""
    found = finding_of(_server_checks.prepared_statements, pooler=Pooler("transaction", True))
    assert found.facts["kept"]
    assert found.level == ("ok" if capabilities.has_send_close_prepared() else "warning")


def test_a_pooler_that_shows_no_limits_is_a_note() -> None:
    """The server's own limits do not apply to the pooler's clients."""
    found = finding_of(_capacity.connections, pooler=Pooler("transaction", False))
    assert found.level == "note"
    assert "does not show its limits" in found.found


@pytest.mark.parametrize(
    ("options", "level", "words"),
    [
        ({"keepalives": "0"}, "warning", "off"),
        ({"keepalives_idle": "600", "keepalives_count": "3"}, "note", "after 10 min of silence"),
        ({}, "note", "after 2 h of silence"),
    ],
)
def test_late_keepalives_are_reported(options: Any, level: str, words: str) -> None:
    """The check reads the values of the connection string."""
    found = finding_of(_timeouts.keepalives, options=options, given=frozenset(options))
    assert found.level == level
    assert words in found.found


@pytest.mark.parametrize(
    ("seconds", "level"), [("0", "warning"), ("10", "ok"), ("31", "note"), ("soon", "warning")]
)
def test_a_connect_should_not_outlast_the_request_for_it(seconds: str, level: str) -> None:
    """A pool's default `timeout` is 30 s."""
    found = finding_of(_timeouts.connect_timeout, options={"connect_timeout": seconds})
    assert found.level == level


@pytest.mark.parametrize(("seconds", "level"), [(0, "ok"), (20, "warning"), (300, "ok")])
def test_idle_sessions_should_outlast_the_pings(seconds: float, level: str) -> None:
    """The default interval of pings is 30 s."""
    found = finding_of(_timeouts.idle_session_timeout, settings={"idle_session_timeout": seconds})
    assert found.level == level


def test_several_hosts_without_target_session_attrs_are_a_note() -> None:
    """The first reachable host may be a standby."""
    found = finding_of(_server_checks.role, hosts=2)
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
def test_a_refusal_comes_with_advice(said: str, advice: str) -> None:
    """The messages of the server, libpq and PgBouncer choose the advice."""
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
    """The size of a duration chooses its unit."""
    assert span(seconds) == text


def test_the_worst_finding_is_the_level_of_all() -> None:
    """The level of no findings is "ok"."""
    notes = [Finding("a", "note", ""), Finding("b", "ok", "")]
    assert worst([]) == "ok"
    assert worst(notes) == "note"
    assert worst([Finding("c", "problem", ""), *notes, Finding("d", "warning", "")]) == "problem"
