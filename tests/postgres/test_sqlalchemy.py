"""SQLAlchemy's asynchronous engine on our pool."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import anyio
import psycopg
import pytest
import sqlalchemy.ext.asyncio
from psycopg.rows import dict_row
from sqlalchemy import ForeignKey, event, func, select, text
from sqlalchemy.dialects.postgresql import HSTORE, INET, JSONB
from sqlalchemy.exc import DisconnectionError, OperationalError, SAWarning
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.pool import NullPool

from asyncpool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from asyncpool.integrations.sqlalchemy import async_creator, create_async_engine
from tests._tools import few

from ._tools import (
    BOTH_LOOPS,
    LIMIT,
    Backends,
    Proxy,
    all_usable,
    at_rest,
    eventually,
    in_time,
    psycopg_version,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator

LOOPS = BOTH_LOOPS
Kind = Literal["cancel", "cancel twice", "scope", "timeout"]
KINDS: tuple[Kind, ...] = ("cancel", "cancel twice", "scope", "timeout")

with_close_returns = pytest.mark.skipif(
    psycopg_version < (3, 3), reason="psycopg before 3.3 does not ask a pool"
)


class Base(AsyncAttrs, DeclarativeBase):
    """The base of the ORM's tables."""


class Author(Base):
    """An author, with books."""

    __tablename__ = "sa_author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list[Book]] = relationship(back_populates="author")


class Book(Base):
    """A book."""

    __tablename__ = "sa_book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("sa_author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    """A pool of two connections; at the end of the test none is leased."""
    async with AsyncConnectionPool(dsn, min_size=2, name="under SQLAlchemy") as pool:
        yield pool
        await at_rest(pool)


@pytest.fixture
def engine(pool: AsyncConnectionPool) -> AsyncEngine:
    """An engine on the pool, which is never disposed."""
    return create_async_engine(pool)


@pytest.fixture
async def tables(engine: AsyncEngine) -> AsyncIterator[None]:
    """Create empty tables for the ORM."""
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    yield
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.drop_all)


async def pid_of(conn: Any) -> int:
    return int((await conn.execute(text("SELECT pg_backend_pid()"))).scalar())


async def psycopgs(conn: sqlalchemy.ext.asyncio.AsyncConnection) -> psycopg.AsyncConnection[Any]:
    """Return psycopg's connection inside SQLAlchemy's."""
    found: psycopg.AsyncConnection[Any] = (await conn.get_raw_connection()).driver_connection  # type: ignore[assignment]
    return found


async def test_a_block_leases_and_returns(pool: AsyncConnectionPool, engine: AsyncEngine) -> None:
    """Uncommitted work is rolled back, and the connection stays open."""
    await pool.execute("CREATE TABLE IF NOT EXISTS sa_block (x int)")
    async with engine.connect() as conn:
        await conn.execute(text("INSERT INTO sa_block VALUES (1)"))
        assert pool.stats().leased == 1
    assert pool.stats().leased == 0
    async with engine.begin() as conn:
        await conn.execute(text("INSERT INTO sa_block VALUES (:x)"), [{"x": 2}, {"x": 3}])
    assert await pool.fetchval("SELECT array_agg(x) FROM sa_block") == [2, 3]
    await pool.execute("DROP TABLE sa_block")
    assert pool.stats().connects == 2


async def test_what_is_done_once_a_connection_is_done_once(dsn: str) -> None:
    """The dialect initializes once an engine; then a SELECT in autocommit is one round trip."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=2) as pool:
        engine = create_async_engine(pool, isolation_level="AUTOCOMMIT")
        connects: list[Any] = []
        event.listen(engine.sync_engine, "connect", lambda *given: connects.append(given[0]))
        await pool.wait()
        async with engine.connect(), engine.connect():
            pass
        await at_rest(pool)
        before = proxy.turns
        for _ in range(4):  # the sixth would be prepared, in one more round trip
            async with engine.connect() as conn:
                await conn.execute(text("SELECT 1"))
        assert proxy.turns - before == 4
        assert len(connects) == 2


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE", "REPEATABLE READ"])
async def test_an_isolation_level_ends_with_its_lease(
    pool: AsyncConnectionPool, engine: AsyncEngine, level: str
) -> None:
    """Neither the next user of the engine nor a user of the pool gets it."""
    await pool.resize(1)
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level=level)
        await conn.execute(text("SELECT 1"))
        leased = await psycopgs(conn)
        assert leased.autocommit == (level == "AUTOCOMMIT")
        given = (await conn.execute(text("SHOW transaction_isolation"))).scalar()
        assert given == ("read committed" if level == "AUTOCOMMIT" else level.lower())
    async with engine.connect() as conn:
        assert await psycopgs(conn) is leased
        assert (await conn.get_isolation_level()) == "READ COMMITTED"
    async with pool.connection() as plain:
        assert plain is leased
        assert (plain.autocommit, plain.isolation_level) == (False, None)


async def test_an_engines_own_isolation_level_holds_at_each_lease(
    pool: AsyncConnectionPool,
) -> None:
    """This holds for several engines on one pool, on any connection."""
    levels = ["SERIALIZABLE", "AUTOCOMMIT", "REPEATABLE READ"]
    engines = [create_async_engine(pool, isolation_level=level) for level in levels]
    for _ in range(3):
        for engine, level in zip(engines, levels, strict=True):
            async with engine.connect() as one, engine.connect() as other:
                for conn in (one, other):
                    assert (await psycopgs(conn)).autocommit == (level == "AUTOCOMMIT")
                    if level != "AUTOCOMMIT":
                        assert await conn.get_isolation_level() == level
        async with pool.connection() as plain, pool.connection() as another:
            assert not plain.autocommit
            assert not another.autocommit
            assert plain.isolation_level is another.isolation_level is None


async def test_a_pool_with_other_settings_gets_its_connections_back_unchanged(dsn: str) -> None:
    """The pool uses autocommit and dict rows; SQLAlchemy still gets transactions and tuples."""
    keywords = {"autocommit": True, "row_factory": dict_row}
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(dsn, min_size=1, kwargs=keywords)
    async with pool:
        engine = create_async_engine(pool)
        for _ in range(2):
            async with engine.connect() as conn:
                await conn.execute(text("CREATE TABLE sa_gone (x int)"))
                assert (await conn.execute(text("SELECT 1, 2"))).one() == (1, 2)
                await conn.rollback()
            async with pool.connection() as plain:
                assert plain.autocommit
                row = await (await plain.execute("SELECT to_regclass('sa_gone') AS x")).fetchone()
                assert row == {"x": None}
        # A borrower that is cancelled in a transaction cannot restore the settings.
        with anyio.move_on_after(0.1):
            async with engine.connect() as conn:
                await conn.execute(text("SELECT pg_sleep(30)"))
        async with pool.connection() as plain:
            assert plain.autocommit
            assert plain.row_factory is dict_row


async def test_psycopgs_own_connections_serve_too(dsn: str) -> None:
    """psycopg's connections work without the socket watcher and the transport."""
    async with AsyncConnectionPool(
        dsn, min_size=2, connection_class=psycopg.AsyncConnection
    ) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            await conn.execution_options(isolation_level="AUTOCOMMIT")
            assert (await conn.execute(text("SELECT 1"))).scalar() == 1
        with anyio.move_on_after(0.1):
            async with engine.connect() as conn:
                await conn.execute(text("SELECT pg_sleep(30)"))
        await all_usable(pool)


async def test_sessions_add_refresh_and_load(engine: AsyncEngine, tables: None) -> None:
    """The ORM's usual operations work, among them a nested transaction."""
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with sessions() as session, session.begin():
        session.add(Author(name="Lem", books=[Book(title="Solaris"), Book(title="Eden")]))
    async with sessions() as session:
        author = (await session.scalars(select(Author))).one()
        assert {book.title for book in await author.awaitable_attrs.books} == {"Solaris", "Eden"}
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            async with session.begin_nested():
                session.add(Author(name="Lem"))
        session.add(Book(title="Fiasco", author_id=author.id))
        await session.commit()
        await session.refresh(author, ["books"])
        assert len(author.books) == 3
        author.name = "nobody"
        await session.flush()
        await session.rollback()
        await session.refresh(author)
        assert author.name == "Lem"


async def test_more_sessions_than_connections(
    pool: AsyncConnectionPool, engine: AsyncEngine, tables: None
) -> None:
    """Each session adds, commits or rolls back, and refreshes; exactly the commits persist."""
    sessions = async_sessionmaker(engine)

    async def work(number: int) -> bool:
        async with sessions() as session:
            author = Author(name=f"author {number}", books=[Book(title=f"of {number}")])
            session.add(author)
            await session.flush()
            if number % 3 == 0:
                await session.rollback()
                return False
            await session.commit()
            await session.refresh(author)
            assert author.name == f"author {number}"
            return True

    kept = await in_time(asyncio.gather(*(work(number) for number in range(60))), 60)
    async with AsyncSession(engine) as session:
        count = await session.scalar(select(func.count()).select_from(Author))
    assert count == sum(kept) == 40
    assert pool.stats().connects == 2


async def test_rows_are_streamed(pool: AsyncConnectionPool, engine: AsyncEngine) -> None:
    """A server-side cursor streams them, and ends with its block even if rows are left."""
    await pool.resize(1)
    for limit in (10, 10_000):
        async with engine.connect() as conn:
            seen = []
            async with conn.stream(
                text("SELECT generate_series(1, 1000)"), execution_options={"yield_per": 50}
            ) as result:
                async for (number,) in result:
                    seen.append(number)
                    if len(seen) == limit:
                        break
            assert seen == list(range(1, min(limit, 1000) + 1))
        await at_rest(pool)
    assert await pool.fetchval("SELECT count(*) FROM pg_cursors WHERE name <> ''") == 0


@contextmanager
def refused_in_a_storm() -> Iterator[None]:
    """Suppress the error of a request that could not be served in time."""
    try:
        yield
    except OperationalError as error:
        if not isinstance(error.orig, TooManyRequests):
            raise


async def stop(kind: Kind, work: Awaitable[None], pause: float) -> str:
    """Run work, stop it after `pause` seconds, and return how it ended."""
    if kind == "scope":
        with refused_in_a_storm(), anyio.move_on_after(pause) as scope:
            await work
        return "stopped" if scope.cancelled_caught else "done"
    if kind == "timeout":
        try:
            with refused_in_a_storm():
                async with asyncio.timeout(pause):
                    await work
        except TimeoutError:
            return "stopped"
        return "done"
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=pause)
    if task.cancel() and kind == "cancel twice":
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait({task})
    if task.cancelled():
        return "stopped"
    with refused_in_a_storm():
        task.result()
    return "done"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_query_that_is_cancelled_leaves_a_connection_that_serves(
    pool: AsyncConnectionPool, engine: AsyncEngine, backends: Backends, kind: Kind
) -> None:
    """The pool ends the query, rolls back and reuses it; SQLAlchemy alone would close it."""

    async def query() -> None:
        async with engine.connect() as conn:
            await conn.execute(text("SELECT pg_sleep(30)"))

    await pool.wait()
    async with engine.connect():
        pass
    for _ in range(5):
        assert await in_time(stop(kind, query(), 0.05)) == "stopped"
    await eventually(lambda: not backends.running("pg_sleep"))
    await all_usable(pool)
    stats = pool.stats()
    assert (stats.connects, stats.returns_bad) == (2, 0)


# SQLAlchemy does not close a server-side cursor that was cancelled, with its own pool either.
@pytest.mark.filterwarnings("ignore:.*ServerCursor.*was deleted while still open:ResourceWarning")
@pytest.mark.parametrize("kind", few(KINDS))
async def test_a_storm_of_cancellations_loses_nothing(
    dsn: str, backends: Backends, kind: Kind
) -> None:
    """Cancellations hit waiters, the first connect, queries, streams, commits and returns."""
    rng = random.Random(kind)
    async with AsyncConnectionPool(dsn, min_size=2, max_size=4) as pool:
        engine = create_async_engine(pool)

        async def plain() -> None:
            async with engine.connect() as conn:
                await conn.execute(text("SELECT pg_sleep(0.005)"))

        async def begun() -> None:
            async with engine.begin() as conn:
                await conn.execute(text("SELECT 1"))
                async with conn.begin_nested():
                    await conn.execute(text("SELECT 2"))

        async def autocommit() -> None:
            async with engine.connect() as conn:
                await conn.execution_options(isolation_level="AUTOCOMMIT")
                await conn.execute(text("SELECT 1"))

        async def session() -> None:
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT 1"))
                await session.commit()

        async def stream() -> None:
            query = text("SELECT generate_series(1, 300)")
            async with engine.connect() as conn, conn.stream(query) as rows:
                async for _ in rows:
                    await asyncio.sleep(0)

        async def work() -> Counter[str]:
            ends: Counter[str] = Counter()
            for _ in range(12):
                way = rng.choice([plain, begun, autocommit, session, stream])
                pause = rng.choice([0, 0.0001, 0.001, 0.005, 0.02, LIMIT])
                ends[await stop(kind, way(), pause)] += 1
            return ends

        ends = sum(await in_time(asyncio.gather(*(work() for _ in range(12))), 60), Counter())
        assert ends["stopped"] > 10
        assert ends["done"] > 5
        await at_rest(pool)
        assert len(backends.pids()) <= 4
        await all_usable(pool)
        async with pool.connection() as conn:
            assert (conn.autocommit, conn.isolation_level) == (False, None)
    gc.collect()


async def test_an_exhausted_pool_says_so(pool: AsyncConnectionPool, engine: AsyncEngine) -> None:
    """SQLAlchemy's OperationalError has the pool's error, with its numbers, as `orig`."""
    brief = create_async_engine(pool)
    async with pool.connection(), engine.connect():
        waiting = asyncio.create_task(pool.acquire())
        await eventually(lambda: pool.stats().waiting == 1)
        waiting.cancel()
        await asyncio.wait({waiting})
        pool.timeout = 0.05
        with pytest.raises(OperationalError, match=r"leased=2, waiting=1") as caught:
            await brief.connect()
    assert isinstance(caught.value.orig, PoolTimeout)
    assert caught.value.orig.timeout == 0.05
    assert pool.stats().requests_failed == 1


async def test_a_closed_pool_says_so(dsn: str) -> None:
    """This holds before and after the first lease."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            await conn.execute(text("SELECT 1"))
    with pytest.raises(OperationalError, match="is already closed") as caught:
        await engine.connect()
    assert isinstance(caught.value.orig, PoolClosed)


async def test_engines_and_plain_users_wait_in_one_queue(pool: AsyncConnectionPool) -> None:
    """The queue is FIFO for both."""
    engines = [create_async_engine(pool), create_async_engine(pool)]
    for engine in engines:
        async with engine.connect():
            pass
    await pool.resize(1)
    await eventually(lambda: pool.stats().size == 1)
    held = await pool.acquire()
    order: list[int] = []

    async def by_engine(number: int) -> None:
        async with engines[number % 2].connect():
            order.append(number)

    async def plainly(number: int) -> None:
        async with pool.connection():
            order.append(number)

    tasks = []
    for number in range(9):
        way = plainly if number % 3 == 2 else by_engine
        tasks.append(asyncio.create_task(way(number)))
        await eventually(lambda: pool.stats().waiting == len(tasks))
    await pool.release(held)
    await in_time(asyncio.gather(*tasks))
    assert order == list(range(9))


async def test_an_engine_takes_no_part_in_a_session(
    pool: AsyncConnectionPool, engine: AsyncEngine
) -> None:
    """The engine's COMMIT and ROLLBACK would end the session's transaction."""
    await pool.execute("CREATE TABLE sa_apart (x int)")
    with suppress(ZeroDivisionError):
        async with pool.session() as session:
            await session.execute("INSERT INTO sa_apart VALUES (1)")
            async with engine.begin() as conn:
                await conn.execute(text("INSERT INTO sa_apart VALUES (2)"))
            raise ZeroDivisionError
    async with pool.session() as session:
        await session.execute("INSERT INTO sa_apart VALUES (3)")
        async with engine.connect() as conn:
            await conn.execute(text("INSERT INTO sa_apart VALUES (4)"))
    assert await pool.fetchval("SELECT array_agg(x ORDER BY x) FROM sa_apart") == [2, 3]
    await pool.execute("DROP TABLE sa_apart")


async def test_dispose_closes_nothing_of_the_pool(
    pool: AsyncConnectionPool, engine: AsyncEngine
) -> None:
    """The pool and the engine still work, and listeners get no additional events."""
    async with engine.connect() as conn:
        pid = await pid_of(conn)
        await engine.dispose()
        assert await pid_of(conn) == pid
    for _ in range(3):
        async with engine.connect() as one, engine.connect() as other:
            assert pid in {await pid_of(one), await pid_of(other)}
            assert len((await psycopgs(one))._notice_handlers) == 1
        await engine.dispose()
    assert pool.stats().connects == 2
    assert "under SQLAlchemy" in engine.pool.status()


async def test_an_invalidated_connection_is_closed(
    pool: AsyncConnectionPool, engine: AsyncEngine, backends: Backends
) -> None:
    """The pool opens a replacement; after a soft invalidation it does so at the return."""
    for soft in (False, True):
        async with engine.connect() as conn:
            pid = await pid_of(conn)
            if soft:
                (await conn.get_raw_connection()).invalidate(soft=True)
            else:
                await conn.invalidate()
        await eventually(lambda gone=pid: gone not in backends.pids())  # type: ignore[misc]
        await all_usable(pool)
    assert pool.stats().connects == 4


async def test_one_broken_connection_does_not_invalidate_the_others(
    pool: AsyncConnectionPool, engine: AsyncEngine, backends: Backends
) -> None:
    """The user gets SQLAlchemy's error and may use another connection; the others stay open."""
    await pool.wait()
    async with engine.connect() as conn, engine.connect() as other:
        pid, kept = await pid_of(conn), await pid_of(other)
        backends.terminate(pid)
        with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
            await conn.execute(text("SELECT 1"))
        assert caught.value.connection_invalidated
        await conn.rollback()
        assert await pid_of(conn) not in (pid, kept)
        assert await pid_of(other) == kept
    assert kept in backends.pids()


async def test_a_connection_that_is_dropped_is_taken_back(
    pool: AsyncConnectionPool,
    engine: AsyncEngine,
    backends: Backends,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SQLAlchemy warns; the pool closes the connection and has its full capacity again."""
    await pool.wait()

    async def drop() -> int:
        return await pid_of(await engine.connect())

    async def drop_and_collect() -> int:
        pid = await asyncio.create_task(drop())
        gc.collect()
        return pid

    with pytest.warns(SAWarning, match="non-checked-in connection"):
        pid = await drop_and_collect()
    assert "non-checked-in connection" in caplog.text
    caplog.clear()
    await eventually(lambda: pid not in backends.pids())
    await all_usable(pool)


async def test_a_detached_connection_is_its_borrowers_until_it_is_closed(
    pool: AsyncConnectionPool, engine: AsyncEngine, backends: Backends
) -> None:
    """A detached connection counts as leased until it is closed."""
    async with engine.connect() as conn:
        await conn.run_sync(lambda conn: conn.detach())
        pid = await pid_of(conn)
        assert pool.stats().leased == 1
    await eventually(lambda: pid not in backends.pids())
    await all_usable(pool)


async def test_a_listener_may_refuse_a_connection(
    pool: AsyncConnectionPool, engine: AsyncEngine
) -> None:
    """After a DisconnectionError at "checkout" it is closed, and another one is leased."""
    await pool.wait()
    refused: list[object] = []

    def refuse(dbapi_connection: Any, *_: object) -> None:
        if not refused:
            refused.append(dbapi_connection.driver_connection)
            raise DisconnectionError("not this one")

    event.listen(engine.sync_engine, "checkout", refuse)
    async with engine.connect() as conn:
        assert await psycopgs(conn) is not refused[0]
    refused.clear()
    await all_usable(pool)
    assert pool.stats().connects == 3


async def test_a_listener_that_fails_costs_its_connection_only(
    pool: AsyncConnectionPool, engine: AsyncEngine
) -> None:
    """After an error at "connect", the next lease uses another connection."""
    calls: list[object] = []

    def fail(*given: object) -> None:
        calls.append(given)
        if len(calls) == 1:
            raise ValueError("of a listener")

    event.listen(engine.sync_engine, "connect", fail)
    with pytest.raises(ValueError, match="of a listener"):
        await engine.connect()
    async with engine.connect() as conn:
        await conn.execute(text("SELECT 1"))
    await all_usable(pool)


async def test_the_dialects_types_reach_every_connection(pool: AsyncConnectionPool) -> None:
    """The types are JSON with the engine's functions, addresses as text, and hstore if there."""
    with suppress(psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile):
        await pool.execute("CREATE EXTENSION IF NOT EXISTS hstore")
    has_hstore = await pool.fetchval("SELECT to_regtype('hstore') IS NOT NULL")
    engine = create_async_engine(
        pool,
        native_inet_types=False,
        json_serializer=lambda value: json.dumps([value]),
        json_deserializer=lambda data: ("loaded", json.loads(data)),
    )
    for _ in range(2):
        async with engine.connect() as one, engine.connect() as other:
            for conn in (one, other):
                literal = sqlalchemy.literal({"a": 1}, JSONB)
                assert await conn.scalar(select(literal)) == ("loaded", [{"a": 1}])
                address = sqlalchemy.cast(sqlalchemy.literal("10.0.0.1"), INET)
                assert await conn.scalar(select(address)) == "10.0.0.1"
                if has_hstore:
                    pairs = sqlalchemy.cast(sqlalchemy.literal({"a": "b"}, HSTORE), HSTORE)
                    assert await conn.scalar(select(pairs)) == {"a": "b"}
    if has_hstore:
        await pool.execute("DROP EXTENSION hstore")


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"pool_size": 5}, "min_size"),
        ({"max_overflow": 5}, "max_size"),
        ({"pool_timeout": 5}, "timeout"),
        ({"pool_recycle": 5}, "max_lifetime"),
        ({"pool_pre_ping": True}, "watches"),
        ({"pool_use_lifo": True}, "connection first"),
        ({"poolclass": NullPool}, "LeasePool"),
        ({"connect_args": {}}, "kwargs"),
    ],
)
def test_what_is_the_pools_is_refused(options: dict[str, Any], instead: str) -> None:
    """The error names the replacement."""
    with pytest.raises(TypeError, match=f"{next(iter(options))} is not .*{instead}"):
        create_async_engine(AsyncConnectionPool(""), **options)


def test_what_makes_no_sense_is_refused() -> None:
    """The cases are another driver's dialect and an argument that is no pool."""
    pool: AsyncConnectionPool = AsyncConnectionPool("")
    with pytest.raises(
        ValueError, match=r"must be postgresql\+psycopg://.*got postgresql\+asyncpg"
    ):
        create_async_engine(pool, "postgresql+asyncpg://")
    with pytest.raises(TypeError, match="AsyncConnectionPool, not 'postgresql"):
        create_async_engine("postgresql+psycopg://")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="close_returns=True"):
        async_creator(pool)


@with_close_returns
async def test_an_engine_with_a_null_pool_returns_what_it_closes(
    dsn: str, backends: Backends
) -> None:
    """`async_creator` on a pool without other users makes `NullPool` return connections."""
    async with AsyncConnectionPool(dsn, min_size=2, close_returns=True) as pool:
        engine = sqlalchemy.ext.asyncio.create_async_engine(
            "postgresql+psycopg://", async_creator=async_creator(pool), poolclass=NullPool
        )
        for level in ("AUTOCOMMIT", "SERIALIZABLE", None) * 3:
            async with engine.connect() as conn:
                if level is not None:
                    await conn.execution_options(isolation_level=level)
                await conn.execute(text("SELECT 1"))
                leased = await psycopgs(conn)
                assert leased.autocommit == (level == "AUTOCOMMIT")
                assert len(leased._notice_handlers) <= 2
        with anyio.move_on_after(0.05):
            async with engine.connect() as conn:
                await conn.execute(text("SELECT pg_sleep(30)"))
        await all_usable(pool)
        assert pool.stats().connects == 2
        async with engine.connect() as conn:
            backends.terminate(await pid_of(conn))
            with pytest.raises(sqlalchemy.exc.DBAPIError):
                await conn.execute(text("SELECT 1"))
        await engine.dispose()
        await all_usable(pool)
