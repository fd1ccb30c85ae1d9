"""Who gets into a test server: whoever has its DSN, and nobody else on the machine."""

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
    from collections.abc import AsyncIterator

EVERYBODY = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture
async def server(asyncpool_server: Server) -> AsyncIterator[Server]:
    """A server of our own, of the kind that the others are."""
    if asyncpool_server.source not in ("binaries", "wheel"):
        pytest.skip(f"{asyncpool_server.source}: it is not for us to say who gets in")
    async with postgres(source=asyncpool_server.source) as server:
        yield server


def ways(server: Server) -> list[str]:
    """Its connection strings, over TCP and over the Unix socket."""
    assert server.socket_dsn is not None
    return [server.dsn, server.socket_dsn]


def password_of(server: Server) -> str:
    return str(conninfo_to_dict(server.dsn)["password"])


def folder_of(server: Server) -> Path:
    """The folder of its own in which all is that it has."""
    return Path(str(conninfo_to_dict(server.socket_dsn or "")["host"])).parent


async def test_the_dsn_opens_it_and_no_other_password_does(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of its two ways trusts anybody."""
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


async def test_the_password_is_no_standing_one(server: Server) -> None:
    """Each server has its own, which survives a restart."""
    before = server.dsn
    await server.restart()
    assert server.dsn == before
    psycopg.connect(server.dsn).close()
    async with postgres(source=server.source) as other:
        assert password_of(other) != password_of(server)
        assert len(password_of(other)) >= 32


async def test_the_server_keeps_the_password_as_scram(server: Server) -> None:
    """On old versions too, whose default was md5."""
    with psycopg.connect(server.dsn) as conn:
        ((kept,),) = conn.execute("SELECT rolpassword FROM pg_authid WHERE rolcanlogin").fetchall()
        rules = conn.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
    assert kept.startswith("SCRAM-SHA-256$")
    assert rules == [("scram-sha-256",)]


async def test_its_folders_are_closed_to_others_and_no_file_shows_the_password(
    server: Server,
) -> None:
    """The socket's folder too; what a standby needs is in its data folder."""
    async with server.standby() as replica:
        for each in (server, replica):
            folder, secret = folder_of(each), password_of(each).encode()
            for part in ("data", "s", "log"):
                assert not (folder / part).stat().st_mode & EVERYBODY, part
            assert not folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~0o011
            for file in folder.iterdir():
                assert not (file.is_file() and secret in file.read_bytes()), file


async def test_no_argument_of_a_process_shows_the_password(server: Server) -> None:
    """Everybody on the machine can read those."""
    secret, done = password_of(server), False
    shown: set[str] = set()

    def look() -> None:
        while not done:
            shown.update(each.command for each in _reaper.processes() if secret in each.command)

    looking = asyncio.create_task(asyncio.to_thread(look))
    try:
        async with server.standby() as replica:
            await replica.promote()
            psycopg.connect(replica.dsn).close()
    finally:
        done = True
        await looking
    assert shown == set()


async def test_a_rollback_pool_is_for_its_own_user_only(server: Server) -> None:
    """Its clients meet in a folder that nobody else can enter."""
    async with rollback_pool(server.dsn) as pool:
        folder = Path(str(conninfo_to_dict(str(pool.conninfo))["host"]))
        assert not os.stat(folder).st_mode & EVERYBODY  # noqa: PTH116
        assert await pool.fetchval("SELECT 1") == 1
