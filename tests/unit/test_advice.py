"""Advice for statements that make no sense as a one-shot."""

from __future__ import annotations

import pytest

from asyncpool._sql.kinds import Kind, advice, classify


@pytest.mark.parametrize(
    ("text", "beginning", "instead"),
    [
        ("LISTEN x", "LISTEN in a one-shot", "pool.listen(channel)"),
        ("/* a */ unlisten *;", "UNLISTEN in a one-shot", "pool.listen(channel)"),
        ("SET work_mem = '1GB'", "SET in a one-shot", "options="),
        ("SET SESSION x TO 1", "SET in a one-shot", "configure="),
        ("set role admin", "SET in a one-shot", "configure="),
        ("RESET ALL", "RESET in a one-shot", "configure="),
        ("DISCARD ALL", "DISCARD in a one-shot", "configure="),
        ("SET LOCAL x = 1", "SET LOCAL has no effect", "pool.transaction()"),
        ("SET TRANSACTION READ ONLY", "SET TRANSACTION has no effect", "pool.transaction()"),
        ("SET CONSTRAINTS ALL DEFERRED", "SET CONSTRAINTS has no effect", "pool.transaction()"),
        ("BEGIN", "BEGIN in a one-shot", "pool.transaction()"),
        ("START TRANSACTION", "START TRANSACTION in", "pool.transaction()"),
        ("COMMIT AND CHAIN", "COMMIT in a one-shot", "pool.transaction()"),
        ("END", "END in a one-shot", "pool.transaction()"),
        ("ROLLBACK", "ROLLBACK in a one-shot", "pool.transaction()"),
        ("ABORT", "ABORT in a one-shot", "pool.transaction()"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION in a one", "pool.transaction()"),
        ("SAVEPOINT a", "SAVEPOINT needs a transaction", "conn.transaction()"),
        ("RELEASE a", "RELEASE needs a transaction", "conn.transaction()"),
        ("ROLLBACK TO a", "ROLLBACK TO needs a transaction", "conn.transaction()"),
        ("DECLARE c CURSOR FOR SELECT 1", "DECLARE needs a cursor", "conn.cursor(name=...)"),
        ("FETCH ALL FROM c", "FETCH needs a cursor", "conn.cursor(name=...)"),
        ("CLOSE c", "CLOSE needs a cursor", "conn.cursor(name=...)"),
        ("MOVE 3 IN c", "MOVE needs a cursor", "conn.cursor(name=...)"),
        ("PREPARE p AS SELECT 1", "PREPARE needs a prepared", "psycopg prepares"),
        ("EXECUTE p(1)", "EXECUTE needs a prepared", "psycopg prepares"),
        ("DEALLOCATE ALL", "DEALLOCATE needs a prepared", "psycopg prepares"),
        ("LOCK TABLE t", "LOCK holds its lock", "pool.transaction()"),
        ("COPY t (a, b) FROM STDIN WITH (FORMAT csv)", "COPY ... FROM STDIN", "cursor().copy("),
        ("COPY (SELECT 1) TO stdout", "COPY ... TO STDOUT", "cursor().copy("),
        ("CREATE TEMP TABLE t (x int)", "CREATE TEMP TABLE belongs", "pool.connection()"),
        ("CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1", "CREATE TEMPORARY VIEW", "in one block"),
        ("CREATE LOCAL TEMP TABLE t AS SELECT 1", "CREATE TEMP TABLE belongs", "in one block"),
    ],
)
def test_what_belongs_to_one_connection_or_transaction(
    text: str, beginning: str, instead: str
) -> None:
    """The advice says what happens, then what to write instead."""
    found = advice(text)
    assert found is not None
    assert found.startswith(beginning)
    assert instead in found
    assert classify(text) is Kind.OTHER


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "INSERT INTO t VALUES (1)",
        "CREATE TABLE temp (x int)",
        'CREATE TABLE "temp" (x int)',
        "COPY t TO '/tmp/file'",
        "COPY t FROM PROGRAM 'date'",
        "COPY (SELECT 1 AS a, 2 AS b) TO '/tmp/stdout'",
        "COMMIT PREPARED 'x'",
        "ROLLBACK PREPARED 'x'",
        "NOTIFY x",
        "VACUUM",
        "BEGIN; INSERT INTO t VALUES (1); COMMIT",
        "",
        "-- LISTEN x",
        "'",
        '"listen" x',
        "U&'",
    ],
)
def test_what_may_make_sense(text: str) -> None:
    """Several statements in one text run on the same connection."""
    assert advice(text) is None
