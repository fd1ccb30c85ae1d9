"""A schema in which every call of a function that is not built in is an error, and is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from hypothesis import HealthCheck, settings

FUZZ = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HARMFUL = "EV000"
"""The SQLSTATE of every function of ours: none may be called."""
LOCKS = """SELECT locktype, mode FROM pg_locks WHERE pid = pg_backend_pid()
AND NOT (locktype = 'virtualxid') AND NOT (locktype = 'relation' AND mode = 'AccessShareLock')
UNION ALL SELECT 'xid', pg_current_xact_id_if_assigned()::text
WHERE pg_current_xact_id_if_assigned() IS NOT NULL"""
SPECIAL = [
    *("over", "filter", "by", "sets", "cube", "rollup", "materialized", "varying", "zone", "join"),
    *("system", "ilike", "columns", "repeatable", "foo", "ordinality", "operator", "recursive"),
    *("escape", "passing", "nested", "within", "partition", "first", "next", "tablesample"),
]
"""Names of functions that stand before a parenthesis in the grammar too."""


@contextmanager
def connected(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit to a schema with tables, and functions that must not be called."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        schema = f"plain_reads_{uuid4().hex[:12]}"
        conn.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}, pg_catalog".encode())
        conn.execute(
            "CREATE TABLE u (a int, d text); CREATE SEQUENCE s; INSERT INTO u VALUES (1, 'a');"
            " CREATE TABLE t (a int, b int, c text, j jsonb, at timestamptz, r u);"
            """ INSERT INTO t VALUES (1, 2, 'a', '{"a": [1]}', now(), (1, 'a'))"""
        )
        kinds: dict[str, str] = dict(
            conn.execute("SELECT word, catcode FROM pg_get_keywords()").fetchall()
        )
        for name in SPECIAL:
            for types in ("int DEFAULT 1", "text", "text, text"):
                if kinds.get(name, "U") in ("U", "T"):
                    sql = f"""CREATE FUNCTION "{name}"({types}) RETURNS bool LANGUAGE plpgsql
                        AS $$BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{HARMFUL}'; END$$"""
                    conn.execute(sql.encode())
        conn.execute("SET escape_string_warning = off; SET statement_timeout = '5s'")
        yield conn
        conn.execute(f"DROP SCHEMA {schema} CASCADE".encode())


@contextmanager
def only_reading(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """A read-only transaction, at whose end there is no lock but for reading, and no xid."""
    with conn.transaction(force_rollback=True):
        conn.execute("SET TRANSACTION READ ONLY")
        yield
        if conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            assert conn.execute(LOCKS).fetchall() == []


def read(conn: psycopg.Connection[Any], text: str) -> bool:
    """Run a plain read, by the protocol that would run several statements; was it accepted."""
    try:
        with only_reading(conn):
            cur = conn.execute(text.encode())
            assert cur.nextset() is None
    except psycopg.errors.ReadOnlySqlTransaction:
        raise
    except psycopg.Error as error:
        if error.sqlstate == HARMFUL:
            raise
        return False
    return True
