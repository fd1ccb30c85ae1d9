"""The statements of a text that a rollback pool passes on to the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from asyncpool import AsyncConnectionPool
from asyncpool.testing import rollback_pool

from ._tools import Backends

BODY = "CREATE FUNCTION pg_temp.f() RETURNS int BEGIN ATOMIC"


@pytest.fixture
async def pool(dsn: str, table: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    """A rollback pool, while the table exists."""
    async with rollback_pool(dsn, patience=0.3) as pool:
        yield pool


async def run(pool: AsyncConnectionPool[Any], table: str, text: str) -> list[int]:
    """Run a text in autocommit, with an INSERT for each {n}; return the rows the pool sees."""
    for number in range(1, 4):
        text = text.replace(f"{{{number}}}", f"INSERT INTO {table} VALUES ({number})")
    async with pool.acquire() as conn:
        await conn.set_autocommit(True)
        try:
            await conn.execute(text.encode())
        except psycopg.Error as error:
            assert isinstance(  # noqa: PT017
                error,
                psycopg.errors.DivisionByZero
                | psycopg.errors.FeatureNotSupported
                | psycopg.errors.InvalidTransactionTermination
                | psycopg.errors.SyntaxError,
            )
            await conn.rollback()
        await conn.set_autocommit(False)
    return [x for (x,) in await pool.fetchall(f"SELECT x FROM {table} ORDER BY x")]


KEPT = [
    ("SELECT 'BEGIN ATOMIC'; {1}; COMMIT; {2}", [1, 2]),
    ("{1}; SELECT 1 AS begin, 2 AS atomic; COMMIT", [1]),
    ("/* BEGIN ATOMIC */ {1}; COMMIT", [1]),
    ('{1}; SELECT 1 AS "BEGIN ATOMIC"; COMMIT', [1]),
    ("-- x\rCOMMIT; {1}", [1]),
    ("{1};-- x\rCOMMIT; SELECT 1/0", [1]),
    ("{1}; /* /* */ COMMIT; */ ROLLBACK", []),
    ("{1}; SELECT /**//**/ 1; ROLLBACK", []),
    ("{1}; SELECT 1 */* ; COMMIT; */2; ROLLBACK", []),
    ("{1}; SELECT 1 +-- ; COMMIT;\n2; ROLLBACK", []),
    ("{1}; SELECT E'\\'; COMMIT; --'; ROLLBACK", []),
    ("{1}; SELECT e'' '\\'; COMMIT; SELECT 1/0; --'", []),
    ("{1}; SELECT E''\n'\\'; COMMIT; --'; ROLLBACK", []),
    ("{1}; SELECT E'' -- x\r '\\'; COMMIT; --'; ROLLBACK", []),
    ("{1}; SELECT ''\n'\\'; COMMIT; --'", [1]),
    ("{1}; SELECT '\\'; COMMIT; --'", [1]),
    ("{1}; SELECT U&'\\0061'; COMMIT; --'", [1]),
    ("{1}; SELECT U&'!0061' UESCAPE '!'; COMMIT; --'", [1]),
    ('{1}; SELECT 1 AS U&"!0061;" UESCAPE \'!\'; COMMIT; --"', [1]),
    ("{1}; SELECT N'\\'; COMMIT; --'", [1]),
    ("{1}; SELECT B'01', X'1F'; COMMIT", [1]),
    ("{1}; SELECT 1 AS e$a$, 2 AS $a$; COMMIT; --$a$", []),
    ("{1}; SELECT 1 AS a$b$c; COMMIT; SELECT 1 AS a$b$c", [1]),
    ("{1}; SELECT $a$ $b$ ; COMMIT; $A$ $a$; ROLLBACK", []),
    ("{1}; SELECT $$ $a$$; COMMIT; --$$", [1]),
    ("{1}; SELECT $é$ ; COMMIT; $é$; ROLLBACK", []),
    ("{1}; SELECT 1 AS é$$; COMMIT; --$$", [1]),
    ("{1}; SELECT 1$$;COMMIT;$$; ROLLBACK", []),
    (f"{BODY} SELECT 1; SELECT CASE WHEN true THEN 1 END; END; {{1}}; COMMIT; {{2}}", [1, 2]),
    (f"{BODY} SELECT 1 AS end; SELECT 1 end; END; {{1}}; ROLLBACK", []),
    (f"{BODY}/**/ SELECT 1; END; {{1}}; ROLLBACK; {{2}}", [2]),
    ("CREATE FUNCTION pg_temp.f(begin int) RETURNS int RETURN 1; {1}; COMMIT", [1]),
    ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; {1}; ROLLBACK", []),
    ("{1}; END; {2}; ABORT", [1]),
    ("{1}; END WORK AND NO CHAIN; {2}; ABORT TRANSACTION", [1]),
    ("{1}; COMMIT/**/WORK; {2}; ROLLBACK AND/**/NO--\rCHAIN", [1]),
    ("{1}; COMMIT AND CHAIN; {2}; COMMIT", []),
    ("{1}; COMMIT WORK/**/AND CHAIN; {2}; COMMIT", []),
    ("{1}; PREPARE/**/TRANSACTION 'x'", []),
    ("{1}; COMMIT /**/ PREPARED 'x'", []),
    ("{1}; ROLLBACK PREPARED 'x'", []),
    ("START/**/TRANSACTION ISOLATION LEVEL SERIALIZABLE; {1}; COMMIT", [1]),
    ("BEGIN; {1}; SAVEPOINT a; {2}; ROLLBACK/**/TO a; COMMIT", [1]),
    ("{1};; ; COMMIT;;", [1]),
    ("{1}; COMMİT; {2}", []),
    ("{1}; SELECT (1; COMMIT; SELECT 2)", []),
    ("{1}; SELECT 1); COMMIT", []),
    ("{1}; COMMIT; SELECT 'x", []),
    ("{1}; COMMIT; /* x", []),
    ('{1}; COMMIT; "x', []),
    ("{1}; COMMIT; $x$", []),
    ("{1}; SELECT 1x; COMMIT", []),
    ("{1}; COMMIT x", []),
    ("{1}; DO $$ BEGIN COMMIT; END $$", []),
]


@pytest.mark.parametrize(("text", "kept"), KEPT)
async def test_only_what_the_server_takes_for_a_commit_is_one(
    pool: AsyncConnectionPool[Any], table: str, backends: Backends, text: str, kept: list[int]
) -> None:
    """A hidden COMMIT counts, a lookalike does not; no row becomes visible outside the pool."""
    assert await run(pool, table, text) == kept
    assert backends.rows(table) == []


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("{1}; SELECT 'a\\'; COMMIT; --'; ROLLBACK", []),
        ("{1}; SELECT N'a\\'; COMMIT; --'; ROLLBACK", []),
        ("{1}; SELECT 'a\\\\'; COMMIT; --'", [1]),
        ("{1}; SET standard_conforming_strings = on; SELECT 'a\\'' , '; COMMIT; --'; COMMIT", []),
        ("{1}; COMMIT; SET standard_conforming_strings = on; SELECT 'a\\'', '; COMMIT; --'", [1]),
    ],
)
async def test_a_backslash_counts_as_it_does_in_the_session(
    pool: AsyncConnectionPool[Any], table: str, backends: Backends, text: str, kept: list[int]
) -> None:
    """With `standard_conforming_strings` off it escapes a quote; a text may change the setting."""
    await pool.execute("SET standard_conforming_strings = off")
    await pool.execute("SET escape_string_warning = off")
    assert await run(pool, table, text) == kept
    assert backends.rows(table) == []


@pytest.mark.parametrize(("encoding", "character"), [("SJIS", "表"), ("BIG5", "功"), ("GBK", "誠")])
async def test_a_byte_of_a_character_is_no_backslash(
    pool: AsyncConnectionPool[Any], table: str, backends: Backends, encoding: str, character: str
) -> None:
    """In some client encodings the second byte of a character may equal a backslash."""
    async with pool.acquire() as conn:
        await conn.set_autocommit(True)
        await conn.execute(f"SET client_encoding = '{encoding}'")
        await conn.execute(f"INSERT INTO {table} VALUES (1); SELECT E'{character}'; COMMIT; --'")
        await conn.execute("RESET client_encoding")
        await conn.set_autocommit(False)
    assert await pool.fetchall(f"SELECT x FROM {table}") == [(1,)]
    assert backends.rows(table) == []


async def test_a_syntax_error_after_a_commit_keeps_what_came_before_it(
    pool: AsyncConnectionPool[Any], table: str, dsn: str
) -> None:
    """The statements are sent one after the other; a server reads the whole text first."""
    text = "{1}; COMMIT; SELEC 1"
    assert await run(pool, table, text) == [1]
    async with AsyncConnectionPool(dsn, min_size=1) as plain:
        assert await run(plain, table, text) == []
