"""Passwords that change under a running pool, and where libpq finds them, on SCRAM's terms."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import asyncpool
from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, PoolUnavailable

from ._tools import Backends, all_usable, at_rest, backend_of, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from asyncpool.testing import Server


FIRST, WRONG = "first", "wrong"


class Account(NamedTuple):
    """A role that must give its password."""

    role: str
    dsn: str
    """With no password in it."""
    backends: Backends

    def set_password(self, password: str) -> None:
        """On the server."""
        self.backends.ask(f"ALTER ROLE {self.role} PASSWORD '{password}'")

    def gets_in(self, password: str) -> bool:
        """Whether the server takes it."""
        try:
            psycopg.connect(make_conninfo(self.dsn, password=password)).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture
async def account(another_server: Server) -> AsyncIterator[Account]:
    """A role whose password is `first`; after the test nothing of it may be left."""
    role = f"r{uuid4().hex[:8]}"
    backends = Backends(another_server.dsn, role)
    ((path,),) = backends.ask("SHOW hba_file")
    ((rules,),) = backends.ask("SELECT pg_read_file(%s)", path)

    def write(lines: str) -> None:
        literal = psycopg.sql.Literal(lines.replace("\t", " ")).as_string(None)
        backends.ask(f"COPY (SELECT unnest(string_to_array({literal}, E'\\n'))) TO '{path}'")
        backends.ask("SELECT pg_reload_conf()")

    backends.ask("SET password_encryption = 'scram-sha-256'")
    backends.ask(f"CREATE ROLE {role} LOGIN PASSWORD 'first'")
    write(f"host all {role} all scram-sha-256\n{rules}")
    there = conninfo_to_dict(another_server.dsn)
    del there["password"]
    dsn = make_conninfo("", **there | {"user": role, "application_name": role})
    account = Account(role, dsn, backends)
    await eventually(lambda: not account.gets_in("wrong"))  # it has read its rules again
    yield account
    await eventually(lambda: not backends.pids())
    write(rules)
    backends.ask(f"DROP ROLE {role}")
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_new_password_is_taken_for_new_connections_only(
    account: Account, is_async: bool
) -> None:
    """Open connections keep the old one until their lifetime is over or they are drained."""
    known = ["first"]

    def conninfo() -> str:
        return make_conninfo(account.dsn, password=known[-1])

    async def from_the_vault() -> str:
        await asyncio.sleep(0.01)
        return conninfo()

    source = from_the_vault if is_async else conninfo
    async with AsyncConnectionPool(source, min_size=2, max_size=3) as pool:
        await at_rest(pool)
        before = account.backends.pids()
        account.set_password("second")
        known.append("second")
        conns = [await in_time(pool.acquire()) for _ in range(3)]
        assert len({await backend_of(conn) for conn in conns} & before) == 2
        for conn in conns:
            await pool.release(conn)
        await pool.drain()
        await eventually(lambda: not account.backends.pids() & before)
        await all_usable(pool)
        assert pool.stats().connects_failed == 0


async def test_a_password_that_reaches_the_server_first_fails_no_request(account: Account) -> None:
    """A change takes a moment to reach everybody; within that moment requests wait."""
    known = ["first"]
    async with AsyncConnectionPool(
        lambda: make_conninfo(account.dsn, password=known[-1]), min_size=1, max_size=2
    ) as pool:
        await at_rest(pool)
        account.set_password("second")
        async with pool.connection() as conn:
            waiting = asyncio.create_task(pool.acquire())
            await eventually(lambda: pool.stats().connects_failed)
            await conn.execute("SELECT 1")
            assert not waiting.done()
            known.append("second")
            await pool.release(await in_time(waiting))
        assert pool.stats().requests_failed == 0
        assert (await pool.health()).status == "ok"


async def test_rotation_goes_on_under_load(account: Account) -> None:
    """Connections of each password live out their time, and no request hears of the changes."""
    number = 1
    account.set_password("password 1")
    stop = asyncio.Event()
    used: set[int] = set()

    def conninfo() -> str:
        return make_conninfo(account.dsn, password=f"password {number}")

    async def work(pool: AsyncConnectionPool) -> None:
        while not stop.is_set():
            async with pool.connection() as conn:
                used.add(await backend_of(conn))
            await pool.fetchval("SELECT 1")

    async with AsyncConnectionPool(conninfo, min_size=2, max_size=4, max_lifetime=0.5) as pool:
        workers = [asyncio.create_task(work(pool)) for _ in range(6)]
        for _ in range(4):
            seen = len(used)
            # Here what the program knows changes in the same moment.
            account.set_password(f"password {number + 1}")
            number += 1
            await eventually(lambda seen=seen: len(used) >= seen + 2)  # type: ignore[misc]
        stop.set()
        await in_time(asyncio.gather(*workers))
        assert pool.stats().requests_failed == 0
        await at_rest(pool)


async def test_a_password_that_stays_wrong_is_reported(account: Account) -> None:
    """At once, where it never was right."""
    for kind in (AsyncConnectionPool, AsyncNullConnectionPool):
        async with kind(make_conninfo(account.dsn, password=WRONG)) as pool:
            with pytest.raises(PoolUnavailable, match="password authentication failed"):
                await in_time(pool.getconn())


def in_environment(account: Account, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    names = {"user": "PGUSER", "host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE"}
    for name, value in conninfo_to_dict(account.dsn).items():
        monkeypatch.setenv(names.get(name, "PGAPPNAME"), str(value))
    monkeypatch.setenv("PGPASSWORD", "first")
    return ""


def in_pgpass(account: Account, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = folder / "pgpass"
    file.write_text(f"127.0.0.1:*:*:somebody:else\n*:*:*:{account.role}:first\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    return account.dsn


def in_service(account: Account, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    params = conninfo_to_dict(account.dsn) | {"password": "first"}
    lines = [f"{name}={value}\n" for name, value in params.items()]
    file = folder / "pg_service.conf"
    file.write_text("[other]\nhost=nowhere\n[app]\n" + "".join(lines))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    return "service=app"


def in_service_of_the_environment(
    account: Account, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    in_service(account, folder, monkeypatch)
    monkeypatch.setenv("PGSERVICE", "app")
    return ""


WAYS = [in_environment, in_pgpass, in_service, in_service_of_the_environment]


@pytest.mark.parametrize("own_class", [False, True], ids=["watched", "psycopg's"])
@pytest.mark.parametrize("way", WAYS)
async def test_libpqs_own_ways_of_knowing_work_and_a_cancel_finds_its_server(
    account: Account,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[..., str],
    own_class: bool,
) -> None:
    """The cancel request goes to the same place, over TLS as well, and the connection is kept."""
    given = way(account, tmp_path, monkeypatch)
    classes: dict[str, Any] = {"connection_class": psycopg.AsyncConnection} if own_class else {}
    async with AsyncConnectionPool(given, min_size=1, **classes) as pool:
        conn = await in_time(pool.acquire())
        pid = await backend_of(conn)
        assert conn.info.user == account.role
        task = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
        await eventually(lambda: account.backends.running("pg_sleep"))
        task.cancel()
        await in_time(asyncio.wait({task}))
        assert task.cancelled()
        await pool.release(conn)
        await eventually(lambda: not account.backends.running("pg_sleep"))
        await at_rest(pool)
        if not own_class:
            async with pool.connection() as conn:
                assert await backend_of(conn) == pid


@pytest.mark.parametrize("way", WAYS)
async def test_they_work_for_one_shots_and_where_none_is_kept(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., str]
) -> None:
    """And those that one-shots share."""
    given = way(account, tmp_path, monkeypatch)
    for kind in (AsyncConnectionPool, AsyncNullConnectionPool):
        async with kind(given, max_size=4) as pool:
            assert await in_time(pool.fetchval("SELECT current_user::text")) == account.role


async def test_a_password_file_that_changes_is_read_again(
    account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By each new connection, as libpq does."""
    in_pgpass(account, tmp_path, monkeypatch)
    async with AsyncConnectionPool(account.dsn, min_size=1) as pool:
        await at_rest(pool)
        account.set_password("second")
        file = tmp_path / "pgpass"
        file.write_text(file.read_text().replace("first", "second"))
        await pool.drain()
        assert await in_time(pool.fetchval("SELECT 1")) == 1


async def test_tls_and_channel_binding_may_be_asked_for(account: Account) -> None:
    """SCRAM bound to the server's certificate; a cancel request is encrypted as well."""
    dsn = make_conninfo(account.dsn, password=FIRST, sslmode="require", channel_binding="require")
    async with asyncpool.AsyncConnectionPool(dsn, min_size=1) as pool, pool.connection() as conn:
        cur = await conn.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert await cur.fetchone() == (True,)
        task = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
        await eventually(lambda: account.backends.running("pg_sleep"))
        task.cancel()
        await in_time(asyncio.wait({task}))
        await eventually(lambda: not account.backends.running("pg_sleep"))
