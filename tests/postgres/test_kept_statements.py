"""Converted statements are kept, and BEGIN is sent with the first statement.

Neither may be noticed: each walk runs on psycopg's own connection and on this one, and compares
all that a caller can see.
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.adapt import Dumper, Loader
from psycopg.rows import dict_row, scalar_row, tuple_row
from psycopg.types import TypeInfo

from asyncpool import AsyncConnectionPool, Connection

from ._tools import BOTH_LOOPS, Proxy, in_time, needs_internals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOPS = BOTH_LOOPS
pytestmark = needs_internals

Conn = psycopg.AsyncConnection[Any]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

STATEMENTS: list[tuple[str, Any]] = [
    ("SELECT n, n::text FROM generate_series(1, 3) n", None),
    ("SELECT n, n::text FROM generate_series(1, 3) n", ()),
    ("SELECT %s::int4 + 1", (1,)),
    ("SELECT %s::int4 + 1", (7,)),
    ("SELECT %s::text", ("Text",)),
    ("SELECT %s", (1,)),
    ("SELECT %s", (1 << 40,)),
    ("SELECT %s", ("text",)),
    ("SELECT %s", (None,)),
    ("SELECT %(a)s::text || %(b)s::text || %(a)s::text", {"a": "x", "b": "y"}),
    ("SELECT %(a)s::text || %(b)s::text || %(a)s::text", {"b": "u", "a": "v", "c": 1}),
    ("SELECT %s::text, %s::text", ["list", "of values"]),
    ("SELECT %s::timestamptz::text, %s::timestamptz", (NOON, NOON)),
    ("SELECT now() = transaction_timestamp()", None),
    ("/* a comment */ SELECT 'a;b'", None),
    ("-- a comment\nINSERT INTO walk VALUES (%s) RETURNING n", (5,)),
    ("INSERT INTO walk VALUES (1), (2)", None),
    ("UPDATE walk SET n = n + 1", None),
    ("SELECT count(*), sum(n) FROM walk", None),
    ("SELECT 1; SELECT 2, 3", None),
    ("SELECT 1; SELECT 2, 3", ()),
    ("SELECT 1; SELECT 2, 3", {}),
    ("SELECT 1; SELECT 1 / 0", None),
    ("SELECT 1 / 0", None),
    ("SELECT 1 / %s", (0,)),
    ("SELECT", None),
    ("", None),
    (";", None),
    ("SELECT %s", ()),
    ("SELECT %s", (object(),)),
    ("no statement", None),
    ("COPY walk FROM STDIN", None),
    ("SET TimeZone = 'Asia/Tokyo'", None),
    ("SELECT set_config('TimeZone', 'America/Lima', false), %s::timestamptz", (NOON,)),
    ("SET client_encoding = 'latin1'", None),
    ("RESET client_encoding", None),
    ("SELECT %s::text", ("caf\u00e9",)),
    ("SAVEPOINT a", None),
    ("ROLLBACK TO a", None),
    ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", None),
    ("SHOW transaction_isolation", None),
    ("SET LOCAL statement_timeout = '1h'", None),
    ("SHOW statement_timeout", None),
    ("VACUUM walk", None),
    ("BEGIN", None),
    ("COMMIT", None),
    ("ROLLBACK", None),
    ("DROP TABLE IF EXISTS walk_other", None),
    ("CREATE TABLE walk_other (n int)", None),
    ("DISCARD PLANS", None),
    ("DEALLOCATE ALL", None),
]


class Loud(Loader):
    """A loader that returns text in upper case."""

    def load(self, data: Any) -> str:
        """See `Loader`."""
        return bytes(data).decode().upper()


class Quiet(Dumper):
    """A dumper that writes text in lower case."""

    oid = psycopg.adapters.types["text"].oid

    def dump(self, obj: str) -> bytes:
        """See `Dumper`."""
        return obj.lower().encode()


class Walk:
    """A walk on one connection: each step returns what a caller can see of it."""

    def __init__(self, conn: Conn) -> None:
        self.conn = conn
        self.held: list[psycopg.AsyncCursor[Any]] = []

    async def step(self, choice: random.Random) -> Any:
        """Take a step; the same sequence of choices makes the same walk."""
        steps: list[tuple[int, Callable[[random.Random], Awaitable[Any]]]] = [
            (12, self.execute),
            (6, self.execute_on_a_held_cursor),
            (6, self.fetch),
            (2, self.end),
            (2, self.register),
            (1, self.in_a_pipeline),
            (1, self.many),
            (1, self.in_a_block),
            (1, self.stream),
            (1, self.change_mode),
        ]
        weights = [weight for weight, _ in steps]
        method = choice.choices([step for _, step in steps], weights)[0]
        try:
            seen = await method(choice)
        except Exception as error:  # noqa: BLE001 - compared
            seen = type(error), str(error).splitlines()[:1]
        return method.__name__, seen, self.conn.info.transaction_status, self.conn.closed

    def has_failed(self) -> bool:
        """Whether the transaction has failed: then timing decides which error a pipeline raises."""
        return self.conn.info.transaction_status is psycopg.pq.TransactionStatus.INERROR

    async def execute(self, choice: random.Random) -> Any:
        """Run a statement on a cursor of its own, which may be kept."""
        query, params = choice.choice(STATEMENTS)
        options: dict[str, Any] = choice.choice([{}, {}, {}, {"prepare": True}, {"prepare": False}])
        options |= choice.choice([{}, {}, {"binary": True}])
        if choice.random() < 0.5:
            cur = await self.conn.execute(query, params, **options)
        else:
            factory: Any = choice.choice([tuple_row, dict_row, scalar_row])
            cur = self.conn.cursor(row_factory=factory)
            await cur.execute(query, params, **options)
        if choice.random() < 0.5:
            self.held.append(cur)
        return await self.facts(cur, choice.randrange(3))

    async def execute_on_a_held_cursor(self, choice: random.Random) -> Any:
        """Run a statement on a cursor that has run another one."""
        if not self.held:
            return None
        cur = choice.choice(self.held)
        await cur.execute(*choice.choice(STATEMENTS))
        return await self.facts(cur, choice.randrange(3))

    async def fetch(self, choice: random.Random) -> Any:
        """Go on reading from a cursor whose statement may have run again since."""
        if not self.held:
            return None
        cur = choice.choice(self.held)
        if choice.random() < 0.3:
            await cur.scroll(0, mode="absolute")
        return await self.facts(cur, choice.randrange(3))

    async def facts(self, cur: psycopg.AsyncCursor[Any], rows: int) -> Any:
        """All that a cursor shows, and some rows."""
        names = [(column.name, column.type_code) for column in cur.description or ()]
        seen = [cur.rowcount, cur.statusmessage, names, cur.rownumber, cur.format]
        if cur.description is not None:
            # Instants of different time zones are equal, but look different.
            seen.append(repr(await (cur.fetchall() if rows == 2 else cur.fetchmany(rows))))
        more = cur.nextset()
        return seen, more

    async def end(self, choice: random.Random) -> Any:
        """End the transaction."""
        await choice.choice([self.conn.commit, self.conn.rollback])()

    async def register(self, choice: random.Random) -> Any:
        """Change adapters, of the connection or of a cursor."""
        owners: list[Any] = [self.conn, *self.held]
        adapters = choice.choice(owners).adapters
        match choice.randrange(4):
            case 0:
                adapters.register_loader("text", Loud)
            case 1:
                adapters.register_dumper(str, Quiet)
            case 2:
                adapters.register_loader("text", psycopg.types.string.TextLoader)
            case _:
                TypeInfo("walk", 990000, 990001).register(self.conn)

    async def in_a_pipeline(self, choice: random.Random) -> Any:
        """Run two statements in a pipeline."""
        if self.has_failed():
            return None
        async with self.conn.pipeline():
            first = await self.conn.execute("SELECT %s::int4 + 1", (choice.randrange(9),))
            second = await self.conn.execute("SELECT %s::text", ("Text",))
            return await first.fetchall(), await second.fetchall()

    async def many(self, choice: random.Random) -> Any:
        """Run one statement with several sets of values, which psycopg does in a pipeline."""
        if self.has_failed():
            return None
        cur = choice.choice([*self.held, self.conn.cursor()])
        await cur.executemany("INSERT INTO walk VALUES (%s)", [(1,), (2,)])
        return cur.rowcount

    async def in_a_block(self, choice: random.Random) -> Any:
        """Run a statement in a transaction block."""
        async with self.conn.transaction(force_rollback=choice.random() < 0.3):
            return await self.execute(choice)

    async def stream(self, choice: random.Random) -> Any:
        """Stream the rows of a statement that may be kept."""
        return [row async for row in self.conn.cursor().stream(*choice.choice(STATEMENTS[:5]))]

    async def change_mode(self, choice: random.Random) -> Any:
        """Change the autocommit mode."""
        await self.conn.set_autocommit(choice.random() < 0.5)


async def walk(dsn: str, kind: type[Conn], seed: int) -> list[Any]:
    choice = random.Random(seed)
    conn = await kind.connect(dsn, autocommit=choice.random() < 0.3)
    try:
        conn.prepare_threshold = choice.choice([None, 0, 2, 5])
        walker = Walk(conn)
        setup = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        async with setup:
            await setup.execute("DROP TABLE IF EXISTS walk, walk_other; CREATE TABLE walk (n int)")
        return [await walker.step(choice) for _ in range(40)]
    finally:
        await conn.close()


@pytest.mark.parametrize("seed", range(60))
async def test_a_walk_shows_what_psycopgs_shows(dsn: str, seed: int) -> None:
    """Rows, errors, attributes and the state of the transaction are equal after each step."""
    theirs = await walk(dsn, psycopg.AsyncConnection, seed)
    ours = await walk(dsn, Connection, seed)
    for number, (expected, seen) in enumerate(zip(theirs, ours, strict=True)):
        assert seen == expected, (number, theirs[: number + 1])


async def test_begin_and_the_first_statement_are_one_round_trip(dsn: str) -> None:
    """A block of one statement takes two round trips: the second is its COMMIT."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=1, max_size=1) as pool:
        await pool.wait()
        turns = []
        for _ in range(8):  # at the sixth it is prepared, which takes a round trip
            before = proxy.turns
            async with pool.connection() as conn:
                cur = await conn.execute("SELECT %s::int4", (7,))
                assert await cur.fetchone() == (7,)
            turns.append(proxy.turns - before)
        assert [turns[0], turns[-1]] == [2, 2]


@pytest.mark.parametrize("params", [None, (), {}])
@pytest.mark.parametrize("first", ["SELECT 1; SELECT 2", "COPY (SELECT 1) TO STDOUT", ""])
async def test_what_cannot_follow_begin_is_sent_after_it(
    dsn: str, first: str, params: tuple[()] | dict[str, Any] | None
) -> None:
    """psycopg's own way is taken: the statement is run, or refused, in a transaction."""
    async with await Connection.connect(dsn) as conn:
        if first.startswith("COPY"):
            async with conn.cursor().copy(first) as copy:
                assert [row async for row in copy.rows()] == [("1",)]
        else:
            await in_time(conn.execute(first, params))
        assert conn.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        await conn.rollback()
        assert await (await conn.execute("SELECT 3")).fetchone() == (3,)


async def test_a_first_statement_that_fails_leaves_a_failed_transaction(dsn: str) -> None:
    """As if BEGIN had been sent before it."""
    async with await Connection.connect(dsn) as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1 / 0")
        assert conn.info.transaction_status is psycopg.pq.TransactionStatus.INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await conn.execute("SELECT 1")


@pytest.mark.parametrize("kind", [psycopg.AsyncConnection, Connection])
async def test_a_first_statement_that_libpq_refuses_leaves_a_transaction(
    dsn: str, kind: type[Conn]
) -> None:
    """The BEGIN has been sent, and the connection goes on."""
    async with await kind.connect(dsn) as conn:
        many = ", ".join(["%s"] * 70_000)
        with pytest.raises(psycopg.OperationalError, match="65535"):
            await in_time(conn.execute(f"SELECT {many}", (1,) * 70_000))
        assert conn.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        assert await (await conn.execute("SELECT 3")).fetchone() == (3,)


async def test_a_first_statement_tells_why_the_server_ended_the_session(dsn: str) -> None:
    """The server's own error is raised, not that the connection was lost."""
    conn = await Connection.connect(dsn)
    with pytest.raises(psycopg.errors.AdminShutdown):
        await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert conn.closed


async def test_characteristics_are_part_of_the_begin(dsn: str) -> None:
    """Isolation and read-only hold for the first statement."""
    async with await Connection.connect(dsn) as conn:
        await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        await conn.set_read_only(True)
        cur = await conn.execute("SHOW transaction_isolation")
        assert await cur.fetchone() == ("serializable",)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await conn.execute("CREATE TABLE never (n int)")


async def test_a_cursor_goes_on_reading_when_its_statement_runs_again(dsn: str) -> None:
    """Its rows are its own, also after its connection was returned and borrowed by another."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1) as pool:
        cursors = []
        for number in range(3):
            async with pool.connection() as conn:
                cursors.append(
                    await conn.execute("SELECT %s::int4, n FROM generate_series(1, 3) n", (number,))
                )
                await cursors[-1].fetchone()
        assert await pool.fetchall("SELECT %s::int4, n FROM generate_series(1, 3) n", (9,))
        for number, cur in enumerate(cursors):
            assert await cur.fetchall() == [(number, 2), (number, 3)]


async def test_a_kept_statement_follows_the_session_s_settings(dsn: str) -> None:
    """A time zone that was set since, or by the statement itself, is that of its rows."""
    query = "SELECT set_config('TimeZone', %s, false), %s::timestamptz"
    async with await Connection.connect(dsn, autocommit=True) as conn:
        for zone in ("Asia/Tokyo", "America/Lima", "UTC"):
            cur = await conn.execute(query, (zone, NOON))
            row = await cur.fetchone()
            assert row is not None
            assert (row[0], str(row[1].tzinfo)) == (zone, zone)


async def test_rows_are_not_kept_with_the_statement(dsn: str) -> None:
    """What a cursor has read is freed with the cursor, though its statement is kept."""
    async with await Connection.connect(dsn, autocommit=True) as conn:
        cur = await conn.execute("SELECT repeat('x', 1000000)")
        result = cur.pgresult
        held = sys.getrefcount(result)
        del cur
        assert sys.getrefcount(result) < held - 1


@pytest.mark.parametrize("kind", [psycopg.AsyncConnection, Connection])
async def test_a_roll_back_deallocates_before_the_next_statement_is_prepared(
    dsn: str, kind: type[Conn]
) -> None:
    """Else it would also deallocate that one, which psycopg goes on to use."""
    async with await kind.connect(dsn, autocommit=True, prepare_threshold=0) as conn:
        await conn.execute("SELECT 1")
        await conn.execute("BEGIN")
        await conn.execute("ROLLBACK", prepare=False)
        for _ in range(2):
            assert await (await conn.execute("SELECT 2")).fetchone() == (2,)
