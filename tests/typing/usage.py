"""Code as users write it; mypy reads it in strict mode, and nobody runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_type

from aiohttp import web
from fastapi import FastAPI
from psycopg import AsyncConnection, AsyncCursor, Notify
from psycopg.rows import DictRow, class_row, dict_row, scalar_row
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection

import asyncpool
from asyncpool import (
    Advice,
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    Cluster,
    Explanation,
    Fleet,
    Gap,
    HealthReport,
    Notifications,
    OwnWrites,
    PoolStats,
    PoolTimeout,
)
from asyncpool.integrations.aiohttp import (
    cluster_context,
    pool_context,
    read_own_writes,
    request_limits,
)
from asyncpool.integrations.fastapi import (
    ConnectionDep,
    RequestTransaction,
    Transaction,
    connection,
)
from asyncpool.integrations.fastapi import Pool as Pooled
from asyncpool.integrations.sqlalchemy import create_async_engine, engines
from asyncpool.integrations.starlette import (
    CancelOnDisconnect,
    ReadOwnWrites,
    RequestLimits,
    TransactionPerRequest,
    busy,
    health_route,
    lifespan,
    readiness_route,
)
from asyncpool.testing import rollback_pool

Plain = AsyncConnection[tuple[Any, ...]]


class Connection(AsyncConnection[DictRow]):
    """A user's own, with a method more."""

    async def tenant(self) -> str:
        """Return the owner of the data."""
        return "acme"


@dataclass
class Order:
    """A row."""

    id: int


class Pool(AsyncConnectionPool[Connection]):
    """A user's own pool."""


Reports = Annotated[Connection, connection("reports")]


async def the_default_connection_is_psycopgs(dsn: str) -> None:
    """With rows that are tuples."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=None)
    assert_type(pool, AsyncConnectionPool[Plain])
    async with pool.connection() as conn:
        assert_type(conn, Plain)
        cur = await conn.execute("SELECT 1")
        assert_type(cur, AsyncCursor[tuple[Any, ...]])
    async with pool.transaction(timeout=1) as conn:
        assert_type(conn, Plain)
    async with pool.session(timeout=1) as conn:
        assert_type(conn, Plain)
    async with pool.cursor(row_factory=dict_row, autocommit=True) as rows:
        assert_type(rows, AsyncCursor[DictRow])
        assert_type(await rows.fetchone(), DictRow | None)
    async with pool.cursor(row_factory=class_row(Order)) as orders:
        assert_type(await orders.fetchall(), list[Order])
    async with pool.cursor() as plain:
        assert_type(plain, AsyncCursor[Any])
    pool.cursor(autocommit="on")  # type: ignore[call-overload]


async def acquire_is_awaited_or_entered(pool: AsyncConnectionPool) -> None:
    """An unsubscripted name stands for the default."""
    assert_type(pool, AsyncConnectionPool[Plain])
    conn = await pool.acquire(timeout=2.0)
    assert_type(conn, Plain)
    await pool.release(conn)
    async with pool.acquire() as conn:
        assert_type(conn, Plain)
    coroutine: Coroutine[Any, Any, Plain] = pool.acquire()
    coroutine.close()
    conn = await pool.getconn()
    assert_type(conn, Plain)
    await pool.putconn(conn)
    conn = await pool.getconn(1.0, key=("tenant", 7))
    assert_type(conn, Plain)
    await pool.putconn(conn, ("tenant", 7), close=True)
    await pool.getconn(key=[7])  # type: ignore[arg-type]
    await pool.closeall()


async def gaps_are_seen_by_those_who_ask_for_them(pool: AsyncConnectionPool) -> None:
    """So a loop that knows nothing of them need not tell them apart."""
    async with pool.listen("orders", "users") as notifications:
        assert_type(notifications, Notifications[Notify])
        async for notification in notifications:
            assert_type(notification.payload, str)
    async with pool.listen("orders", gaps=True, timeout=1.0) as both:
        async for item in both:
            assert_type(item, Notify | Gap)
            assert_type(item.lasted if isinstance(item, Gap) else item.payload, float | str)
    pool.listen(7)  # type: ignore[call-overload]


async def rows_are_what_the_connection_class_says(dsn: str) -> None:
    """As in psycopg_pool."""
    pool = AsyncConnectionPool(
        dsn,
        connection_class=AsyncConnection[DictRow],
        kwargs={"row_factory": dict_row},
    )
    assert_type(pool, AsyncConnectionPool[AsyncConnection[DictRow]])
    async with pool.connection() as conn:
        cur = await conn.execute("SELECT 1 AS one")
        assert_type(await cur.fetchone(), DictRow | None)


async def the_row_type_may_be_said_by_the_pools_own(
    pool: AsyncConnectionPool[AsyncConnection[DictRow]],
) -> None:
    """As psycopg_pool's users annotate it."""
    async with pool.connection() as conn, conn.cursor() as cur:
        assert_type(cur, AsyncCursor[DictRow])
        await cur.execute("SELECT 1 AS one")
        assert_type(await cur.fetchall(), list[DictRow])


async def a_pool_that_keeps_none_is_one_of_these(dsn: str) -> None:
    """With the same types throughout."""
    pool = AsyncNullConnectionPool(dsn, max_size=5)
    assert_type(pool, AsyncNullConnectionPool[Plain])
    as_one: AsyncConnectionPool[Plain] = pool
    async with AsyncNullConnectionPool(dsn, connection_class=Connection) as other:
        assert_type(await other.getconn(), Connection)
    await as_one.close()


async def what_a_pool_was_told_may_be_set(pool: AsyncConnectionPool) -> None:
    """As in psycopg_pool; not the sizes, for which there is `resize`."""
    assert_type(pool.max_waiting, int)
    pool.timeout, pool.max_waiting, pool.max_lifetime = 1.0, 5, 60.0
    pool.conninfo, pool.kwargs = "dbname=other", {"autocommit": True}
    pool.max_size = 5  # type: ignore[misc]


async def a_class_of_ones_own_is_seen_through_the_pool(dsn: str) -> None:
    """Its methods too."""
    async with AsyncConnectionPool(dsn, connection_class=Connection) as pool:
        assert_type(pool, AsyncConnectionPool[Connection])
        async with pool.connection() as conn:
            assert_type(await conn.tenant(), str)
        async with pool.session() as conn:
            assert_type(await conn.tenant(), str)


async def a_pool_can_be_subclassed(dsn: str) -> None:
    """`async with` gives the subclass."""
    async with Pool(dsn, connection_class=Connection) as pool:
        assert_type(pool, Pool)
        assert_type(await pool.acquire(), Connection)


async def conninfo_and_kwargs_may_be_callables() -> None:
    """Plain or async, for rotated credentials."""

    def fresh() -> str:
        return "dbname=test"

    async def from_the_vault() -> str:
        return "dbname=test"

    async def options() -> dict[str, Any]:
        return {"autocommit": True}

    assert_type(AsyncConnectionPool(fresh), AsyncConnectionPool[Plain])
    assert_type(AsyncConnectionPool(from_the_vault, kwargs=options), AsyncConnectionPool[Plain])


async def callbacks_get_the_connection(dsn: str) -> None:
    """Of the pool's own class."""

    async def configure(conn: Connection) -> None:
        await conn.tenant()

    async def tell(pool: AsyncConnectionPool[Any]) -> None:
        assert_type(pool.name, str)

    AsyncConnectionPool(
        dsn, connection_class=Connection, configure=configure, reset=configure, check=configure
    )
    AsyncConnectionPool(dsn, reset="discard", reconnect_failed=tell)
    AsyncConnectionPool(dsn, check=AsyncConnectionPool.check_connection)


async def what_makes_no_sense_is_an_error(dsn: str) -> None:
    """Each of these ignores is needed, or mypy says so."""
    AsyncConnectionPool(dsn, reset="everything")  # type: ignore[arg-type]
    AsyncConnectionPool(dsn, min_size="4")  # type: ignore[arg-type]
    AsyncConnectionPool(dsn, max_sise=4)  # type: ignore[call-arg]
    AsyncConnectionPool(dsn, connection_class=int)  # type: ignore[type-var]
    await AsyncConnectionPool(dsn).release("conn")  # type: ignore[arg-type]


async def one_shots_and_reports(pool: AsyncConnectionPool) -> None:
    """Rows of one-shots are what a given row factory says, else Any."""
    assert_type(await pool.execute("SELECT 1"), str)
    assert_type(await pool.executemany("INSERT INTO t VALUES (%s)", [(1,)]), int)
    assert_type(await pool.fetchall("SELECT 1"), list[Any])
    assert_type(await pool.fetchall("SELECT 1", row_factory=scalar_row), list[Any])
    orders = await pool.fetchall("SELECT 1 AS id", row_factory=class_row(Order))
    assert_type(orders, list[Order])
    assert_type(await pool.fetchone("SELECT 1", row_factory=class_row(Order)), Order | None)
    assert_type(await pool.fetchone("SELECT 1"), Any | None)
    number: int = await pool.fetchval("SELECT 1")
    assert_type(number, int)

    async def work(conn: Plain) -> Order:
        cur = await conn.execute("SELECT 1")
        return Order(cur.rowcount)

    assert_type(await pool.run_transaction(work, attempts=3, isolation="serializable"), Order)
    async with pool.transaction(read_only=True, settings={"app.tenant": 7}, role="web") as conn:
        assert_type(conn, Plain)
    assert_type(await pool.health(timeout=1), HealthReport)
    assert_type(pool.stats(), PoolStats)
    assert_type(pool.get_stats(), dict[str, int])
    assert_type(pool.explain(), Explanation)
    waiting: Awaitable[None] = pool.open(wait=True, timeout=5)
    await waiting
    try:
        await pool.acquire(timeout=0)
    except PoolTimeout as error:
        assert_type(error.longest_lease, float)


async def advice_is_numbers(pool: AsyncConnectionPool) -> None:
    """A number that may be unknown may be None."""
    advice = await pool.advise(workers=4, p99_wait=0.01)
    assert_type(advice, Advice)
    assert_type(advice.recommended, int | None)
    assert_type(advice.expected[0].p99_wait, float)


def an_engine_takes_a_pool_of_any_connections(
    pool: AsyncConnectionPool, another: AsyncConnectionPool[AsyncConnection[DictRow]]
) -> None:
    """SQLAlchemy's own type of engine."""
    assert_type(create_async_engine(pool, echo=True), AsyncEngine)
    assert_type(create_async_engine(another), AsyncEngine)


async def a_handler_of_fastapi(
    pool: Pooled,
    conn: ConnectionDep,
    block: Transaction,
    request: RequestTransaction,
    reports: Reports,
) -> None:
    """Its dependencies are what they are without FastAPI."""
    assert_type(pool, AsyncConnectionPool[Plain])
    assert_type(conn, Plain)
    assert_type(block, Plain)
    assert_type(request, Plain)
    assert_type(reports, Connection)


async def tenant(connection: HTTPConnection) -> str | None:
    """The flow of a request."""
    return connection.headers.get("x-tenant")


async def an_app_is_given_its_pools(dsn: str) -> None:
    """A pool or what makes it, with connections of any class."""

    def make() -> Pool:
        return Pool(dsn, connection_class=Connection)

    Starlette(
        lifespan=lifespan(AsyncConnectionPool(dsn), reports=make),
        routes=[health_route(), readiness_route("/ready", "pool", "reports")],
        exception_handlers=busy(),
        middleware=[Middleware(CancelOnDisconnect), Middleware(TransactionPerRequest, "pool", 400)],
    )
    api = FastAPI(lifespan=lifespan(make, wait=True), exception_handlers=busy(retry_after=2))
    api.add_middleware(RequestLimits, 5, header="X-Request-Timeout", flow=tenant)
    api.add_middleware(RequestLimits, seconds=lambda request: None, priority=3)
    api.add_middleware(RequestLimits, "5")  # type: ignore[arg-type]
    web.Application(middlewares=[request_limits(lambda request: 0.5, priority=lambda request: 1)])
    web.Application().cleanup_ctx.append(pool_context(make))
    lifespan(dsn)  # type: ignore[arg-type]


async def a_pool_whose_work_is_undone(dsn: str) -> None:
    """A rollback pool has the type of the pool that it replaces."""
    async with rollback_pool(dsn, patience=1) as pool:
        assert_type(pool, AsyncConnectionPool[Plain])
    async with rollback_pool(Pool(dsn, connection_class=Connection)) as mine:
        assert_type(mine, AsyncConnectionPool[Connection])


async def cluster() -> None:
    """A cluster's pools have the types of a pool."""
    async with Cluster("host=db1,db2", min_size=1, max_lag=5.0) as plain:
        async with plain.write.connection() as conn:
            assert_type(conn, Plain)
        async with plain.read.connection(after=None) as conn:
            assert_type(conn, Plain)
        assert_type(await plain.read.fetchval("SELECT 1", retry_elsewhere=True), Any)
        assert_type(await plain.read.fetchone("SELECT 1"), Any | None)
        assert_type(
            await plain.read.fetchall("SELECT 1", row_factory=dict_row), list[dict[str, Any]]
        )
        assert_type(
            await plain.read.fetchone("SELECT 1", row_factory=class_row(Order)), Order | None
        )
        async with plain.read.cursor(row_factory=scalar_row) as cur:
            assert_type(cur, AsyncCursor[Any])
        assert_type(
            [host.role for host in plain.hosts()], list[Literal["primary", "standby"] | None]
        )
    own = Cluster("host=db1,db2", connection_class=Connection)
    async with own.read.transaction(read_only=True) as mine, own.write.transaction() as written:
        assert_type(await mine.tenant(), str)
        assert_type(await written.tenant(), str)
    conn_ = await own.read.acquire(timeout=1.0)
    assert_type(conn_, Connection)
    await own.read.release(conn_)

    async def work(conn: Connection) -> int:
        return 1

    assert_type(await own.read.run_transaction(work), int)


def fleets() -> None:
    """A fleet is a budget."""
    fleet = Fleet("shop", reserve=3, weight=0.5)
    AsyncConnectionPool("dbname=app", max_size=20, budget=fleet)
    assert_type(fleet.stats().limit, int | None)
    assert_type(fleet.stats().free, int)


async def tokens() -> None:
    """Tokens are str, for reads, contexts, middleware and engines."""
    cluster = Cluster("host=db1,db2", connection_class=Connection)
    token = await cluster.write.token(timeout=1.0)
    assert_type(token, str)
    async with cluster.read.connection(1.0, after=token) as conn:
        assert_type(await conn.tenant(), str)
    with cluster.own_writes(after=token) as own:
        assert_type(own, OwnWrites)
        assert_type(own.token, str | None)
        assert_type(await own.settle(), str | None)
        async with cluster.write.connection() as written, cluster.write.transaction() as again:
            assert_type(await written.tenant(), str)
            assert_type(await again.tenant(), str)
        assert_type(await cluster.write.fetchall("SELECT 1", row_factory=scalar_row), list[Any])
    with cluster.own_writes(5):  # type: ignore[arg-type]
        pass

    def make() -> Cluster[Connection]:
        return cluster

    Starlette(lifespan=lifespan(cluster=make), middleware=[Middleware(ReadOwnWrites, cookie="t")])
    Starlette(lifespan=lifespan(AsyncConnectionPool(open=False), cluster=cluster))
    FastAPI().add_middleware(ReadOwnWrites, cluster, header="X-Token", max_age=60)
    FastAPI().add_middleware(ReadOwnWrites, 5)  # type: ignore[arg-type]
    web.Application(middlewares=[read_own_writes(secure=True)])
    web.Application().cleanup_ctx.append(cluster_context(cluster, wait=True))
    write, read = engines(cluster, echo=True)
    assert_type((write, read), tuple[AsyncEngine, AsyncEngine])


def misspelt() -> None:
    """A name that the package does not have is an error, though some are imported later."""
    asyncpool.PoolTimout  # type: ignore[attr-defined]  # noqa: B018
