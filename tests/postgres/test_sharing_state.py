"""One-shots share no session state and have the transaction of a block."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.errors import ForeignKeyViolation, ReadOnlySqlTransaction, UniqueViolation

from asyncpool import AsyncConnectionPool
from tests._tools import few

from ._sharing import created_function, started
from ._tools import BOTH_LOOPS, Backends, at_rest, backend_of, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = needs_internals

LOOPS = BOTH_LOOPS


async def clean(conn: psycopg.AsyncConnection[Any]) -> None:
    """Clear all session state, as an application's own `reset`."""
    await conn.set_autocommit(True)
    for statement in ("RESET ALL", "RESET ROLE", "UNLISTEN *", "DISCARD TEMP"):
        await conn.execute(statement)
    await conn.execute("SELECT pg_advisory_unlock_all()")
    await conn.set_autocommit(False)


RESETS: dict[str, Any] = {"session": "session", "discard": "discard", "callable": clean}

TRACES = {
    "setting": (
        "select set_config('app.tenant', '7', false)",
        "select coalesce(current_setting('app.tenant', true), '') <> ''",
    ),
    "search path": (
        "select set_config('search_path', 'elsewhere', false)",
        "select current_setting('search_path') = 'elsewhere'",
    ),
    "role": (
        "select set_config('role', 'pg_monitor', false)",
        "select current_user = 'pg_monitor'",
    ),
    "lock": (
        "select pg_advisory_lock(18)",
        "select count(*) > 0 from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    ),
    "row security": (
        "update pg_settings set setting = 'off' where name = 'row_security'",
        "select current_setting('row_security') = 'off'",
    ),
    "listening": ("select {listen}()", "select count(*) > 0 from pg_listening_channels()"),
    "setting in a function": (
        "select {setting}()",
        "select coalesce(current_setting('app.owner', true), '') <> ''",
    ),
    "temporary table": (
        "select 1 as x into temp left_behind",
        "select to_regclass('pg_temp.left_behind') is not null",
    ),
}


@pytest.fixture
def functions(backends: Backends) -> Iterator[dict[str, str]]:
    """The names of functions that change the session, by their effect."""
    listen = created_function(backends, "() RETURNS void", "EXECUTE 'LISTEN somewhere';")
    setting = created_function(backends, "() RETURNS void", "SET app.owner = '7';")
    with listen as first, setting as second:
        yield {"listen": first, "setting": second}


@pytest.mark.parametrize("reset", few(RESETS))
@pytest.mark.parametrize("trace", TRACES)
async def test_no_one_shot_meets_the_session_state_of_another(
    dsn: str, functions: dict[str, str], reset: str, trace: str
) -> None:
    """Neither the next one-shot on the connection nor a concurrent one sees it."""
    if trace == "temporary table" and reset == "session":
        reset = "discard"  # "session" keeps temporary tables, for blocks too
    leave, look = (text.format(**functions) for text in TRACES[trace])
    async with AsyncConnectionPool(dsn, min_size=1, max_size=2, reset=RESETS[reset]) as pool:
        for _ in range(3):
            await in_time(pool.fetchall(look))
            await in_time(pool.execute(leave))
            assert await in_time(pool.fetchval(look)) is False
        shots = [pool.fetchval(look) if n % 3 else pool.execute(leave) for n in range(30)]
        seen = await in_time(asyncio.gather(*shots))
        assert True not in seen
        async with pool.connection() as conn:
            cur = await conn.execute(look)
            assert await cur.fetchone() == (False,)


async def test_no_one_shot_meets_the_prepared_name_of_another(dsn: str) -> None:
    """A PREPARE in one one-shot does not conflict with the same PREPARE in the next."""
    async with AsyncConnectionPool(dsn, min_size=1, reset="discard") as pool:
        for _ in range(3):
            await pool.execute("PREPARE mine AS SELECT 1")
            look = "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'"
            assert await pool.fetchval(look) == 0


@asynccontextmanager
async def alone(pool: AsyncConnectionPool[Any]) -> AsyncIterator[None]:
    """An empty context, for one-shots outside blocks."""
    yield


async def read_only(conn: psycopg.AsyncConnection[Any]) -> None:
    """A `configure` for read-only connections."""
    await conn.set_read_only(True)


async def serializable(conn: psycopg.AsyncConnection[Any]) -> None:
    """A `configure` for connections whose transactions are serializable."""
    await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)


async def deferrable(conn: psycopg.AsyncConnection[Any]) -> None:
    """A `configure` for connections whose transactions are deferrable."""
    await conn.set_deferrable(True)


async def autocommitting(conn: psycopg.AsyncConnection[Any]) -> None:
    """A `configure` for connections in autocommit mode."""
    await conn.set_autocommit(True)


PLACES: dict[str, Any] = {"alone": alone, "in a session": AsyncConnectionPool.session}
each_place = pytest.mark.parametrize("place", PLACES)


@each_place
async def test_one_shots_of_read_only_connections_do_not_write(
    dsn: str, table: str, place: str
) -> None:
    """A write fails, as in a block."""
    insert = f"INSERT INTO {table} VALUES (1) RETURNING x"
    async with AsyncConnectionPool(dsn, min_size=1, configure=read_only) as pool:
        for shot in (
            lambda: pool.execute(insert),
            lambda: pool.fetchall(insert),
            lambda: pool.fetchone(insert),
            lambda: pool.fetchval(insert),
            lambda: pool.executemany(f"INSERT INTO {table} VALUES (%s)", [(1,), (2,)]),
            lambda: pool.batch(["SELECT 1", insert]),
        ):
            for _ in range(2):
                with pytest.raises(ReadOnlySqlTransaction):
                    async with PLACES[place](pool):
                        await shot()
        assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 0


CHARACTERISTICS: dict[str, tuple[Any, str]] = {
    "transaction_isolation": (serializable, "serializable"),
    "transaction_deferrable": (deferrable, "on"),
}


@each_place
@pytest.mark.parametrize("setting", CHARACTERISTICS)
async def test_one_shots_have_the_transaction_that_the_connection_was_given(
    dsn: str, table: str, place: str, setting: str
) -> None:
    """SHOW and a function that reads the setting report it, as in a block."""
    configure, value = CHARACTERISTICS[setting]
    show, condition = f"SHOW {setting}", f"current_setting('{setting}') = '{value}'"
    insert = f"INSERT INTO {table} SELECT %s WHERE {condition}"
    async with AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        for _ in range(2):
            async with PLACES[place](pool):
                assert await pool.fetchval(show) == value
                assert await pool.fetchone(show) == (value,)
                assert await pool.fetchall(show) == [(value,)]
                assert await pool.fetchval(f"SELECT {condition}") is True
                assert await pool.execute(insert, [1]) == "INSERT 0 1"
                assert await pool.executemany(insert, [(1,), (2,)]) == 2
                assert await pool.batch([show, (insert, [1])]) == [[(value,)], "INSERT 0 1"]
        many = [pool.fetchval(f"SELECT {condition}") for _ in range(20)]
        assert await asyncio.gather(*many) == [True] * 20


@each_place
async def test_one_shots_on_connections_in_autocommit_mode(
    dsn: str, table: str, place: str
) -> None:
    """Each statement commits by itself, an `executemany` or a batch as a whole."""
    insert = f"INSERT INTO {table} VALUES (%s)"
    async with AsyncConnectionPool(dsn, min_size=1, configure=autocommitting) as pool:
        async with PLACES[place](pool):
            await pool.execute(insert, [1])
            with pytest.raises(psycopg.Error):
                await pool.executemany(insert, [(2,), ("no number",)])
            with pytest.raises(psycopg.Error):
                await pool.batch([(insert, [3]), "SELECT 1/0"])
            assert await pool.executemany(insert, [(4,), (5,)]) == 2
        assert await pool.fetchall(f"SELECT x FROM {table} ORDER BY x") == [(1,), (4,), (5,)]
        async with pool.connection() as conn:
            assert conn.autocommit


def broken() -> Iterator[tuple[int]]:
    """Yield values, then fail."""
    yield (1,)
    raise ZeroDivisionError


BAD_VALUES: dict[str, tuple[Any, type[Exception]]] = {
    "no such type": (lambda: [(1,), (object(),)], psycopg.ProgrammingError),
    "a source that fails": (broken, ZeroDivisionError),
    "too many values": (lambda: [(1,), (1, 2)], psycopg.ProgrammingError),
    "no values": (lambda: [(1,), ()], psycopg.ProgrammingError),
    "not for the server": (lambda: [(1,), ("x",), (2,)], psycopg.DataError),
}


@pytest.mark.parametrize("configure", few([None, autocommitting]))
@pytest.mark.parametrize("what", BAD_VALUES)
async def test_of_several_sets_of_values_none_stays_when_one_is_bad(
    dsn: str, table: str, what: str, configure: Any
) -> None:
    """The connection is kept, and the next call works."""
    values, kind = BAD_VALUES[what]
    insert = f"INSERT INTO {table} VALUES (%s)"
    async with AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        for _ in range(2):
            with pytest.raises(kind):
                await in_time(pool.executemany(insert, values()))
            assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 0
        assert await pool.executemany(insert, [(1,), (2,)]) == 2
        assert (await at_rest(pool)).connects == 1


@pytest.mark.parametrize("configure", few([None, autocommitting]))
@pytest.mark.parametrize("what", BAD_VALUES)
async def test_in_a_session_bad_values_undo_their_own_call_alone(
    dsn: str, table: str, what: str, configure: Any
) -> None:
    """The session's work before and after the call is kept."""
    values, kind = BAD_VALUES[what]
    insert = f"INSERT INTO {table} VALUES (%s)"
    async with AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        async with pool.session() as conn:
            await conn.execute(insert.encode(), [100])
            await pool.execute(insert, [101])
            with pytest.raises(kind):
                await in_time(pool.executemany(insert, values()))
            await pool.execute(insert, [102])
            await conn.execute(insert.encode(), [103])
        rows = await pool.fetchall(f"SELECT x FROM {table} ORDER BY x")
        assert rows == [(100,), (101,), (102,), (103,)]
        assert (await at_rest(pool)).connects == 1


@pytest.mark.parametrize("configure", [None, autocommitting])
@pytest.mark.parametrize("kind", [UniqueViolation, ForeignKeyViolation])
async def test_a_deferred_constraint_fails_with_its_own_error(
    dsn: str, table: str, backends: Backends, kind: type[Exception], configure: Any
) -> None:
    """The error comes with the commit; the connection is kept."""
    later = "DEFERRABLE INITIALLY DEFERRED"
    if kind is UniqueViolation:
        backends.ask(f"ALTER TABLE {table} ADD UNIQUE (x) {later}")
    else:
        backends.ask(f"ALTER TABLE {table} ADD y int UNIQUE")
        backends.ask(f"ALTER TABLE {table} ADD FOREIGN KEY (x) REFERENCES {table} (y) {later}")
    insert = f"INSERT INTO {table} (x) VALUES (%s)"
    twice = f"INSERT INTO {table} (x) VALUES (1), (1)"
    async with AsyncConnectionPool(dsn, min_size=1, configure=configure) as pool:
        pid = await pool.fetchval("SELECT pg_backend_pid()")
        for shot in (
            lambda: pool.executemany(insert, [(1,), (1,)]),
            lambda: pool.batch([(insert, [1]), (insert, [1]), "SELECT 1"]),
            lambda: pool.execute(twice),
            lambda: pool.fetchall(f"{twice} RETURNING x"),
        ):
            with pytest.raises(kind):
                await in_time(shot())
            assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 0
        async with pool.connection() as conn:
            assert await backend_of(conn) == pid
        assert (await at_rest(pool)).connects == 1


async def test_a_one_shot_whose_commit_fails_among_others_is_alone_in_it(
    dsn: str, table: str, backends: Backends
) -> None:
    """Concurrent writes and reads get their results."""
    backends.ask(f"ALTER TABLE {table} ADD UNIQUE (x) DEFERRABLE INITIALLY DEFERRED")
    insert = f"INSERT INTO {table} VALUES (%s)"
    async with AsyncConnectionPool(dsn, min_size=1, max_size=3) as pool:

        async def read() -> None:
            while True:
                assert await pool.fetchval("SELECT 1") == 1

        async with started(read(), read()) as readers:
            shots = [pool.execute(insert, [n // 2]) for n in range(40)]
            outcomes = await in_time(asyncio.gather(*shots, return_exceptions=True))
            assert not any(reader.done() for reader in readers)
        failures = [outcome for outcome in outcomes if outcome != "INSERT 0 1"]
        assert [type(failure) for failure in failures] == [UniqueViolation] * 20
        assert await pool.fetchval(f"SELECT count(DISTINCT x) FROM {table}") == 20
