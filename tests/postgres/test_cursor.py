"""The cursor of `asyncpool.Connection`: the results of psycopg's own, by a faster path."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.adapt import Dumper, Loader
from psycopg.rows import dict_row, scalar_row

from asyncpool import AsyncConnectionPool, Connection

from ._tools import BOTH_LOOPS, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPS = BOTH_LOOPS

Conn = psycopg.AsyncConnection[Any]


class Shout(Loader):
    """A loader that returns text in upper case."""

    def load(self, data: Any) -> str:
        """See `Loader`."""
        return bytes(data).decode().upper()


class Whisper(Dumper):
    """A dumper that writes text in lower case."""

    def dump(self, obj: str) -> bytes:
        """See `Dumper`."""
        return obj.lower().encode()


async def rows_and_facts(conn: Conn) -> Any:
    cur = await conn.execute("SELECT n, 'x' AS x FROM generate_series(1, 3) n")
    names = [column.name for column in cur.description or ()]
    facts = (cur.rowcount, cur.statusmessage, names, cur.rownumber, cur.arraysize, cur.format)
    return facts, await cur.fetchone(), cur.rownumber, await cur.fetchall(), cur.connection is conn


async def no_rows(conn: Conn) -> Any:
    cur = await conn.execute("SET work_mem = '1MB'")
    return cur.rowcount, cur.statusmessage, await cur.fetchone()


async def binary_results(conn: Conn) -> Any:
    cur = await conn.execute("SELECT 1.5::float8", binary=True)
    first = cur.pgresult.fformat(0) if cur.pgresult else None
    await cur.execute("SELECT 2.5::float8")
    return first, cur.format, cur.pgresult and cur.pgresult.fformat(0), await cur.fetchone()


async def parameters(conn: Conn) -> Any:
    one = await conn.execute("SELECT %s::int, %b::int", [1, 2])
    two = await conn.execute("SELECT %(a)s::text", {"a": "x"})
    three = await conn.execute(sql.SQL("SELECT {}").format(sql.Literal("y")))
    four = await conn.execute(b"SELECT 'z'")
    return [await cur.fetchall() for cur in (one, two, three, four)]


async def several_statements(conn: Conn) -> Any:
    cur = await conn.execute("SELECT 1; SELECT 2")
    first = await cur.fetchall()
    return first, cur.nextset(), await cur.fetchall(), cur.nextset()


async def row_factories(conn: Conn) -> Any:
    conn.row_factory = dict_row
    cur = await conn.execute("SELECT 1 AS n")
    one = await cur.fetchone()
    cur.row_factory = scalar_row
    await cur.execute("SELECT 2 AS n")
    return one, await cur.fetchone(), cur.row_factory is scalar_row


async def prepared_statements(conn: Conn) -> Any:
    query = "SELECT count(*) FROM pg_prepared_statements"
    counts = [await (await conn.execute(query)).fetchone() for _ in range(7)]
    never = await conn.execute("SELECT %s::int", [1], prepare=False)
    at_once = await conn.execute("SELECT %s::text", ["x"], prepare=True)
    return counts, await never.fetchone(), await at_once.fetchone(), len(conn._prepared._names)


async def rows_one_by_one(conn: Conn) -> Any:
    cur = await conn.execute("SELECT generate_series(1, 4)")
    seen = [await cur.fetchone(), cur.rownumber, await cur.fetchall(), cur.rownumber]
    seen += [await cur.fetchone(), await cur.fetchall(), cur.rownumber]
    await cur.scroll(1, "absolute")
    seen += [await cur.fetchone(), await cur.fetchmany(1), await cur.fetchall()]
    cur = await conn.execute("SELECT WHERE false")
    return seen, await cur.fetchone(), await cur.fetchall()


async def rows_that_cannot_be_loaded(conn: Conn) -> Any:
    cur = await conn.execute("SELECT generate_series(1, 2)")
    first = await cur.fetchone()
    cur.row_factory = lambda _: _refuse
    seen = []
    for fetch in (cur.fetchone, cur.fetchall):
        try:
            await fetch()
        except ZeroDivisionError as error:
            seen.append((repr(error), cur.rownumber))
    return first, seen


def _refuse(_values: Any) -> Any:
    raise ZeroDivisionError


async def loaders_of_the_connection(conn: Conn) -> Any:
    conn.adapters.register_loader("text", Shout)
    cur = await conn.execute("SELECT 'a'::text")
    return await cur.fetchone()


async def a_loader_of_the_cursor(conn: Conn) -> Any:
    cur = await conn.execute("SELECT 'a'::text")
    cur.adapters.register_loader("text", Shout)
    first = await cur.fetchone()
    await cur.execute("SELECT 'b'::text")
    other = await conn.execute("SELECT 'c'::text")
    return first, await cur.fetchone(), await other.fetchone()


async def a_dumper_of_the_cursor(conn: Conn) -> Any:
    cur = await conn.execute("SELECT %s::text", ["A"])
    first = await cur.fetchone()
    cur.adapters.register_dumper(str, Whisper)
    await cur.execute("SELECT %s::text, 1", ["B"])
    other = await conn.execute("SELECT %s::text", ["C"])
    return first, await cur.fetchone(), await other.fetchone()


async def adapters_of_one_cursor_are_its_own(conn: Conn) -> Any:
    cur = await conn.execute("SELECT 1")
    return cur.adapters is cur.adapters, cur.adapters is conn.adapters


async def the_same_cursor_for_all_that_a_cursor_does(conn: Conn) -> Any:
    cur = await conn.execute("CREATE TEMP TABLE t (n int)")
    await cur.executemany("INSERT INTO t VALUES (%s)", [(n,) for n in range(3)])
    count = cur.rowcount
    async with cur.copy("COPY t FROM STDIN") as copy:
        await copy.write_row((3,))
    streamed = [row async for row in cur.stream("SELECT n FROM t ORDER BY n")]
    await cur.execute("SELECT n FROM t ORDER BY n")
    await cur.scroll(2)
    many = await cur.fetchmany(1)
    return count, streamed, many, [row async for row in cur]


async def a_transaction(conn: Conn) -> Any:
    await conn.set_autocommit(False)
    await conn.execute("CREATE TEMP TABLE t (n int)")
    status = conn.info.transaction_status
    await conn.rollback()
    return status, await (await conn.execute("SELECT to_regclass('t')")).fetchone()


async def a_pipeline(conn: Conn) -> Any:
    async with conn.pipeline():
        cursors = [await conn.execute("SELECT %s::int", [n]) for n in range(3)]
    return [await cur.fetchone() for cur in cursors]


async def many_tasks_on_one_connection(conn: Conn) -> Any:
    cursors = await asyncio.gather(*(conn.execute("SELECT %s::int", [n]) for n in range(20)))
    return [await cur.fetchone() for cur in cursors]


async def a_failing_statement(conn: Conn) -> Any:
    with suppress(psycopg.errors.DivisionByZero):
        await conn.execute("SELECT 1/0")
    return await (await conn.execute("SELECT 1")).fetchone()


async def division_by_zero(conn: Conn) -> Any:
    await conn.execute("SELECT 1/0")


async def too_few_parameters(conn: Conn) -> Any:
    await conn.execute("SELECT %s, %s", [1])


async def a_parameter_that_cannot_be_dumped(conn: Conn) -> Any:
    await conn.execute("SELECT %s", [object()])


async def a_copy_by_execute(conn: Conn) -> Any:
    await conn.execute("COPY (SELECT 1) TO STDOUT")


async def one_row_of_a_closed_cursor(conn: Conn) -> Any:
    cur = await conn.execute("SELECT 1")
    await cur.close()
    await cur.fetchone()


async def all_rows_of_a_closed_cursor(conn: Conn) -> Any:
    cur = await conn.execute("SELECT 1")
    await cur.close()
    await cur.fetchall()


async def a_closed_cursor(conn: Conn) -> Any:
    cur = await conn.execute("SELECT 1")
    await cur.close()
    await cur.execute("SELECT 2")


async def a_closed_connection(conn: Conn) -> Any:
    await conn.close()
    work = conn.execute("SELECT 1")  # not an error yet
    await work


async def a_connection_whose_backend_is_gone(conn: Conn) -> Any:
    await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


SCENES = [
    rows_and_facts,
    binary_results,
    parameters,
    several_statements,
    row_factories,
    rows_one_by_one,
    rows_that_cannot_be_loaded,
    prepared_statements,
    loaders_of_the_connection,
    a_loader_of_the_cursor,
    a_dumper_of_the_cursor,
    adapters_of_one_cursor_are_its_own,
    the_same_cursor_for_all_that_a_cursor_does,
    a_transaction,
    a_pipeline,
    many_tasks_on_one_connection,
    a_failing_statement,
]
FAILURES = [
    no_rows,
    division_by_zero,
    too_few_parameters,
    a_parameter_that_cannot_be_dumped,
    a_copy_by_execute,
    one_row_of_a_closed_cursor,
    all_rows_of_a_closed_cursor,
    a_closed_cursor,
    a_closed_connection,
    a_connection_whose_backend_is_gone,
]


async def outcome_of(scene: Callable[[Conn], Awaitable[Any]], conn: Conn) -> Any:
    """Return the scene's result, or its error."""
    try:
        return await in_time(scene(conn))
    except Exception as error:  # noqa: BLE001 - it is the outcome
        return type(error), str(error), type(error.__cause__)
    finally:
        await conn.close()


@pytest.mark.parametrize("scene", SCENES + FAILURES)
async def test_it_does_what_psycopgs_does(
    dsn: str, scene: Callable[[Conn], Awaitable[Any]]
) -> None:
    """Results, attributes and errors are equal."""
    theirs, ours = [
        await outcome_of(scene, await kind.connect(dsn, autocommit=True))
        for kind in (psycopg.AsyncConnection, Connection)
    ]
    assert ours == theirs
    assert (type(ours) is tuple and isinstance(ours[0], type)) == (scene in FAILURES)


@needs_internals
async def test_an_error_has_no_traceback_of_psycopgs_insides(conn: Connection[Any]) -> None:
    """The traceback ends at the call; with psycopg it ends in `execute`."""
    with pytest.raises(psycopg.errors.DivisionByZero) as error:
        await conn.execute("SELECT 1/0")
    assert len(error.traceback) == 1


async def test_a_cursor_factory_of_the_users_own_makes_the_cursor(dsn: str) -> None:
    """The factory is passed to connect or set later."""
    async with await Connection.connect(dsn, cursor_factory=psycopg.AsyncClientCursor) as conn:
        assert type(await conn.execute("SELECT %s", ["x"])) is psycopg.AsyncClientCursor
        conn.cursor_factory = psycopg.AsyncRawCursor
        cur = await conn.execute("SELECT $1::text", ["x"])
        assert type(cur) is psycopg.AsyncRawCursor
        assert await cur.fetchone() == ("x",)


@pytest.mark.parametrize("name", ["cursor", "wait"])
async def test_what_a_derived_class_overrides_is_called(dsn: str, name: str) -> None:
    """The fast path does not bypass an overridden method."""
    calls = 0
    inherited = getattr(Connection, name)

    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return inherited(self, *args, **kwargs)

    kind = type("Own", (Connection,), {name: own})
    async with (
        AsyncConnectionPool(
            dsn, min_size=1, connection_class=kind, kwargs={"autocommit": True}
        ) as pool,
        pool.connection() as conn,
    ):
        before = calls
        await conn.execute("SELECT 1")
        assert calls == before + 1


async def test_a_statement_cancelled_while_it_waits_for_the_connection_has_no_effect(
    conn: Connection[Any],
) -> None:
    """A task cancelled while it waits for the lock has no effect; the next waiter gets the lock."""
    first = asyncio.create_task(conn.execute("SELECT 1 FROM pg_sleep(0.05)"))
    await asyncio.sleep(0)
    leaving = asyncio.create_task(conn.execute("SELECT 2"))
    staying = asyncio.create_task(conn.execute("SELECT 3"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await (await in_time(first)).fetchone() == (1,)
    assert await (await in_time(staying)).fetchone() == (3,)
    assert leaving.cancelled()
    assert not conn.lock.locked()
