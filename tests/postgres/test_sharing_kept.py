"""Adapters, context variables, overridden methods and wrappers work as in a block."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import wrapt
from psycopg import sql
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.types.json import JsonbDumper

from asyncpool import AsyncConnectionPool, Connection
from tests._tools import few

from ._sharing import LEFT, WAYS, all_leased, all_waiting, leave
from ._tools import BOTH_LOOPS, at_rest, in_time, needs_internals

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext, Buffer

pytestmark = needs_internals

LOOPS = BOTH_LOOPS

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class JsonOfDict(JsonbDumper):
    """Dumps a dict as jsonb."""


async def with_dicts(conn: psycopg.AsyncConnection[Any]) -> None:
    """A `configure` that registers the dumper of dicts."""
    conn.adapters.register_dumper(dict, JsonOfDict)


LITERAL = sql.SQL("SELECT {}").format(sql.Literal({"a": 1}))


@pytest.mark.parametrize("how", ["configure", "context"])
async def test_a_literal_is_written_by_the_adapters_of_the_connection(dsn: str, how: str) -> None:
    """The adapters are registered by `configure` or by the connection's `context`."""
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_dumper(dict, JsonOfDict)
    options: dict[str, Any] = {"configure": with_dicts}
    if how == "context":
        options = {"kwargs": {"context": SimpleNamespace(adapters=adapters, connection=None)}}
    async with AsyncConnectionPool(dsn, min_size=1, **options) as pool:
        async with pool.connection() as conn:
            cur = await conn.execute(LITERAL)
            row = await cur.fetchone()
        assert row == ({"a": 1},)
        for _ in range(3):
            assert await pool.fetchone(LITERAL) == row
            assert await pool.fetchval("SELECT %s", [{"a": 1}]) == {"a": 1}
            assert await pool.execute(LITERAL) == "SELECT 1"
            assert await pool.fetchall(LITERAL) == [row]
        many = await asyncio.gather(*(pool.fetchval(LITERAL) for _ in range(20)))
        assert many == [{"a": 1}] * 20
        assert await pool.batch([LITERAL]) == [[row]]


class Current(sql.Composable):
    """A part of a query that is written as the current tenant."""

    def __init__(self) -> None:
        super().__init__(None)

    def as_bytes(self, context: AdaptContext | None = None) -> bytes:
        return sql.Literal(tenant.get()).as_bytes(context)


class Who:
    """A value that is dumped as the current tenant."""


class WhoDumper(Dumper):
    """Dumps the tenant of the context in which it is called."""

    oid = psycopg.postgres.types["text"].oid

    def dump(self, obj: Who) -> Buffer:
        return tenant.get().encode()


async def with_who(conn: psycopg.AsyncConnection[Any]) -> None:
    """A `configure` that registers the dumper of tenants."""
    conn.adapters.register_dumper(Who, WhoDumper)


CONTEXTUAL: dict[str, Callable[[AsyncConnectionPool[Any]], Any]] = {
    "composable": lambda pool: pool.fetchval(sql.SQL("SELECT {}").format(Current())),
    "dumper": lambda pool: pool.fetchval("SELECT %s", [Who()]),
    "write": lambda pool: pool.fetchval("SELECT set_config('app.t', %s, true)", [Who()]),
    "literal": lambda pool: pool.fetchval(sql.SQL("SELECT {}").format(sql.Literal(Who()))),
}


@pytest.mark.parametrize("what", CONTEXTUAL)
@pytest.mark.parametrize("queued", [False, True])
async def test_values_are_written_in_the_context_of_the_caller(
    dsn: str, what: str, queued: bool
) -> None:
    """Also if the one-shot waits for a connection first."""
    async with AsyncConnectionPool(dsn, min_size=2, configure=with_who) as pool:

        async def shoot(name: str) -> None:
            tenant.set(name)
            assert await CONTEXTUAL[what](pool) == name

        names = [f"tenant {n}" for n in range(12)]
        await shoot("the first one")
        if queued:
            async with all_leased(pool):
                tasks = [asyncio.create_task(shoot(name)) for name in names]
                await all_waiting(pool, len(names))
        else:
            tasks = [asyncio.create_task(shoot(name)) for name in names]
        await in_time(asyncio.gather(*tasks))


noted: list[str] = []
"""The statements that the overrides of one test have seen."""


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    noted.clear()


def note(query: Any) -> None:
    """Record that an override has seen a statement."""
    text = query.decode() if isinstance(query, bytes) else str(query)
    noted.append(text)


class Observed(Connection[Any]):
    """A connection class that overrides `execute`."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Record the statement."""
        note(query)
        return await super().execute(query, *args, **kwargs)


class ObservedCursor(psycopg.AsyncCursor[Any]):
    """A cursor class that overrides `execute` and `executemany`."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Record the statement."""
        note(query)
        return await super().execute(query, *args, **kwargs)

    async def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        """Record the statement."""
        note(query)
        await super().executemany(query, *args, **kwargs)


async def with_cursors(conn: psycopg.AsyncConnection[Any]) -> None:
    """A `configure` that gives connections another class of cursors."""
    conn.cursor_factory = ObservedCursor


class TracedCursor(wrapt.ObjectProxy[Any]):
    """A tracer's wrapper around a cursor."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Record the statement."""
        note(query)
        await self.__wrapped__.execute(query, *args, **kwargs)
        return self

    async def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        """Record the statement."""
        note(query)
        await self.__wrapped__.executemany(query, *args, **kwargs)


class TracedCursors(wrapt.ObjectProxy[Any]):
    """The wrapper of a tracer that sees only the statements of a cursor, as elastic-apm's."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a traced cursor."""
        return TracedCursor(self.__wrapped__.cursor(*args, **kwargs))


class Traced(TracedCursors):
    """A tracer's wrapper around a connection."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute through a traced cursor, as tracers do."""
        binary = kwargs.pop("binary", False)
        return await self.cursor(binary=binary).execute(query, *args, **kwargs)


class Wrapped(Connection[Any]):
    """A connection class whose `connect` returns a wrapper, as a tracer patches it."""

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Any:
        """Connect and wrap."""
        return Traced(await super().connect(*args, **kwargs))


class WrappedCursors(Connection[Any]):
    """A connection class whose `connect` returns a wrapper that has no `execute`."""

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Any:
        """Connect and wrap."""
        return TracedCursors(await super().connect(*args, **kwargs))


SINGLE = {
    "execute": lambda pool, query: pool.execute(query),
    "fetchall": lambda pool, query: pool.fetchall(query),
    "fetchone": lambda pool, query: pool.fetchone(query),
    "fetchval": lambda pool, query: pool.fetchval(query),
}


@pytest.mark.parametrize("how", ["connection", "cursor", "wrapper", "cursors only"])
@pytest.mark.parametrize("shot", SINGLE)
async def test_what_was_overridden_sees_every_one_shot(dsn: str, how: str, shot: str) -> None:
    """Each one-shot is seen once, also if many run at the same time."""
    options: dict[str, dict[str, Any]] = {
        "connection": {"connection_class": Observed},
        "cursor": {"configure": with_cursors},
        "wrapper": {"connection_class": Wrapped},
        "cursors only": {"connection_class": WrappedCursors},
    }
    async with AsyncConnectionPool(dsn, min_size=2, **options[how]) as pool:
        queries = [f"SELECT {n} AS x" for n in range(10)]
        for query in queries:
            await SINGLE[shot](pool, query)
        await in_time(asyncio.gather(*(SINGLE[shot](pool, query) for query in queries)))
        assert sorted(query for query in noted if query in queries) == sorted(queries * 2)
        assert (await at_rest(pool)).size == 2


@pytest.mark.parametrize("how", ["cursor", "wrapper", "cursors only"])
async def test_what_was_overridden_sees_several_sets_of_values_and_batches(
    dsn: str, table: str, how: str
) -> None:
    """`executemany` and `batch` are seen, without the BEGIN and COMMIT that the pool adds."""
    options: dict[str, dict[str, Any]] = {
        "cursor": {"configure": with_cursors},
        "wrapper": {"connection_class": Wrapped},
        "cursors only": {"connection_class": WrappedCursors},
    }
    insert = f"INSERT INTO {table} VALUES (%s)"
    async with AsyncConnectionPool(dsn, min_size=1, **options[how]) as pool:
        assert await pool.executemany(insert, [(1,), (2,)]) == 2
        assert insert in noted
        assert await pool.batch(["SELECT 1", (insert, [3])]) == [[(1,)], "INSERT 0 1"]
        assert "SELECT 1" in noted
        assert noted.count(insert) >= 2
        assert not {"BEGIN", "COMMIT"} & set(noted)
        assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 3


async def test_a_connection_that_a_tracer_has_patched_works_in_blocks_and_one_shots(
    dsn: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracer patches psycopg's own `connect`; its wrapper sees every statement."""
    connect = psycopg.AsyncConnection.connect.__func__  # type: ignore[attr-defined]

    async def patched(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return Traced(await connect(cls, *args, **kwargs))

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", classmethod(patched))
    insert = f"INSERT INTO {table} VALUES (1)"
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        async with pool.connection() as conn:
            await conn.execute(insert.encode())
        for _ in range(3):
            assert await pool.execute(insert) == "INSERT 0 1"
        rows = [pool.fetchval(f"SELECT count(*) FROM {table}") for _ in range(10)]
        assert await in_time(asyncio.gather(*rows)) == [4] * 10
        assert noted.count(insert) == 4
        assert noted.count(f"SELECT count(*) FROM {table}") == 10


async def test_the_value_of_a_row_without_columns_is_none(dsn: str) -> None:
    """PostgreSQL allows a SELECT of nothing."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for query in ("SELECT", "SELECT FROM pg_class LIMIT 1", "SELECT WHERE false"):
            assert await pool.fetchval(query) is None
        assert await pool.fetchone("SELECT") == ()
        assert await pool.fetchall("SELECT") == [()]
        async with pool.session():
            assert await pool.fetchval("SELECT") is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("call", ["batch", "executemany"])
async def test_what_was_cut_short_leaves_no_statement_that_only_seems_prepared(
    dsn: str, table: str, call: str, way: str
) -> None:
    """psycopg's map of prepared statements holds only those that the server has prepared."""
    insert = f"INSERT INTO {table} SELECT %s"
    sleeping = f"INSERT INTO {table} SELECT %s FROM pg_sleep(60)"
    kwargs = {"prepare_threshold": 0}
    async with AsyncConnectionPool(dsn, min_size=1, kwargs=kwargs) as pool:
        shot: Callable[..., Any] = partial(pool.batch, [(sleeping, [1]), (insert, [2])])
        if call == "executemany":
            shot = partial(pool.executemany, sleeping, [(1,), (2,)])
        assert await in_time(leave(way, shot)) == LEFT
        for _ in range(2):
            async with pool.connection() as conn:
                await conn.execute(insert.encode(), [3])
                await conn.execute(sleeping.replace("(60)", "(0)").encode(), [4])
        assert await pool.execute(insert, [5]) == "INSERT 0 1"
        rows = await pool.fetchall(f"SELECT x FROM {table} ORDER BY x")
        assert rows == [(3,), (3,), (4,), (4,), (5,)]
        assert (await at_rest(pool)).connects == 1


CALLS: dict[str, Callable[..., Any]] = {
    "execute": lambda pool, query, **limit: pool.execute(query, [-1], **limit),
    "executemany": lambda pool, query, **limit: pool.executemany(query, [(-1,), (-2,)], **limit),
    "batch": lambda pool, query, **limit: pool.batch([(query, [-1]), (query, [-2])], **limit),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pipeline", few([True, False]))
@pytest.mark.exhaustive
async def test_a_preparation_that_was_cancelled_leaves_a_usable_statement(
    dsn: str, table: str, call: str, way: str, pipeline: bool
) -> None:
    """The sixth call prepares the statement and waits for a lock meanwhile."""
    insert = f"INSERT INTO {table} SELECT %s"
    async with AsyncConnectionPool(dsn, min_size=1, pipeline=pipeline) as pool:
        for number in range(5):
            await pool.execute(insert, [number])
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            await other.execute(f"LOCK TABLE {table}".encode())
            assert await in_time(leave(way, partial(CALLS[call], pool, insert))) == LEFT
            await at_rest(pool)
        for _ in range(2):
            assert await in_time(pool.execute(insert, [10])) == "INSERT 0 1"
            async with pool.connection() as conn:
                await conn.execute(insert.encode(), [11])
        assert await pool.fetchval(f"SELECT count(*) FROM {table} WHERE x < 0") == 0
