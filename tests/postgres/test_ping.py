"""`asyncpool ping` as a health check runs it: its one line of output and its exit status."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.testing import Server, ServerUnsupported, postgres
from tests._tools import few

from ._cli import HIDDEN, LIMIT, ROOT, bouncer, run, silence
from ._tools import in_time, login


@asynccontextmanager
async def answering(what: bytes, asked: asyncio.Event | None = None) -> AsyncIterator[str]:
    """Run a server that answers the first message with these bytes, and nothing after it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        if asked is not None:
            asked.set()
        writer.write(what)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"host=127.0.0.1 port={port} user=app dbname=app gssencmode=disable"


def old(dsn: str) -> bool:
    """Whether the server does not report its role; those from 14 on do."""
    with psycopg.connect(dsn) as conn:
        return conn.info.server_version < 140000


async def test_ping_of_a_server_that_answers_is_one_line_and_status_0(dsn: str) -> None:
    """The line shows the address, the duration and the server; stderr is empty."""
    found = await run("ping", dsn)
    assert (found.status, found.err) == (0, "")
    role = "" if old(dsn) else ", primary"
    line = rf"ok: 127\.0\.0\.1:\d+/postgres answered in [\d.]+ ms \(PostgreSQL \d+\.\d+{role}\)\n"
    assert re.fullmatch(line, found.out), found


@pytest.mark.exhaustive
async def test_ping_in_json_has_stable_keys(dsn: str) -> None:
    """An answer and a failure have the same keys."""
    keys = ["ok", "place", "seconds", "server_version", "role", "error"]
    good = await run("ping", dsn, "--json")
    bad = await run("ping", make_conninfo(dsn, port=1), "--json")
    assert list(good.json) == list(bad.json) == keys
    role = None if old(dsn) else "primary"
    assert (good.status, good.json["ok"], good.json["role"]) == (0, True, role)
    assert (bad.status, bad.json["ok"], bad.json["place"]) == (1, False, "127.0.0.1:1")
    assert bad.json["error"] == "127.0.0.1:1: Connection refused"


async def test_ping_takes_the_server_from_the_environment(dsn: str) -> None:
    """`ping` uses `DATABASE_URL`, or else libpq's variables, as psql does."""
    parts = conninfo_to_dict(dsn)
    names = {"HOST", "PORT", "USER", "PASSWORD"}
    own = {f"PG{name}": str(parts[name.lower()]) for name in names if name.lower() in parts}
    for environment in ({"DATABASE_URL": dsn}, own | {"PGDATABASE": "postgres"}):
        found = await run("ping", **environment)
        assert found.status == 0, found
        assert found.out.startswith(f"ok: 127.0.0.1:{parts['port']}/postgres")


@pytest.mark.exhaustive
async def test_ping_of_a_silent_network_ends_when_its_time_is_up() -> None:
    """The connection is accepted and never answered."""
    with silence() as dsn:
        began = monotonic()
        found = await run("ping", dsn, "--timeout", "0.5")
        assert monotonic() - began < 30, "psycopg's own limit would be 130 s"
    assert found.status == 1
    assert re.fullmatch(r"error: 127\.0\.0\.1:\d+: no answer within 0\.5 s\n", found.err), found


@pytest.mark.exhaustive
async def test_ping_of_a_server_that_stalls_in_tls_ends_when_its_time_is_up() -> None:
    """The server accepts TLS, and sends nothing more."""
    async with answering(b"S") as dsn:
        found = await run("ping", make_conninfo(dsn, sslmode="require"), "--timeout", "0.5")
    assert (found.status, found.out) == (1, "")
    assert found.err.endswith("no answer within 0.5 s\n")


async def test_ping_of_a_server_in_its_start_says_so() -> None:
    """`ping` does not retry; the caller may."""
    said = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    async with answering(b"E" + (len(said) + 4).to_bytes(4, "big") + said) as dsn:
        found = await run("ping", make_conninfo(dsn, sslmode="disable"))
    assert found.status == 1
    assert found.err.endswith(": the database system is starting up\n")


@pytest.mark.exhaustive
async def test_ping_that_is_interrupted_ends_at_once() -> None:
    """Ctrl-C gives status 130 and no traceback."""
    asked = asyncio.Event()
    async with answering(b"", asked) as dsn:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncpool.cli", "ping", dsn, "--timeout", "600"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        await in_time(asked.wait(), LIMIT)
        process.send_signal(signal.SIGINT)
        out, _ = await in_time(process.communicate(), LIMIT)
    assert (process.returncode, out) == (130, b"")


async def test_ping_of_a_paused_server_ends_when_its_time_is_up(server: Server) -> None:
    """The kernel accepts the connection, and the server does not answer."""
    await server.pause()
    found = await run("ping", server.dsn, "--timeout", "0.5")
    assert (found.status, found.out) == (1, "")
    assert found.err.endswith("no answer within 0.5 s\n")


@pytest.mark.exhaustive
async def test_ping_is_bounded_while_a_name_is_looked_up(dsn: str) -> None:
    """A lookup runs in a thread that cannot be cancelled; Python would wait for its end."""
    program = (
        "import socket, threading, sys; from asyncpool.cli import main\n"
        "socket.getaddrinfo = lambda *_, **__: threading.Event().wait()\n"
        "sys.argv = ['asyncpool', 'ping', 'host=db.example user=app', '--timeout', '0.5']\n"
        "main()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE
    )
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert err.decode() == "error: db.example:5432: no answer within 0.5 s\n"


@pytest.mark.exhaustive
async def test_ping_is_one_short_line_where_the_server_refuses(
    dsn: str, conn: psycopg.AsyncConnection[object]
) -> None:
    """The cases are a missing database, and a role at its connection limit."""
    missing = await run("ping", make_conninfo(dsn, dbname="nowhere"))
    assert missing.status == 1
    assert missing.err.endswith('database "nowhere" does not exist\n')
    await conn.execute(f"CREATE ROLE full_up {login(dsn)} CONNECTION LIMIT 0".encode())
    try:
        full = await run("ping", make_conninfo(dsn, user="full_up"))
    finally:
        await conn.execute("DROP ROLE full_up")
    assert full.status == 1
    assert full.err.endswith('too many connections for role "full_up"\n')
    assert full.err.count("\n") == 1


@pytest.mark.exhaustive
async def test_ping_of_several_hosts_takes_whichever_answers(dsn: str) -> None:
    """A silent host does not delay the other; if none answers, all errors are printed."""
    port = conninfo_to_dict(dsn)["port"]
    with silence() as silent:
        ports = f"{conninfo_to_dict(silent)['port']},{port}"
        both = make_conninfo(dsn, host="127.0.0.1,127.0.0.1", port=ports)
        found = await run("ping", both, "--timeout", "10")
        assert found.status == 0, found
        assert found.out.startswith(f"ok: 127.0.0.1:{port}/")
    found = await run("ping", "postgresql://postgres@127.0.0.1:1,127.0.0.1:2/postgres")
    assert found.err == "error: 127.0.0.1:1: Connection refused; 127.0.0.1:2: Connection refused\n"


@pytest.mark.exhaustive
async def test_ping_honours_target_session_attrs() -> None:
    """A standby is refused if a primary is required."""
    async with postgres() as primary:
        try:
            async with primary.standby() as standby:
                assert "standby)" in (await run("ping", standby.dsn)).out
                wanted = make_conninfo(standby.dsn, target_session_attrs="read-write")
                found = await run("ping", wanted)
        except ServerUnsupported:
            pytest.skip("no standby of this kind of server")
    assert found.status == 1
    assert found.err.endswith("session is read-only\n")


@pytest.mark.exhaustive
async def test_ping_asks_the_server_behind_a_pooler() -> None:
    """PgBouncer itself answers a connect, so `ping` also runs a statement."""
    async with postgres() as server:
        with bouncer(server.dsn, pool_mode="transaction") as dsn:
            assert (await run("ping", dsn)).status == 0
            await server.kill()
            found = await run("ping", dsn, "--timeout", "1")
    assert (found.status, found.out) == (1, "")


@pytest.mark.parametrize(
    ("dsn", "message"),
    few(
        [
            (f"postgresql://u:{HIDDEN}@[/x", "the DSN is neither"),
            (f"password={HIDDEN} nonsense", "the DSN is neither"),
            (f"postgresql://u:{HIDDEN}@more@127.0.0.1/x", "the host in the DSN"),
            (f"postgresql://u:{HIDDEN}/more@127.0.0.1/x", "a value of the option port"),
            (f"postgresql://u:1/{HIDDEN}@127.0.0.1/x", "an @ in the database's name"),
            (f"postgresql+asyncpg://u:{HIDDEN}@127.0.0.1/x", "leave out the '+asyncpg'"),
            (f"host=a..b password={HIDDEN}", "label empty"),
            (
                f"host=127.0.0.1 connect_timeout=soon password={HIDDEN}",
                "of the option connect_timeout",
            ),
        ],
        2,
    ),
)
async def test_ping_explains_a_bad_dsn_and_quotes_nothing_of_it(dsn: str, message: str) -> None:
    """A part of a password is never shown as a host, a port or a database."""
    found = await run("ping", dsn)
    assert (found.status, found.out) == (1, "")
    assert found.err.startswith("error: ")
    assert message in found.err


@pytest.mark.parametrize("seconds", few(["0", "-1", "nan", "inf", "soon"]))
async def test_ping_refuses_a_time_limit_that_is_none(seconds: str) -> None:
    """The status is 2, as for every bad option."""
    found = await run("ping", "host=127.0.0.1", "--timeout", seconds)
    assert found.status == 2
    assert "--timeout" in found.err
