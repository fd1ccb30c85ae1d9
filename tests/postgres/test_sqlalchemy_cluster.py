"""SQLAlchemy's engines on a cluster: one for writes, one for reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import Select, TextClause, UpdateBase, event, func, select, text
from sqlalchemy.exc import DBAPIError, InternalError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from asyncpool import AsyncConnectionPool, Cluster
from asyncpool.integrations.sqlalchemy import Engines, engines

from ._pair import Pair, opened, started_pair


class Base(DeclarativeBase):
    """The base of the ORM's tables."""


class Note(Base):
    """A note."""

    __tablename__ = "sa_note"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The servers of this module, with the table."""
    with started_pair() as pair:
        pair.on_primary("CREATE TABLE sa_note (id serial PRIMARY KEY, body text NOT NULL)")
        yield pair


@pytest.fixture
async def cluster(pair: Pair) -> AsyncIterator[Cluster[Any]]:
    """A cluster, whose standby has replayed all."""
    pair.on_primary("TRUNCATE sa_note")
    pair.catch_up()
    async with opened(pair, token_wait=0.01) as cluster:
        yield cluster
        for pool in cluster.pools:
            assert pool.stats().leased == 0
        assert [host.under_way for host in cluster.hosts()] == [0, 0]


def routed(found: Engines) -> async_sessionmaker[AsyncSession]:
    """The recipe of docs/reading-own-writes.md."""

    class RoutedSession(Session):
        writes = False

        def get_bind(self, mapper: Any = None, *, clause: Any = None, **options: Any) -> Any:
            if options.get("bind") is not None:
                return options["bind"]
            locks = isinstance(clause, Select) and clause._for_update_arg is not None
            if self._flushing or locks or isinstance(clause, UpdateBase | TextClause):
                self.writes = True
            return (found.write if self.writes else found.read).sync_engine

    @event.listens_for(RoutedSession, "after_transaction_end")
    def reset(session: RoutedSession, transaction: Any) -> None:
        if transaction.parent is None:
            session.writes = False

    return async_sessionmaker(sync_session_class=RoutedSession)


async def is_standby(session: AsyncSession) -> bool:
    """Whether a read of the session is served by a standby."""
    return bool(await session.scalar(select(func.pg_is_in_recovery())))


async def test_each_engine_has_its_hosts(cluster: Cluster[Any]) -> None:
    """The one of reads has the standby, the other one the primary."""
    write, read = engines(cluster)
    for engine, expected in ((write, False), (read, True)):
        for _ in range(3):
            async with engine.connect() as conn:
                assert await conn.scalar(select(func.pg_is_in_recovery())) is expected


async def test_reads_are_read_only_on_the_primary_too(cluster: Cluster[Any]) -> None:
    """A write that is sent to the wrong engine fails wherever it goes."""
    read = engines(cluster, execution_options={"logging_token": "reads"}).read
    for host in [None, next(each.name for each in cluster.hosts() if each.role == "standby")]:
        if host is not None:
            await cluster.drain(host)
        async with read.connect() as conn:
            assert await conn.scalar(select(func.pg_is_in_recovery())) is (host is None)
            with pytest.raises(InternalError, match="read-only transaction"):
                await conn.execute(text("CREATE TABLE refused (x int)"))
    async with cluster.read.connection() as plain:
        assert plain.read_only is None
    await cluster.write.execute("CREATE TEMPORARY TABLE allowed (x int)")


async def test_a_session_chooses_its_engine(cluster: Cluster[Any]) -> None:
    """Reads go to a standby, until the transaction has written."""
    async with routed(engines(cluster))() as session:
        assert await is_standby(session)
        await session.rollback()
        session.add(Note(body="one"))
        await session.flush()
        assert not await is_standby(session)
        assert (await session.scalars(select(Note.body))).all() == ["one"]
        await session.commit()
        assert await is_standby(session)
        await session.rollback()
        await session.scalars(select(Note).with_for_update())
        assert not await is_standby(session)
        await session.rollback()
        await session.execute(text("SELECT 1"))
        assert not await is_standby(session)


async def test_a_session_reads_what_an_earlier_one_has_written(
    pair: Pair, cluster: Cluster[Any]
) -> None:
    """In a context of `own_writes()`, although the standby replays nothing."""
    make = routed(engines(cluster))
    with pair.paused():
        with cluster.own_writes() as own:
            async with make.begin() as session:
                session.add(Note(body="mine"))
            async with make() as session:
                assert (await session.scalars(select(Note.body))).all() == ["mine"]
        async with make() as session:
            assert (await session.scalars(select(Note.body))).all() == []
        with cluster.own_writes(after=own.token):
            async with make() as session:
                assert (await session.scalars(select(Note.body))).all() == ["mine"]


async def test_a_read_engine_has_connections_of_its_own_in_a_session_of_reads(
    cluster: Cluster[Any],
) -> None:
    """SQLAlchemy commits and rolls back whole transactions."""
    read = engines(cluster).read
    async with cluster.read.session() as ours:
        cur = await ours.execute("SELECT pg_backend_pid()")
        (pid,) = await cur.fetchone() or (0,)
        async with read.connect() as conn:
            assert await conn.scalar(select(func.pg_backend_pid())) != pid
        inner = await cluster.read.acquire()
        assert inner is ours
        await cluster.read.release(inner)


async def test_a_broken_connection_is_replaced(pair: Pair, cluster: Cluster[Any]) -> None:
    """It is returned to the pool of its host, which opens another one."""
    read = engines(cluster).read

    async def break_it() -> None:
        async with read.connect() as conn:
            pid = await conn.scalar(select(func.pg_backend_pid()))
            pair.on_standby(f"SELECT pg_terminate_backend({pid})")
            await conn.scalar(select(1))

    with pytest.raises(DBAPIError):
        await break_it()
    async with read.connect() as conn:
        assert await conn.scalar(select(1)) == 1


def test_engines_are_a_clusters() -> None:
    """A pool has one engine, by `create_async_engine`."""
    with pytest.raises(TypeError, match=r"must be an asyncpool\.Cluster"):
        engines(AsyncConnectionPool(open=False))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pool_size is not an option"):
        engines(Cluster(open=False), pool_size=5)
