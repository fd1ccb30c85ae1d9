"""Access to a test server: only clients with its DSN, and no other user of the machine."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool.testing import Server, _reaper, postgres, rollback_pool

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERYBODY = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture(scope="module")
def server(asyncpool_server: Server) -> Iterator[Server]:
    """A server of our own, from the session's provider."""
    if asyncpool_server.source not in ("binaries", "wheel"):
        pytest.skip(f"{asyncpool_server.source}: asyncpool does not control its access")
    made = postgres(source=asyncpool_server.source)
    with asyncio.Runner() as runner:
        yield runner.run(made.__aenter__())
        runner.run(made.__aexit__(None, None, None))


def ways(server: Server) -> list[str]:
    """The server's connection strings, over TCP and over the Unix socket."""
    assert server.socket_dsn is not None
    return [server.dsn, server.socket_dsn]


def password_of(server: Server) -> str:
    return str(conninfo_to_dict(server.dsn)["password"])


def folder_of(server: Server) -> Path:
    """The server's folder, which holds all its files."""
    return Path(str(conninfo_to_dict(server.socket_dsn or "")["host"])).parent


async def test_the_dsn_opens_it_and_no_other_password_does(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP and the Unix socket both require the password."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", "/dev/null")
    for dsn in ways(server):
        psycopg.connect(dsn).close()
        for password in ("", "wrong"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(make_conninfo(dsn, password=password))
        for database in ("postgres", "template1"):
            other = make_conninfo(dsn, password="wrong", dbname=database)  # noqa: S106
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(other)


async def test_each_server_has_a_new_password(server: Server) -> None:
    """A restart keeps the password."""
    before = server.dsn
    await server.restart()
    assert server.dsn == before
    psycopg.connect(server.dsn).close()
    async with postgres(source=server.source) as other:
        assert password_of(other) != password_of(server)
        assert len(password_of(other)) >= 32


async def test_the_server_keeps_the_password_as_scram(server: Server) -> None:
    """It has one iteration, as a random password needs no more; each one delays every connect."""
    with psycopg.connect(server.dsn) as conn:
        ((kept,),) = conn.execute("SELECT rolpassword FROM pg_authid WHERE rolcanlogin").fetchall()
        rules = conn.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
    assert kept.startswith("SCRAM-SHA-256$1:")
    assert rules == [("scram-sha-256",)]


async def test_its_folders_are_closed_to_others_and_no_file_shows_the_password(
    server: Server,
) -> None:
    """The socket's folder is closed too; a standby keeps its password in its data folder."""
    async with server.standby() as replica:
        for each in (server, replica):
            folder, secret = folder_of(each), password_of(each).encode()
            for part in ("data", "s", "log"):
                assert not (folder / part).stat().st_mode & EVERYBODY, part
            assert not folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~0o011
            for file in folder.iterdir():
                assert not (file.is_file() and secret in file.read_bytes()), file


async def test_no_argument_of_a_process_shows_the_password(server: Server) -> None:
    """Every user of the machine can read a process's arguments."""
    secret, done = password_of(server), False
    shown: set[str] = set()

    def watch() -> None:
        while not done:
            shown.update(each.command for each in _reaper.processes() if secret in each.command)

    watching = asyncio.create_task(asyncio.to_thread(watch))
    try:
        async with server.standby() as replica:
            await replica.promote()
            psycopg.connect(replica.dsn).close()
    finally:
        done = True
        await watching
    assert shown == set()


async def test_a_rollback_pool_is_for_its_own_user_only(server: Server) -> None:
    """Its socket is in a folder that no other user can enter."""
    async with rollback_pool(server.dsn) as pool:
        folder = Path(str(conninfo_to_dict(str(pool.conninfo))["host"]))
        assert not os.stat(folder).st_mode & EVERYBODY  # noqa: PTH116
        assert await pool.fetchval("SELECT 1") == 1
