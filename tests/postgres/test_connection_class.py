"""Users' connection classes, derived from psycopg's and from `asyncpool.Connection`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row

from asyncpool import AsyncConnectionPool, Connection

from ._tools import BOTH_LOOPS, Backends, Proxy, all_usable, eventually, needs_internals

if TYPE_CHECKING:
    from asyncpool.testing import Server

LOOPS = BOTH_LOOPS


class Plain(psycopg.AsyncConnection[Any]):
    """A class that waits as psycopg does."""

    async def one(self) -> object:
        """Run a statement of the application."""
        return await (await self.execute("SELECT 1")).fetchone()


class Watched(Connection[Any]):
    """A watched class with its own `connect`."""

    label = ""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect and set an attribute."""
        conn = await super().connect(conninfo, **kwargs)
        conn.label = "mine"
        return conn

    async def one(self) -> object:
        """Run a statement of the application."""
        return await (await self.execute("SELECT 1")).fetchone()


each_class = pytest.mark.parametrize("own", [Plain, pytest.param(Watched, marks=needs_internals)])


@each_class
async def test_a_users_own_class_works_in_a_pool(dsn: str, own: Any) -> None:
    """A class derived from either one keeps its own methods."""
    async with AsyncConnectionPool(dsn, min_size=2, connection_class=own) as pool:
        async with pool.connection() as conn:
            assert type(conn) is own
            assert await conn.one() == (1,)
        results = await asyncio.gather(*(pool.fetchval("SELECT 1") for _ in range(100)))
        assert results == [1] * 100
        await all_usable(pool)


@each_class
async def test_a_cancelled_query_of_a_users_own_class_ends(
    dsn: str, backends: Backends, own: Any
) -> None:
    """The query ends on the server too, and the pool stays whole."""
    async with AsyncConnectionPool(dsn, min_size=2, connection_class=own) as pool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.execute("SELECT pg_sleep(60)"), 0.05)
        await eventually(lambda: not backends.running("pg_sleep"))
        await all_usable(pool)


@each_class
async def test_a_users_own_class_is_replaced_when_its_server_has_gone(
    dsn: str, backends: Backends, own: Any
) -> None:
    """A loss of a watched one is seen immediately, of psycopg's own by the user's `check`."""
    async with AsyncConnectionPool(
        dsn, min_size=2, connection_class=own, check=AsyncConnectionPool.check_connection
    ) as pool:
        await pool.wait()
        backends.terminate()
        if own is Watched:
            await eventually(lambda: pool.stats().lost == 2)
        assert await pool.fetchval("SELECT 1") == 1
        await all_usable(pool)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_dead_connection_of_psycopgs_own_class_is_not_leased(
    dsn: str, backends: Backends, another_server: Server, tls: bool
) -> None:
    """An unwatched connection's socket is checked when it is leased, without a round trip."""
    if tls:
        dsn = make_conninfo(another_server.dsn, sslmode="require", application_name="own class")
        backends = Backends(another_server.dsn, "own class")
    async with AsyncConnectionPool(dsn, min_size=3, connection_class=Plain) as pool:
        await all_usable(pool)
        backends.terminate()
        for _ in range(4):
            async with pool.connection() as conn:
                assert await conn.one() == (1,)
        assert pool.stats().lost == 3


@pytest.mark.exhaustive
async def test_a_connection_whose_end_was_announced_is_not_leased(
    dsn: str, backends: Backends
) -> None:
    """The server's announcement counts, even before it hangs up."""
    async with Proxy(dsn) as proxy:
        proxy.tells_of_the_end = False
        async with AsyncConnectionPool(proxy.dsn, min_size=1, connection_class=Plain) as pool:
            await all_usable(pool)
            backends.terminate()
            await eventually(lambda: proxy.hung_up == 1)
            proxy.tells_of_the_end = True
            async with pool.connection() as conn:
                assert await conn.one() == (1,)
            assert pool.stats().lost == 1
            proxy.cut()


async def test_notifications_that_came_while_it_was_idle_are_not_lost(
    dsn: str, backends: Backends
) -> None:
    """Reading the socket at a lease keeps the notifications that it finds."""
    async with AsyncConnectionPool(
        dsn, min_size=1, connection_class=Plain, kwargs={"autocommit": True}
    ) as pool:
        async with pool.connection() as conn:
            await conn.execute("LISTEN here")
        backends.ask("NOTIFY here, 'meanwhile'")
        async with pool.connection() as conn, aclosing(conn.notifies(stop_after=1)) as notifies:
            async with asyncio.timeout(10.0):
                assert [each.payload async for each in notifies] == ["meanwhile"]


@needs_internals
async def test_a_class_derived_from_ours_is_watched(dsn: str, backends: Backends) -> None:
    """An attribute that its own connect() has set stays."""
    async with AsyncConnectionPool(dsn, min_size=1, connection_class=Watched) as pool:
        async with pool.connection() as conn:
            assert conn.label == "mine"
        backends.terminate()
        await eventually(lambda: pool.stats().lost == 1)


class Downgraded(Connection[Any]):
    """A class whose `connect` returns psycopg's own connections."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        """Return a connection of another class."""
        return await psycopg.AsyncConnection.connect(conninfo, **kwargs)


class Upgraded(psycopg.AsyncConnection[Any]):
    """A class whose `connect` returns watched connections."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        """Return a connection of another class."""
        return await Connection.connect(conninfo, **kwargs)


class Mixed(Connection[Any]):
    """A class whose `connect` returns both kinds in turn."""

    made = 0

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        """Return a connection of either class."""
        cls.made += 1
        kind = (Connection, psycopg.AsyncConnection)[cls.made % 2]
        return await kind.connect(conninfo, **kwargs)


class Proxied:
    """A proxy of a connection, as tracers use it, which passes for the connection's class."""

    def __init__(self, conn: Any) -> None:
        object.__setattr__(self, "wrapped", conn)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "wrapped"), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.wrapped, name, value)

    def __hash__(self) -> int:
        return hash(self.wrapped)

    def __eq__(self, other: object) -> bool:
        return bool(self.wrapped == other)


class Traced(Connection[Any]):
    """A class whose `connect` is wrapped by a tracer."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        """Connect and return a proxy of the connection."""
        return Proxied(await super().connect(conninfo, **kwargs))


@pytest.mark.parametrize("own", [Downgraded, Upgraded, Mixed, Traced])
async def test_what_connect_makes_counts_and_not_the_class_that_it_is_called_on(
    dsn: str, own: Any
) -> None:
    """Blocks, one-shots, an error and a cancellation leave no connection lost or leased."""
    async with AsyncConnectionPool(dsn, min_size=2, connection_class=own) as pool:
        for kind in ("connection", "transaction", "cursor", "session", "acquire"):
            async with getattr(pool, kind)() as target:
                await target.execute("SELECT 1")
        assert await pool.fetchval("SELECT 1") == 1
        with pytest.raises(psycopg.errors.DivisionByZero):
            await pool.execute("SELECT 1/0")
        await all_usable(pool)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), pool.connection() as conn:
                await conn.execute("SELECT pg_sleep(60)")
        conn = await pool.getconn()
        await pool.putconn(conn)
        await all_usable(pool)


@pytest.mark.parametrize("alias", [psycopg.AsyncConnection[DictRow], Connection[DictRow]])
async def test_an_alias_that_says_the_rows_is_its_class(dsn: str, alias: Any) -> None:
    """psycopg's documentation uses such aliases; anything but a connection class is refused."""
    kwargs = {"row_factory": dict_row}
    async with AsyncConnectionPool(dsn, min_size=1, connection_class=alias, kwargs=kwargs) as pool:
        assert pool.connection_class in {psycopg.AsyncConnection, Connection}
        async with pool.connection() as conn:
            assert await (await conn.execute("SELECT 1 AS one")).fetchone() == {"one": 1}
    wrong: Any
    for wrong in (list[int], psycopg.Connection[DictRow], "AsyncConnection"):
        with pytest.raises(TypeError, match=r"must be a psycopg.AsyncConnection class"):
            AsyncConnectionPool(dsn, connection_class=wrong)
