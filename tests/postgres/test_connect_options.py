"""Connection strings and options on a real server, and mistakes that can never connect."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, PoolUnavailable

from ._tools import OwnConnect, at_rest, in_time

if TYPE_CHECKING:
    from asyncpool.testing import Server

POOLS = [AsyncConnectionPool, AsyncNullConnectionPool]


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("aplication_name=x", "aplication_name.*application_name"),
        ("sslmode=requre", "sslmode"),
        ("port=abc", "port"),
        ("port=1,2,3", "port"),
        ("connect_timeout=soon", "connect_timeout"),
        ("keepalives_idle=soon", "keepalives_idle"),
        ("keepalives_idle=1_0", "keepalives_idle"),
        ("connect_timeout=inf", "connect_timeout"),
        ("hostaddr=localhost", "hostaddr"),
        ("hostaddr=127.0.0.1,127.0.0.1", "hostaddr"),
    ],
)
async def test_a_mistake_of_a_callable_is_reported_at_once(
    dsn: str, kind: type[AsyncConnectionPool], more: str, message: str
) -> None:
    """The error is raised as for a refused password, without waiting for further connects."""
    name, _, value = more.partition("=")
    sources: list[dict[str, Any]] = [
        {"conninfo": lambda: f"{dsn} {more}"},
        {"conninfo": dsn, "kwargs": lambda: {name: value}},
    ]
    for source in sources:
        async with kind(**source, min_size=0, max_size=2, timeout=60) as pool:
            with pytest.raises(PoolUnavailable, match=message) as caught:
                await in_time(pool.getconn())
            assert isinstance(caught.value.__cause__, ValueError)
            assert message.partition(".")[0] in (pool.explain().last_error or "")


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("name", ["conninfo", "kwargs"])
async def test_a_callable_that_gives_something_else_is_told_at_once(
    dsn: str, kind: type[AsyncConnectionPool], name: str
) -> None:
    """By its name and the type of what it gives."""
    source: dict[str, Any] = {"conninfo": dsn} | {name: lambda: 3}
    async with kind(**source, min_size=0, max_size=2, timeout=60) as pool:
        with pytest.raises(PoolUnavailable, match=f"callable {name} must give .*, not int"):
            await in_time(pool.getconn())


async def test_a_mistake_that_only_connect_sees_is_reported_immediately(dsn: str) -> None:
    """The class has its own `connect`, so the constructor cannot check its options."""
    for kwargs in (
        {"aplication_name": "x"},
        {"sslmode": "requre"},
        {"hostaddr": "127.0.0.1,127.0.0.1"},
    ):
        async with AsyncConnectionPool(
            dsn, kwargs=kwargs, connection_class=OwnConnect, min_size=0, max_size=2, timeout=60
        ) as pool:
            with pytest.raises(PoolUnavailable, match=next(iter(kwargs))):
                await in_time(pool.getconn())


@pytest.mark.parametrize("kind", POOLS)
async def test_a_setting_that_the_server_does_not_know_fails_at_once(
    dsn: str, kind: type[AsyncConnectionPool]
) -> None:
    """The error quotes the server, with the name of the setting."""
    wrong = make_conninfo(dsn, options="-c aplication_name=x")
    async with kind(wrong, min_size=0, max_size=2, timeout=60) as pool:
        with pytest.raises(PoolUnavailable, match='parameter "aplication_name"') as caught:
            await in_time(pool.getconn())
        assert 'parameter "aplication_name"' in str(caught.value.__cause__)
        assert 'parameter "aplication_name"' in (pool.explain().last_error or "")


async def test_the_folder_of_a_socket_may_have_an_at_in_its_name(
    asyncpool_server: Server, dsn: str
) -> None:
    """Any notation works; only a host that is not a folder can be the end of a password."""
    if asyncpool_server.socket_dsn is None:
        pytest.skip("the server has no Unix socket")
    there = conninfo_to_dict(asyncpool_server.socket_dsn)
    folder = Path(tempfile.mkdtemp(prefix="pg@15-", dir="/tmp"))  # short enough
    try:
        link = folder / "s"
        link.symlink_to(str(there["host"]))
        user = f"{there['user']}:{there['password']}"
        url = f"postgresql://{user}@{quote(str(link), '')}:{there['port']}/{there['dbname']}"
        pairs = make_conninfo(asyncpool_server.socket_dsn, host=str(link))
        for source in (url, pairs):
            async with AsyncConnectionPool(source, min_size=1) as pool:
                assert await in_time(pool.fetchval("SELECT inet_server_port() IS NULL"))
    finally:
        shutil.rmtree(folder)


async def test_a_callable_that_is_right_the_next_time_is_asked_again(dsn: str) -> None:
    """The pool retries by itself."""
    answers = [f"{dsn} aplication_name=x"]
    async with AsyncConnectionPool(lambda: answers[-1], min_size=1) as pool:
        with pytest.raises(PoolUnavailable):
            await in_time(pool.getconn())
        answers.append(make_conninfo(dsn))
        await at_rest(pool)
        assert await in_time(pool.fetchval("SELECT 1")) == 1
