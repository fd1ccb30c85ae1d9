"""The looks of a fleet: on which sessions they run, what they believe, and when they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import make_conninfo

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, Fleet, PoolTimeout
from asyncpool._fleet import rule
from asyncpool.testing import Server, postgres

from ._tools import LIMIT, eventually, in_time, login

PLACES = 20 - 1 - 3
"""Those of the server, less the test's own session and the reserve."""


@pytest.fixture(scope="module")
def small(asyncpool_server: Server) -> Iterator[Server]:
    """A server with 23 connections, of which 3 are for superusers."""
    if asyncpool_server.source not in ("binaries", "wheel"):
        pytest.skip(f"{asyncpool_server.source}: a server's settings are not ours to choose")
    with asyncio.Runner() as runner:
        server = postgres(max_connections=23, source=asyncpool_server.source)
        running = runner.run(server.__aenter__())
        try:
            yield running
        finally:
            runner.run(server.__aexit__(None, None, None))


@pytest_asyncio.fixture
async def admin(small: Server) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A superuser's session, once the clients of earlier tests are gone."""
    async with await psycopg.AsyncConnection.connect(small.dsn, autocommit=True) as conn:
        deadline = time.monotonic() + LIMIT
        while found := await names(conn):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.01)
        yield conn


@pytest_asyncio.fixture
async def dsn(small: Server, admin: psycopg.AsyncConnection[Any]) -> AsyncIterator[str]:
    """The connection string of a role that is no superuser."""
    async for found in new_role(small, admin):
        yield found


@pytest_asyncio.fixture
async def other(small: Server, admin: psycopg.AsyncConnection[Any]) -> AsyncIterator[str]:
    """That of another role."""
    async for found in new_role(small, admin):
        yield found


async def new_role(server: Server, conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[str]:
    """Create a role, and drop it in the end."""
    name = f"app_{uuid4().hex[:8]}"
    await conn.execute(f"CREATE ROLE {name} {login(server.dsn)}")
    yield make_conninfo(server.dsn, user=name)
    await conn.execute(f"DROP ROLE {name}")


async def ask(conn: psycopg.AsyncConnection[Any], query: str) -> list[Any]:
    """Return the first column."""
    return [row[0] for row in await (await conn.execute(query)).fetchall()]


async def names(conn: psycopg.AsyncConnection[Any]) -> list[str]:
    """Return the application_name of each session but the superuser's."""
    query = "SELECT application_name FROM pg_stat_activity WHERE usename ~ '^app_'"
    return await ask(conn, query)


class Uses:
    """Requests that keep their connections until they are told to return them."""

    def __init__(self, pool: AsyncConnectionPool[Any], number: int) -> None:
        self._pool, self._end = pool, asyncio.Event()
        self.served = 0
        self._tasks = [asyncio.create_task(self._use()) for _ in range(number)]

    def are_served(self, number: int) -> bool:
        """Whether so many have a connection."""
        return self.served == number

    async def end(self) -> None:
        """Have all connections returned."""
        self._end.set()
        await asyncio.gather(*self._tasks)

    async def _use(self) -> None:
        async with self._pool.connection():
            self.served += 1
            await self._end.wait()


async def test_a_fleet_alone_opens_for_long_uses_at_once(dsn: str) -> None:
    """Its first look claims and is granted, since the next may have to wait for a long time."""
    for least in (0, 1):
        pool = AsyncConnectionPool(dsn, min_size=least, max_size=15, budget=Fleet("shop"))
        async with pool:
            await pool.wait()
            uses = Uses(pool, 15)
            await in_time(eventually(partial(uses.are_served, 15)), 2.0)
            await uses.end()


@pytest.mark.exhaustive
async def test_places_that_come_free_are_noticed_while_all_connections_are_in_use(
    dsn: str, admin: psycopg.AsyncConnection[Any]
) -> None:
    """The claim ends after 3 seconds; one more is opened then, and looks."""
    others = [await psycopg.AsyncConnection.connect(dsn) for _ in range(13)]
    try:
        async with AsyncConnectionPool(dsn, min_size=1, max_size=10, budget=Fleet("shop")) as pool:
            await pool.wait()
            uses = Uses(pool, 10)
            await eventually(lambda: uses.served >= 3)
            for conn in others:
                await conn.close()
            await in_time(eventually(lambda: uses.served == 10), 4.5)
            await uses.end()
    finally:
        for conn in others:
            await conn.close()


@pytest.mark.exhaustive
async def test_a_null_pool_looks_on_no_session_that_is_not_reset(dsn: str) -> None:
    """A request that comes during the look would get it with the settings of the last one."""
    pool = AsyncNullConnectionPool(dsn, max_size=1, reset="session", budget=Fleet("shop"))
    async with pool:
        seen = []
        for _ in range(3):
            async with pool.connection() as conn:
                await conn.execute("SET app.tenant = 'secret'")
                await conn.commit()
                await asyncio.sleep(0.6)  # so that the next look is due
            seen.append(await pool.fetchval("SELECT current_setting('app.tenant', true)"))
        assert not any(seen)


@pytest.mark.exhaustive
async def test_a_busy_null_pool_looks_between_two_requests(dsn: str) -> None:
    """On a connection that was reset for the next one."""
    fleet = Fleet("shop")
    async with AsyncNullConnectionPool(dsn, max_size=2, reset="session", budget=fleet) as pool:
        end = time.monotonic() + 1.5
        looks = []

        async def work() -> None:
            while time.monotonic() < end:
                assert await pool.fetchval("SELECT 1") == 1
                looks.append(fleet.stats().last_look or 0.0)

        await asyncio.gather(*(work() for _ in range(6)))
        assert max(looks) < 1.4


@pytest.mark.parametrize("mark", ["fleet=shop/zzzzzz/0", "fleet=shop/zzzzzz/0.00/5/5/0"])
async def test_a_mark_that_no_member_makes_does_no_harm(dsn: str, mark: str) -> None:
    """Its session is one of others."""
    fleet = Fleet("shop")
    async with (
        await psycopg.AsyncConnection.connect(dsn, application_name=mark),
        AsyncConnectionPool(dsn, min_size=2, max_size=10, budget=fleet) as pool,
    ):
        await pool.wait()
        await eventually(lambda: fleet.stats().looks >= 4)
        now = fleet.stats()
        assert (pool.stats().lost, now.members, now.error) == (0, 1, None)


async def test_what_another_role_publishes_does_not_count(dsn: str, other: str) -> None:
    """Else any role could take the places from all, with one session."""
    fleet, mark = Fleet("shop"), "fleet=shop/zzzzzz/99.99/9999/9999/0"
    async with (
        await psycopg.AsyncConnection.connect(other, application_name=mark),
        AsyncConnectionPool(dsn, min_size=1, max_size=20, budget=fleet) as pool,
    ):
        await pool.wait()
        uses = Uses(pool, 20)
        await eventually(lambda: uses.served == PLACES - 1)
        assert (fleet.stats().members, fleet.stats().others) == (1, 2)
        await uses.end()


@pytest.mark.exhaustive
async def test_a_mark_of_one_that_never_looks_takes_no_share(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a process that sees nobody; a newcomer would look at once."""
    monkeypatch.setattr(rule, "STALE", 1.0)
    fleet, mark = Fleet("shop"), "fleet=shop/bbbbbb/1"
    async with (
        await psycopg.AsyncConnection.connect(dsn, application_name=mark),
        AsyncConnectionPool(dsn, min_size=1, max_size=20, budget=fleet) as pool,
    ):
        await pool.wait()
        uses = Uses(pool, 20)
        await eventually(lambda: uses.served == PLACES - 1)
        await uses.end()


async def test_a_claim_ends_with_the_session_that_shows_it(
    dsn: str, admin: psycopg.AsyncConnection[Any]
) -> None:
    """The others do not see it any more, so nothing is opened within it before the next look."""
    fleet = Fleet("shop")
    async with AsyncConnectionPool(dsn, min_size=1, max_size=10, budget=fleet) as pool:
        uses = Uses(pool, 4)
        await eventually(partial(uses.are_served, 4))
        await uses.end()
        looks = fleet.stats().looks
        await eventually(lambda: fleet.stats().looks > looks)
        size, looks = fleet.size, fleet.stats().looks
        assert (fleet.stats().limit or 0) > size
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
            " WHERE usename ~ '^app_' ORDER BY split_part(application_name, '/', 6) DESC LIMIT 1) a"
        )
        deadline = time.monotonic() + LIMIT
        for _ in iter(lambda: fleet.size == size and time.monotonic() < deadline, False):
            await asyncio.sleep(0)  # each turn of the event loop, since the next look comes soon
        assert (fleet.stats().looks, fleet.stats().limit) == (looks, size - 1)
        await eventually(lambda: (fleet.stats().limit or 0) > size)


@pytest.mark.parametrize("reset", [None, "session"])
async def test_a_session_whose_name_was_set_is_marked_again(
    dsn: str, admin: psycopg.AsyncConnection[Any], reset: Any
) -> None:
    """When it is returned; else each such session would be one of others."""
    fleet = Fleet("shop")
    async with AsyncConnectionPool(dsn, min_size=3, reset=reset, budget=fleet) as pool:
        await pool.wait()
        conns = [await pool.acquire() for _ in range(3)]
        for conn in conns:
            await conn.execute("SET application_name = 'report'")
            await conn.commit()
            await pool.release(conn)
        await eventually(lambda: pool.stats().idle == 3)
        looks = fleet.stats().looks
        await eventually(lambda: fleet.stats().looks > looks)
        assert all("fleet=shop/" in name for name in await names(admin))
        assert fleet.stats().others == 1


async def test_the_users_own_name_may_look_like_a_mark(
    dsn: str, admin: psycopg.AsyncConnection[Any]
) -> None:
    """Only a whole mark is replaced."""
    given = make_conninfo(dsn, application_name="svc fleet=eu-west")
    fleet = Fleet("shop")
    async with AsyncConnectionPool(given, min_size=2, budget=fleet) as pool:
        await pool.wait()
        await eventually(lambda: fleet.stats().looks > 1)
        assert all(name.startswith("svc fleet=eu-west fleet=shop/") for name in await names(admin))
        assert fleet.stats().members == 1


@pytest.mark.exhaustive
async def test_a_check_that_fails_backs_off(dsn: str) -> None:
    """Also where the new connection was looked on before the check."""

    async def check(_: object) -> None:
        raise RuntimeError

    pool = AsyncConnectionPool(dsn, min_size=0, max_size=3, budget=Fleet("shop"), check=check)
    async with pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1.5)
        assert pool.stats().connects < 15
