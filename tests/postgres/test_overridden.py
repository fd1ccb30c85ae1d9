"""Connections whose methods are overridden, or that a tracer has wrapped.

Calls of the user go through the overriding methods. The pool's own work does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Self, cast

import psycopg
import pytest
import wrapt

from asyncpool import AsyncConnectionPool, AsyncNullConnectionPool, Connection

from ._tools import BOTH_LOOPS, Backends, all_usable, eventually, in_time

LOOPS = BOTH_LOOPS

Use = Callable[[AsyncConnectionPool[Any]], Awaitable[object]]

STATEMENTS: list[str] = []
"""The statements that the overriding methods have seen."""


class Wrapper(wrapt.ObjectProxy[Any]):
    """A tracer's wrapper around a connection."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Record the statement."""
        STATEMENTS.append(str(query))
        return await self.__wrapped__.execute(query, *args, **kwargs)


class Wrapped(Connection[Any]):
    """A connection class whose `connect` returns a wrapper."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect and wrap."""
        return cast("Self", Wrapper(await super().connect(conninfo, **kwargs)))


class Overridden(Connection[Any]):
    """A connection class that overrides `execute`."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Record the statement."""
        STATEMENTS.append(str(query))
        return await super().execute(query, *args, **kwargs)


class WithCursors(Connection[Any]):
    """A connection class that overrides `cursor`, which its `execute` uses."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor that records its statements."""
        cur = super().cursor(*args, **kwargs)

        class Cursor(wrapt.ObjectProxy[Any]):
            async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
                STATEMENTS.append(str(query))
                await self.__wrapped__.execute(query, *args, **kwargs)
                return self

        return Cursor(cur)


@pytest.fixture(params=[Wrapped, Overridden, WithCursors])
async def tracing(request: pytest.FixtureRequest) -> type[Connection[Any]]:
    """Each of these connection classes, with an empty record."""
    STATEMENTS.clear()
    tracing: type[Connection[Any]] = request.param
    return tracing


async def ping(pool: AsyncConnectionPool[Any]) -> None:
    """Run the pool's own check."""
    await pool.check()


async def fail(pool: AsyncConnectionPool[Any]) -> None:
    """Run a block that is rolled back."""
    with suppress(ZeroDivisionError):
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            raise ZeroDivisionError


async def time_out(pool: AsyncConnectionPool[Any]) -> None:
    """Run a block whose statement is cancelled."""
    with pytest.raises(TimeoutError):
        async with pool.connection() as conn, asyncio.timeout(0.05):
            await conn.execute("SELECT pg_sleep(60)")


async def return_it_open(pool: AsyncConnectionPool[Any]) -> None:
    """Release a connection with a transaction open."""
    conn = await pool.getconn()
    await conn.execute("SELECT 1")
    await pool.putconn(conn)


@pytest.mark.parametrize("reset", [None, "session", "discard"])
@pytest.mark.parametrize("use", [ping, fail, time_out, return_it_open])
async def test_the_pools_own_statements_do_not_go_through_what_is_overridden(
    dsn: str, tracing: type[Connection[Any]], use: Use, reset: Any
) -> None:
    """Only the borrower's statements do, each once."""
    async with AsyncConnectionPool(
        dsn,
        min_size=1,
        connection_class=tracing,
        reset=reset,
        check=AsyncConnectionPool.check_connection,
        pipeline=False,
    ) as pool:
        await use(pool)
        async with pool.connection() as conn:
            await conn.execute("SELECT 2")
        await all_usable(pool)
        assert [query for query in STATEMENTS if not query.startswith("SELECT")] == []
        assert STATEMENTS.count("SELECT 2") == 1


async def test_the_pools_own_statements_do_not_go_through_a_patched_class_of_cursors(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracer may replace the name in psycopg's module; psycopg's connections do not use it."""

    def patched(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr(psycopg, "AsyncCursor", patched)
    plain: Any = psycopg.AsyncConnection
    async with AsyncConnectionPool(
        dsn, min_size=1, connection_class=plain, reset="session", pipeline=False
    ) as pool:
        for use in (ping, fail, return_it_open):
            await use(pool)
        assert await pool.batch(["SELECT 1"]) == [[(1,)]]
        await all_usable(pool)
        assert pool.stats().returns_bad == 0


async def test_the_null_pools_own_rollback_does_not_go_through_what_is_overridden(
    dsn: str, tracing: type[Connection[Any]]
) -> None:
    """The null pool rolls back before it closes the connection."""
    async with AsyncNullConnectionPool(dsn, connection_class=tracing, pipeline=False) as pool:
        await return_it_open(pool)
        await eventually(lambda: not pool.stats().size)
    assert STATEMENTS == ["SELECT 1"]


async def test_the_pool_does_not_need_the_borrowers_factories(dsn: str) -> None:
    """A connection is released in a transaction, with factories that raise."""

    broken: Any = None

    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, pipeline=False) as pool:
        conn = await pool.getconn()
        pid = conn.pgconn.backend_pid
        await conn.execute("SELECT 1")
        conn.row_factory = conn.cursor_factory = broken
        await pool.putconn(conn)
        await eventually(lambda: pool.stats().idle)
        assert pool.stats().returns_bad == 0
        async with pool.connection() as conn:
            assert conn.pgconn.backend_pid == pid


class Closing(Connection[Any]):
    """A connection class whose `close` does not close."""

    how = ""

    async def close(self) -> None:
        """Raise, hang or do nothing."""
        if self.how == "fails":
            raise ZeroDivisionError
        if self.how == "hangs":
            await asyncio.Event().wait()


@pytest.fixture(params=["fails", "hangs", "does nothing"])
async def closing(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Any]:
    """A pool of connections whose `close` does not close."""
    Closing.how = request.param
    async with AsyncConnectionPool(dsn, min_size=2, connection_class=Closing) as pool:
        await pool.wait()
        yield pool


async def test_a_pool_closes_connections_whose_own_close_does_not(
    closing: AsyncConnectionPool[Any], backends: Backends, caplog: pytest.LogCaptureFixture
) -> None:
    """No connection is left on the server."""
    await in_time(closing.close())
    await eventually(lambda: not backends.pids())
    warned = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert bool(warned) is (Closing.how == "fails")


async def test_a_method_that_a_tracer_has_patched_is_called(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracer patches psycopg's class after the pool's class was derived from it."""
    calls: list[object] = []

    def note(name: str) -> None:
        method = getattr(psycopg.AsyncConnection, name)

        def noting(self: object, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(psycopg.AsyncConnection, name, noting)

    for name in ("execute", "cursor"):
        note(name)
    async with await Connection.connect(dsn) as conn:
        await conn.execute("SELECT 1")
    assert calls == ["execute", "cursor"]


async def test_a_connect_that_was_patched_may_make_psycopgs_own_connection(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain function in place of the class method does not know the class; the pool goes on."""
    connect = psycopg.AsyncConnection.connect

    async def patched(*args: Any, **kwargs: Any) -> Any:
        return await connect(*args, **kwargs)

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", patched)
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        for _ in range(2):
            conn = await pool.getconn()
            assert type(conn) is psycopg.AsyncConnection
            await conn.execute("SELECT 1")
            await pool.putconn(conn)
        assert await pool.fetchval("SELECT 1") == 1
        assert pool.stats().connects == 1


@pytest.mark.parametrize("cls", [Wrapped, Overridden, psycopg.AsyncConnection])
async def test_a_null_pool_closes_each_connection_after_its_block(
    dsn: str, backends: Backends, cls: Any
) -> None:
    """A wrapped one too, whose class has no `close` of its own."""
    async with AsyncNullConnectionPool(dsn, connection_class=cls) as pool:
        for _ in range(2):
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
            await eventually(lambda: not backends.pids())
        assert pool.stats().returns_bad == 0
