"""psycopg's contract with a pool, and psycopg_pool's with its users: callbacks and callables."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import dict_row

import asyncpool
from asyncpool import AsyncConnectionPool, PoolTimeout

from ._tools import Backends, at_rest, backend_of, eventually, in_time, needs_internals

if TYPE_CHECKING:
    Conn = psycopg.AsyncConnection[Any]

with_close_returns = pytest.mark.skipif(
    tuple(map(int, psycopg.__version__.split(".")[:2])) < (3, 3),
    reason="psycopg before 3.3 does not ask a pool",
)


def owner(conn: Conn) -> Any:
    """The pool that psycopg believes a connection to be lent out by."""
    return conn._pool


async def test_a_connection_knows_its_pool_while_it_is_lent(dsn: str) -> None:
    """`conn._pool` is the pool in the hands of a borrower, and None in the pool's own."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=2) as pool:
        async with pool.connection() as conn:
            assert owner(conn) is pool
        assert owner(conn) is None
        conn = await pool.acquire()
        assert owner(conn) is pool
        await conn.execute("SELECT 1")
        await pool.release(conn)
        assert owner(conn) is None
        await at_rest(pool)
        async with pool.acquire() as conn, pool.transaction() as other:
            assert owner(conn) is owner(other) is pool
        async with pool.cursor() as cur:
            assert owner(cur.connection) is pool
        assert owner(conn) is owner(other) is None
        conns = await asyncio.gather(*(pool.acquire() for _ in range(2)))
        waiter = asyncio.create_task(pool.getconn())
        await eventually(lambda: pool.stats().waiting)
        await pool.release(conns[0])
        assert owner(await waiter) is pool
        await pool.release(conns[0])
        await pool.release(conns[1])


async def test_callbacks_get_a_connection_that_knows_its_pool(dsn: str) -> None:
    """configure, check and reset are user code like a borrower's."""
    seen: list[tuple[str, Any]] = []

    def note(name: str) -> Any:
        async def callback(conn: Conn) -> None:
            seen.append((name, conn._pool))

        return callback

    async with AsyncConnectionPool(
        dsn, min_size=1, configure=note("configure"), check=note("check"), reset=note("reset")
    ) as pool:
        async with pool.connection() as conn:
            assert owner(conn) is pool
        await at_rest(pool)
    assert seen == [("configure", pool), ("check", pool), ("reset", pool)]


async def test_the_given_class_makes_the_connections(dsn: str) -> None:
    """Through its `connect`, with conninfo and keywords as psycopg_pool would give them."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class Mine(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
            calls.append((conninfo, kwargs))
            return await super().connect(conninfo, **kwargs)

    async with (
        AsyncConnectionPool(
            dsn, min_size=1, connection_class=Mine, kwargs={"autocommit": True}
        ) as pool,
        pool.connection() as conn,
    ):
        assert type(conn) is Mine
        assert conn.autocommit
    ((conninfo, kwargs),) = calls
    assert conninfo == dsn
    assert kwargs["autocommit"] is True
    assert pool.connection_class is Mine


async def test_keywords_go_to_every_connection(dsn: str) -> None:
    """row_factory, prepare_threshold and libpq's own parameters; the mapping is not changed."""
    keywords = {"row_factory": dict_row, "prepare_threshold": 3, "application_name": "of keywords"}
    given = dict(keywords)
    async with AsyncConnectionPool(dsn, min_size=2, kwargs=keywords) as pool:
        await all_usable_as_dicts(pool)
        async with pool.connection() as conn:
            assert conn.prepare_threshold == 3
        assert await pool.fetchval("SHOW application_name") == "of keywords"
    assert keywords == given


async def all_usable_as_dicts(pool: AsyncConnectionPool[Any]) -> None:
    for _ in range(3):
        assert await pool.fetchone("SELECT 1 AS x") == {"x": 1}


@pytest.mark.parametrize("is_async", [False, True])
async def test_callables_are_asked_for_each_new_connection(dsn: str, is_async: bool) -> None:
    """So that what they give may change: a rotated password, another host."""
    asked: list[str] = []

    def conninfo() -> str:
        asked.append("conninfo")
        return dsn

    def keywords() -> dict[str, Any]:
        asked.append("kwargs")
        return {"application_name": f"number {asked.count('kwargs')}"}

    async def later_conninfo() -> str:
        await asyncio.sleep(0)
        return conninfo()

    async def later_keywords() -> dict[str, Any]:
        await asyncio.sleep(0)
        return keywords()

    async with AsyncConnectionPool(
        later_conninfo if is_async else conninfo,
        kwargs=later_keywords if is_async else keywords,
        min_size=1,
    ) as pool:
        assert await pool.fetchval("SHOW application_name") == "number 1"
        await pool.drain()
        assert await pool.fetchval("SHOW application_name") == "number 2"
    assert asked == ["conninfo", "kwargs"] * 2


async def test_a_rotated_dsn_serves_after_the_old_one_has_failed(dsn: str) -> None:
    """A callable that is wrong once does not stop the pool."""
    answers = iter(["host=127.0.0.1 port=1", "host=127.0.0.1 port=1"])
    async with AsyncConnectionPool(lambda: next(answers, dsn), min_size=1) as pool:
        assert await pool.fetchval("SELECT 1", timeout=10) == 1
        assert pool.stats().connects_failed == 2


async def test_an_async_callable_that_hangs_is_bounded(dsn: str) -> None:
    """A request ends at its deadline and the pool closes, whatever the callable does."""

    async def conninfo() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async with AsyncConnectionPool(conninfo, min_size=1) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.05)
        closing = asyncio.create_task(pool.close())
        await in_time(closing, 4)


async def test_configure_comes_before_everybody_else(dsn: str) -> None:
    """Once for each connection; what it sets is there for the borrower."""
    configured: list[Conn] = []

    async def configure(conn: Conn) -> None:
        configured.append(conn)
        await conn.set_autocommit(True)
        await conn.execute("SET app.tenant_id = 'nobody'")

    async with AsyncConnectionPool(dsn, min_size=2, configure=configure) as pool:
        for _ in range(4):
            async with pool.connection() as conn:
                assert conn in configured
                assert conn.autocommit
            assert await pool.fetchval("SHOW app.tenant_id") == "nobody"
        await pool.wait()
        assert len(configured) == 2


async def test_check_is_asked_before_each_loan(dsn: str) -> None:
    """Of an idle connection and of one that is handed over, one call each."""
    asked: list[Conn] = []

    async def check(conn: Conn) -> None:
        asked.append(conn)

    async with AsyncConnectionPool(dsn, min_size=1, check=check) as pool:
        conn = await pool.acquire()
        waiter = asyncio.create_task(pool.getconn())
        await eventually(lambda: pool.stats().waiting)
        await pool.release(conn)
        await pool.release(await waiter)
        assert await pool.fetchval("SELECT 1") == 1
        assert asked == [conn] * 3


async def test_the_ready_made_check_takes_one_connection_of_either_mode(dsn: str) -> None:
    """`AsyncConnectionPool.check_connection` leaves no transaction and no other mode."""
    for autocommit in (False, True):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit) as conn:
            await AsyncConnectionPool.check_connection(conn)
            assert conn.autocommit is autocommit
            assert conn.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with pytest.raises(psycopg.OperationalError):
            await AsyncConnectionPool.check_connection(conn)


@with_close_returns
async def test_closing_a_connection_returns_it_where_that_is_asked_for(dsn: str) -> None:
    """`conn.close()` is `putconn` with `close_returns`, rolled back and reset as always."""
    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True) as pool:
        conn = await pool.acquire()
        await conn.execute("CREATE TABLE never_there (x int)")
        await conn.close()
        assert not conn.closed
        assert pool.stats().leased == 0
        async with pool.connection() as same:
            assert same is conn
            pid = await backend_of(same)
        assert await pool.fetchval("SELECT to_regclass('never_there')::text") is None
        async with pool.connection() as same:
            await same.close()
        async with pool.connection() as same:
            assert await backend_of(same) == pid
        assert (await at_rest(pool)).connects == 1


@needs_internals
@with_close_returns
async def test_closing_a_broken_connection_returns_it_too(dsn: str, backends: Backends) -> None:
    """Of which psycopg's own would leave the place lent: the pool opens another in it."""
    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True) as pool:
        for _ in range(2):
            conn = await pool.acquire()
            backends.terminate(await backend_of(conn))
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("SELECT 1")
            await conn.close()
            await conn.close()
            assert pool.stats().leased == 0
            await at_rest(pool)
        assert pool.stats().connects == 3


@with_close_returns
async def test_closing_in_a_block_does_not_return_what_another_has_by_then(dsn: str) -> None:
    """The block's end leaves the next borrower's lease alone."""
    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True) as pool:
        async with pool.connection() as conn:
            await conn.close()
            other = await pool.acquire()
            assert other is conn
            await other.execute("SELECT 1")
        assert pool.stats().leased == 1
        assert other.pgconn.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        await pool.release(other)


@with_close_returns
async def test_nor_does_a_block_of_acquire_or_cursor(dsn: str) -> None:
    """Blocks of `acquire()` and `cursor()` do not commit after a lost connection either."""
    async with AsyncConnectionPool(dsn, min_size=1, close_returns=True) as pool:
        async with pool.cursor() as cur:
            await cur.connection.close()
            other = await pool.acquire()
        assert pool.stats().leased == 1
        await pool.release(other)
        async with pool.acquire() as conn:
            await conn.close()
            other = await pool.acquire()
        assert pool.stats().leased == 1
        await pool.release(other)


@with_close_returns
async def test_a_pool_that_closes_really_closes(dsn: str) -> None:
    """The pool's own `close()` of a connection is not taken for a return."""
    pool = AsyncConnectionPool(dsn, min_size=2, close_returns=True)
    await pool.wait()
    lent = await pool.acquire()
    idle = await pool.acquire()
    await pool.release(idle)
    await pool.close(timeout=0)
    assert lent.closed
    assert idle.closed


async def test_the_parameters_of_psycopg_pool_are_taken(dsn: str) -> None:
    """Changing the import is the whole migration: every parameter and every method is there."""

    async def callback(conn: Conn) -> None:
        return None

    keywords: dict[str, Any] = {
        "conninfo": dsn,
        "connection_class": psycopg.AsyncConnection,
        "kwargs": {"autocommit": True},
        "min_size": 1,
        "max_size": 2,
        "open": False,
        "configure": callback,
        "check": AsyncConnectionPool.check_connection,
        "reset": callback,
        "name": "the same",
        "close_returns": False,
        "timeout": 5.0,
        "max_waiting": 100,
        "max_lifetime": 60.0,
        "max_idle": 30.0,
        "reconnect_timeout": 10.0,
        "reconnect_failed": lambda pool: None,
        "num_workers": 2,
    }
    for kind in (psycopg_pool.AsyncConnectionPool, AsyncConnectionPool):
        pool: Any = kind(**keywords)
        await pool.open(wait=True, timeout=10)
        async with pool:
            assert (pool.name, pool.min_size, pool.max_size) == ("the same", 1, 2)
            assert pool.closed is False
            assert pool.timeout == 5.0
            assert pool.kwargs == {"autocommit": True}
            assert pool.conninfo == dsn
            async with pool.connection(timeout=5) as conn:
                await conn.execute("SELECT 1")
            await pool.resize(1, 3)
            await pool.check()
            assert set(pool.get_stats()) & set(pool.pop_stats())
            if hasattr(pool, "drain"):
                await pool.drain()
            await pool.close(timeout=5)
        assert pool.closed is True
    inner = {"run_task", "schedule_task", "worker"}
    names = {name for name in dir(psycopg_pool.AsyncConnectionPool) if not name.startswith("_")}
    assert names - inner <= set(dir(pool))


async def test_errors_of_the_pool_are_psycopgs_and_psycopg_pools_names_are_there() -> None:
    """`except psycopg.OperationalError` catches them as before."""
    for name in ("PoolClosed", "PoolTimeout", "TooManyRequests"):
        assert issubclass(getattr(asyncpool, name), psycopg.OperationalError)
        assert hasattr(psycopg_pool, name)
