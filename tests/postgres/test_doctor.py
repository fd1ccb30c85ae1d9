"""`asyncpool doctor` as its users run it, on healthy servers and on some with problems."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.testing import Server, ServerUnsupported, postgres
from tests._tools import few

from ._cli import HIDDEN, LIMIT, ROOT, Outcome, bouncer, run, silence
from ._tools import Backends, eventually, login

Findings = dict[str, dict[str, Any]]


def findings(outcome: Outcome) -> Findings:
    """Return the findings of `--json` by check."""
    return {each["check"]: each for each in outcome.json["findings"]}


async def examine(dsn: str, *arguments: str) -> Findings:
    """Run the doctor and return its findings; check that the status shows any problem."""
    outcome = await run("doctor", dsn, "--json", *arguments)
    found = findings(outcome)
    has_problem = any(each["level"] == "problem" for each in found.values())
    assert outcome.status == int(has_problem), outcome
    assert outcome.err == ""
    return found


@asynccontextmanager
async def role(dsn: str, options: str) -> AsyncIterator[str]:
    """Create a role for a test; yield its connection string."""
    name = f"doctor_{uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        given = sql.SQL(f"CREATE ROLE {{}} {login(dsn)} {options}").format(sql.Identifier(name))
        await conn.execute(given)
        try:
            yield make_conninfo(dsn, user=name)
        finally:
            await conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


async def test_doctor_of_a_sound_server_has_no_problem(dsn: str, backends: Backends) -> None:
    """Each check has a finding with its numbers, and the status is 0."""
    found = await examine(dsn)
    assert list(found) == [
        *("server", "role", "round_trip", "clock", "tls", "pooler", "prepared_statements"),
        *("connections", "role_limit", "database_limit", "rolling_deploy"),
        *("connect_timeout", "keepalives"),
        *("idle_session_timeout", "idle_in_transaction_session_timeout", "statement_timeout"),
        *("server_keepalives", "client"),
    ]
    ((number, limit),) = backends.ask(
        "SELECT current_setting('server_version_num')::int, current_setting('max_connections')::int"
    )
    assert found["server"]["facts"] == {"version": number}
    assert found["connections"]["facts"]["max_connections"] == limit
    assert found["role"]["facts"]["role"] == "primary"
    assert found["pooler"]["found"] == "none: the server itself answers"
    assert found["connect_timeout"]["found"] == "10 s for each address (asyncpool's default)"
    assert found["keepalives"]["facts"] == {
        "idle": 10,
        "interval": 5,
        "count": 3,
        "tcp_user_timeout": 15.0 if sys.platform == "linux" else 0.0,
    }


async def test_doctor_sees_what_a_fleet_holds(dsn: str) -> None:
    """The marks in the names of sessions say which members there are, to any role."""
    fleet = f"f{uuid4().hex[:8]}"
    marks = ["api fleet={}/a1b2c3/1", "fleet={}/a1b2c3/1/2/4/f0", "fleet={}/d4e5f6/0.5", "fleet={}"]
    async with AsyncExitStack() as stack:
        for mark in marks:
            conn = await psycopg.AsyncConnection.connect(dsn, application_name=mark.format(fleet))
            stack.push_async_callback(conn.close)
        own = await stack.enter_async_context(role(dsn, ""))
        outcome = await run("doctor", own, "--json", "--workers", "4")
    found = [each for each in outcome.json["findings"] if each["facts"].get("name") == fleet]
    assert [each["facts"] for each in found] == [{"name": fleet, "members": 2, "connections": 3}]
    assert [each["level"] for each in found] == ["ok"]


async def test_doctor_in_json_has_stable_keys(dsn: str) -> None:
    """The report and each finding have fixed keys."""
    outcome = await run("doctor", dsn, "--json", "--max-size", "3", "--workers", "2")
    report = outcome.json
    assert list(report) == ["target", "max_size", "workers", "level", "findings"]
    assert (report["max_size"], report["workers"]) == (3, 2)
    keys = ["check", "level", "found", "advice", "facts"]
    assert all(list(each) == keys for each in report["findings"])


async def test_doctor_in_a_pipe_prints_lines_without_colour(dsn: str) -> None:
    """Each finding is a line, with its advice below; the last line is the summary."""
    outcome = await run("doctor", dsn, "--workers", "1000")
    lines = outcome.out.splitlines()
    assert outcome.status == 1
    assert "\x1b" not in outcome.out
    assert lines[0].endswith("for 1000 pools of 10")
    assert any(line.startswith("problem  connections: 10,000 wanted") for line in lines)
    assert any(line.startswith("         -> ") for line in lines)
    assert lines[-1].startswith("1 problem, ")


async def test_doctor_on_a_terminal_folds_its_lines(dsn: str) -> None:
    """No line is longer than the terminal's 80 columns, and levels are in colour."""
    main, terminal = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncpool.cli", "doctor", dsn),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=_with_terminal(),
    )
    os.close(terminal)
    shown = bytearray()
    try:
        while part := await asyncio.to_thread(_read, main):
            shown += part
        assert await asyncio.wait_for(process.wait(), LIMIT) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(main)
    text = shown.decode()
    assert "\x1b[" in text
    assert "connect timeout" in text

    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in text.split("\r\n")) <= 80


@pytest.mark.exhaustive
async def test_doctor_counts_what_is_in_use_by_others(dsn: str) -> None:
    """A role that may not see others' sessions still sees their number."""
    async with role(dsn, "CONNECTION LIMIT 3") as own:
        before = (await examine(own))["connections"]["facts"]["in_use"]
        async with await psycopg.AsyncConnection.connect(own):
            found = await examine(own, "--max-size", "3")
    assert found["connections"]["facts"]["in_use"] == before + 1
    assert found["connections"]["facts"]["reserved"] >= 3
    assert found["role_limit"]["level"] == "warning"
    assert found["role_limit"]["facts"] == {"wanted": 3, "limit": 3, "in_use": 1, "free": 2}


@pytest.mark.exhaustive
async def test_doctor_gets_by_with_one_connection(dsn: str) -> None:
    """With CONNECTION LIMIT 1 the doctor works, and reports that the limit is too low."""
    async with role(dsn, "CONNECTION LIMIT 1") as own:
        found = await examine(own)
        assert found["role_limit"]["level"] == "problem"
        assert found["role_limit"]["advice"].startswith("max_size=1 at most; or ALTER ROLE")
        async with await psycopg.AsyncConnection.connect(own):
            found = await examine(own)
    assert list(found) == ["connect"]
    assert "too many connections for role" in found["connect"]["found"]
    assert "ALTER ROLE" in found["connect"]["advice"]


@pytest.mark.exhaustive
async def test_doctor_looks_at_the_limit_of_the_database(dsn: str) -> None:
    """A limit that is too low is a problem; it does not apply to a superuser."""
    name = f"doctor_{uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(sql.SQL("CREATE DATABASE {} CONNECTION LIMIT 2").format(_name(name)))
        try:
            async with role(dsn, "") as own:
                bound = await examine(make_conninfo(own, dbname=name))
                free = await examine(make_conninfo(dsn, dbname=name))
        finally:
            await conn.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(_name(name)))
    assert bound["database_limit"]["level"] == "problem"
    assert bound["database_limit"]["facts"]["limit"] == 2
    assert free["database_limit"]["level"] == "ok"


@pytest.mark.exhaustive
async def test_doctor_warns_of_sessions_that_end_before_their_ping(dsn: str) -> None:
    """The role sets idle_session_timeout to 20 s; the pool pings every 30 s by default."""
    async with role(dsn, "") as own:
        user = conninfo_to_dict(own)["user"]
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            for setting in ("idle_session_timeout", "statement_timeout"):
                change = sql.SQL("ALTER ROLE {} SET {} = '20s'")
                await conn.execute(change.format(_name(str(user)), _name(setting)))
        found = await examine(own)
    assert found["idle_session_timeout"]["level"] == "warning"
    assert found["idle_session_timeout"]["advice"].startswith("give the pool ping_interval=10,")
    assert found["statement_timeout"]["found"] == "the server ends a statement after 20 s"


@pytest.mark.exhaustive
async def test_doctor_reports_tls(another_server: Server) -> None:
    """The finding shows the version and sslmode; an untrusted certificate fails."""
    found = await examine(make_conninfo(another_server.dsn, sslmode="require"))
    assert found["tls"]["facts"]["tls"] is True
    assert found["tls"]["found"].startswith("TLSv1.")
    assert found["tls"]["facts"]["sslmode"] == "require"
    found = await examine(make_conninfo(another_server.dsn, sslmode="disable"))
    assert found["tls"]["facts"]["tls"] is False
    found = await examine(
        make_conninfo(another_server.dsn, sslmode="verify-full", sslrootcert="system")
    )
    assert "certificate" in found["connect"]["found"]
    assert "sslrootcert" in found["connect"]["advice"]


@pytest.mark.exhaustive
async def test_doctor_distinguishes_a_primary_from_a_standby() -> None:
    """Each host is checked; target_session_attrs decides which one the pool uses."""
    async with postgres() as primary:
        try:
            async with primary.standby() as standby:
                alone = await examine(standby.dsn)
                refused = await examine(
                    make_conninfo(standby.dsn, target_session_attrs="read-write")
                )
                ports = [str(conninfo_to_dict(each.dsn)["port"]) for each in (primary, standby)]
                both = make_conninfo(primary.dsn, host="127.0.0.1,localhost", port=",".join(ports))
                outcome = await run("doctor", both, "--json")
                wanted = make_conninfo(both, target_session_attrs="standby")
                on_standby = await examine(wanted)
                prefer = "prefer-standby"
                preferred = await examine(make_conninfo(both, target_session_attrs=prefer))
                missed = await examine(make_conninfo(primary.dsn, target_session_attrs=prefer))
        except ServerUnsupported as error:
            pytest.skip(str(error))
    assert alone["role"]["level"] == "warning"
    assert "25006" in alone["role"]["found"]
    assert refused["connect"]["found"] == "session is read-only"
    hosts = [each for each in outcome.json["findings"] if each["check"] == "host"]
    assert [each["facts"]["role"] for each in hosts] == ["primary", "standby"]
    assert findings(outcome)["role"]["level"] == "note"
    assert (on_standby["role"]["level"], on_standby["role"]["facts"]["role"]) == ("ok", "standby")
    assert (preferred["role"]["level"], missed["role"]["level"]) == ("ok", "note")
    assert preferred["role"]["found"] == "a standby, with target_session_attrs=prefer-standby"


@pytest.mark.exhaustive
async def test_doctor_goes_on_where_one_of_several_hosts_is_down(dsn: str) -> None:
    """The finding is only a warning, since the pool works."""
    port = conninfo_to_dict(dsn)["port"]
    half = make_conninfo(dsn, host="127.0.0.1,127.0.0.1", port=f"1,{port}")
    found = await examine(half)
    assert found["connections"]["level"] == "ok"
    outcome = await run("doctor", half)
    assert "warning  host: 127.0.0.1:1: Connection refused" in outcome.out


@pytest.mark.parametrize("mode", few(["transaction", "session", "statement"]))
@pytest.mark.parametrize("console", few([True, False]), ids=["console", "no console"])
async def test_doctor_detects_how_a_pooler_shares_sessions(
    dsn: str, mode: str, console: bool
) -> None:
    """The doctor detects the mode, also without access to the console."""
    with bouncer(dsn, console=console, pool_mode=mode) as through:
        found = await examine(through)
    assert found["pooler"]["facts"]["mode"] == mode
    assert bool(found["pooler"]["facts"]["version"]) == console
    assert found["connections"]["level"] == ("ok" if console else "note")
    expected = {"session": "ok", "transaction": "note", "statement": "problem"}
    assert found["pooler"]["level"] == expected[mode]
    if mode == "session":
        assert found["prepared_statements"]["level"] == "ok"


async def test_doctor_warns_of_prepared_statements_that_vanish(
    dsn: str, backends: Backends
) -> None:
    """The doctor leaves no prepared statement behind on a shared session."""
    with bouncer(dsn, pool_mode="transaction") as through:
        found = await examine(through)
        if found["prepared_statements"]["facts"]["max_prepared_statements"]:
            pytest.skip("this PgBouncer supports them by default")
        assert found["prepared_statements"]["level"] == "warning"
        assert "prepare_threshold" in found["prepared_statements"]["advice"]
        async with await psycopg.AsyncConnection.connect(through, prepare_threshold=None) as conn:
            cursor = await conn.execute("SELECT count(*) FROM pg_prepared_statements")
            assert await cursor.fetchone() == (0,)
    await eventually(lambda: not backends.pids())


@pytest.mark.exhaustive
async def test_doctor_compares_the_pool_with_the_poolers_limits(dsn: str) -> None:
    """The limits are those of clients and sessions, not the server's own."""
    with bouncer(dsn, pool_mode="session", max_client_conn=20, default_pool_size=5) as through:
        fits = await examine(through, "--max-size", "5")
        waits = await examine(through, "--max-size", "6")
        fails = await examine(through, "--max-size", "6", "--workers", "4")
    levels = [each["connections"]["level"] for each in (fits, waits, fails)]
    assert levels == ["ok", "warning", "problem"]
    assert fails["connections"]["advice"].startswith("max_size=5 at most")


async def test_doctor_explains_what_a_pooler_refuses(dsn: str) -> None:
    """PgBouncer refuses `options` in the connection string unless configured to ignore them."""
    with bouncer(dsn, pool_mode="transaction") as through:
        found = await examine(make_conninfo(through, options="-c statement_timeout=1s"))
    assert "unsupported startup parameter" in found["connect"]["found"]
    assert "ignore_startup_parameters" in found["connect"]["advice"]


async def test_doctor_of_a_silent_network_ends_when_its_time_is_up() -> None:
    """The report shows the findings so far, and the status is 1."""
    with silence() as dsn:
        began = monotonic()
        found = await examine(dsn, "--timeout", "0.5")
        assert monotonic() - began < 30
    assert found["connect"]["found"] == "the examination did not finish within 500 ms"


@pytest.mark.exhaustive
async def test_doctor_does_not_wait_for_an_error_to_pass(dsn: str) -> None:
    """The first refusal is a finding; an application's pool would retry."""
    found = await examine(make_conninfo(dsn, port=1))
    assert found["connect"]["found"] == "Connection refused"
    assert "is the server running" in found["connect"]["advice"]
    found = await examine(make_conninfo(dsn, dbname="nowhere"))
    assert found["connect"]["found"] == 'database "nowhere" does not exist'


@pytest.mark.parametrize(
    "dsn",
    few(
        [f"postgresql://u:{HIDDEN}@[", f"postgresql://u:{HIDDEN}/more@h/x", f"password={HIDDEN} x"]
    ),
)
async def test_doctor_explains_a_bad_dsn_and_quotes_nothing_of_it(dsn: str) -> None:
    """The DSN may hold a password."""
    outcome = await run("doctor", dsn, "--json")
    assert (outcome.status, list(findings(outcome))) == (1, ["dsn"])


def _name(name: str) -> sql.Identifier:
    return sql.Identifier(name)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux raises it for a closed terminal
        return b""


def _with_terminal() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "LINES")}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm-256color"}
