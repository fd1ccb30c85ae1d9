"""The functions that a plain read may call are harmless on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from asyncpool._sql.functions import HARMFUL, HARMLESS, RELATIONS, VOLATILE
from asyncpool._sql.keywords import KEYWORDS, SYNTAX
from asyncpool._sql.kinds import Kind, classify

CATALOG = "pronamespace = 'pg_catalog'::regnamespace"
# Harmless too, but newer than the oldest server, or of no use to a query.
OF_NO_USE = {"array_sample", "array_shuffle", "current_query", "plpgsql_call_handler"}
OF_NO_USE |= {"uuidv4", "uuidv7"}
# Volatile by the catalog of PostgreSQL 13 and 14, and no more than a reader.
ONCE_VOLATILE = {"timezone"}
# They are stable by the catalog and yet assign a transaction id, run SQL text, or leave something.
STABLE_ONLY_BY_NAME = {
    *("txid_current", "pg_current_xact_id", "pg_export_snapshot", "pg_get_viewdef"),
    *("table_to_xml", "schema_to_xml", "database_to_xml", "query_to_xml", "pg_relation_filepath"),
    *("fmgr_c_validator", "fmgr_internal_validator", "fmgr_sql_validator"),
    *("current_schema", "current_schemas"),
}


@pytest.fixture
def conn(asyncpool_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit."""
    with psycopg.connect(asyncpool_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def volatile(conn: psycopg.Connection[Any]) -> dict[str, bool]:
    """The names of the server's built-in functions, and whether one of a name is volatile."""
    sql = f"SELECT proname, bool_or(provolatile = 'v') FROM pg_proc WHERE {CATALOG} GROUP BY 1"
    return dict(conn.execute(sql.encode()).fetchall())


def test_each_is_a_built_in_function(volatile: dict[str, bool]) -> None:
    """On every supported server: otherwise somebody's own function may have its name."""
    assert volatile.keys() >= HARMLESS


def test_none_is_volatile_but_those_with_a_reason(volatile: dict[str, bool]) -> None:
    """Not even one overload."""
    assert {name for name in HARMLESS - ONCE_VOLATILE if volatile[name]} == VOLATILE
    assert not HARMLESS & HARMFUL


def test_no_volatile_function_can_be_called_in_a_plain_read(
    conn: psycopg.Connection[Any],
) -> None:
    """A call may be a function's, or a column's of an alias, a value, a parameter or an array."""
    sql = f"""SELECT DISTINCT proname FROM pg_proc WHERE {CATALOG} AND provolatile = 'v'
        AND proname NOT LIKE 'binary\\_upgrade\\_%' AND NOT 'internal'::regtype = ANY (proargtypes)
        AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)"""
    names = {name for (name,) in conn.execute(sql.encode())} | HARMFUL | STABLE_ONLY_BY_NAME
    assert len(names) > 100
    calls = ["{}()", "pg_catalog.{}(1)", '"{}"(1)', "(1).{}", "$1.{}", "(ARRAY[1])[1].{}", "g.{}"]
    calls += ["TREAT(1 AS {})", "treat (g AS pg_catalog.{})"]
    plain = {
        call.format(name)
        for name in names - VOLATILE - ONCE_VOLATILE - OF_NO_USE
        for call in calls
        if classify(f"SELECT {call.format(name)} FROM generate_series(1, 1) AS g") is Kind.READ
    }
    assert plain == set()


def test_names_that_look_like_functions_are_relations(conn: psycopg.Connection[Any]) -> None:
    """Of the catalog; only few views, as functions are behind them."""
    names = sorted(RELATIONS - {"pg_catalog"})
    sql = "SELECT relname FROM pg_class WHERE relname = ANY (%s) AND relkind IN ('r', 'v')"
    assert sorted(name for (name,) in conn.execute(sql, [names])) == names


def test_the_words_of_the_grammar_are_known(conn: psycopg.Connection[Any]) -> None:
    """Those that may stand before a parenthesis can be no function's name."""
    kinds = dict(conn.execute("SELECT word, catcode FROM pg_get_keywords()").fetchall())
    assert kinds.keys() <= KEYWORDS
    functions = {word for word in SYNTAX if kinds.get(word) not in ("R", "C")}
    if conn.info.server_version >= 170000:
        assert functions == set()
    else:
        assert all(word.startswith("json") for word in functions)


VALUES = {
    **dict.fromkeys(["int2", "int4", "int8", "oid", "anyelement", "anynonarray", "any"], "2"),
    **dict.fromkeys(["float4", "float8", "numeric", "xid", "anycompatible"], "'1'"),
    **dict.fromkeys(["text", "bpchar", "varchar", "name", "cstring", "unknown", "char"], "'a'"),
    **dict.fromkeys(["json", "jsonb"], """'{"a": [1]}'"""),
    **dict.fromkeys(["anyarray", "anycompatiblearray"], "ARRAY[1]"),
    **dict.fromkeys(["anyrange", "int4range", "anycompatiblerange"], "'[1,3)'::int4range"),
    **dict.fromkeys(["anymultirange", "int4multirange"], "'{[1,3)}'::int4multirange"),
    **dict.fromkeys(["date", "timestamp", "timestamptz"], "'2026-01-02'"),
    **dict.fromkeys(["time", "timetz"], "'10:00'"),
    **dict.fromkeys(["inet", "cidr"], "'10.0.0.0/8'"),
    **dict.fromkeys(["_text", "_name", "_int4", "_float8", "_bool", "_char"], "'{}'"),
    "anyenum": "NULL::pg_temp.color",
    "record": "ROW(1)",
    "regclass": "'pg_class'",
    "xml": "'<a/>'",
    "bytea": "'abc'",
    "bool": "true",
    "interval": "'1 day'",
    "jsonpath": "'$.a'",
    "tsvector": "'a:1'",
    "tsquery": "'a'",
    "regconfig": "'simple'",
    "money": "'1'",
    "point": "'(1,2)'",
    "lseg": "'(1,2),(3,4)'",
    "box": "'(1,2),(3,4)'",
    "line": "'{1,2,3}'",
    "path": "'[(1,2),(3,4)]'",
    "polygon": "'((1,2),(3,4),(5,1))'",
    "circle": "'<(1,2),3>'",
    "uuid": "gen_random_uuid()",
    "bit": "'101'::bit(3)",
    "varbit": "'101'",
    "pg_lsn": "'0/1'",
    "macaddr": "'08:00:2b:01:02:03'",
    "macaddr8": "'08:00:2b:01:02:03:04:05'",
}
"""A value of each type of argument."""


def calls(conn: psycopg.Connection[Any]) -> Iterator[str]:
    """A call of each overload of each function."""
    sql = f"""SELECT proname, prokind, ARRAY(
            SELECT typname FROM unnest(proargtypes) WITH ORDINALITY AS a(type, n)
            JOIN pg_type ON pg_type.oid = type ORDER BY n)
        FROM pg_proc WHERE {CATALOG} AND proname = ANY (%s) ORDER BY 1, 3"""
    for name, kind, types in conn.execute(sql.encode(), [sorted(HARMLESS)]).fetchall():
        values = (
            VALUES[each] + ("" if "::" in VALUES[each] or "any" in each else f"::{each}")
            if each in VALUES and each not in ("record", "char", "cstring")
            else VALUES.get(each, f"NULL::{each}")
            for each in types
        )
        yield f'SELECT pg_catalog."{name}"({", ".join(values)}){" OVER ()" * (kind == "w")}'


def attempts(call: str) -> Iterator[str]:
    """A call with other texts and numbers, as not all are good for each function."""
    for text in ("a", "day", "UTF8", "[)", "hex", "pg_class", "1"):
        yield call.replace("'a'", f"'{text}'")
    yield call.replace("2::int4", "1").replace("'1'", "'0.5'")
    yield call.replace("'1 day'", "'1 hour'").replace("'abc'", "'a'")


LOCKS = """SELECT locktype, mode, relation::regclass::text FROM pg_locks
WHERE pid = pg_backend_pid() AND NOT (locktype = 'virtualxid')
AND NOT (mode = 'AccessShareLock' AND relation IN (
    SELECT oid FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace))
UNION ALL SELECT 'xid', pg_current_xact_id_if_assigned()::text, ''
WHERE pg_current_xact_id_if_assigned() IS NOT NULL"""


@pytest.mark.parametrize("path", ["public", "pg_temp, public"])
@pytest.mark.exhaustive
def test_a_call_takes_no_lock_and_no_transaction_id(
    conn: psycopg.Connection[Any], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a read-only transaction, where none is refused; but for reading catalogs.

    Also where the temporary schema is the first of the path and does not exist yet.
    """
    conn.execute(f"SET search_path = {path}".encode())
    if path == "public":
        conn.execute("CREATE TYPE pg_temp.color AS ENUM ('red')")
    else:
        monkeypatch.setitem(VALUES, "anyenum", "NULL")
    done, failed, taken = 0, [], {}
    for call in calls(conn):
        for text in attempts(call):
            with conn.transaction(force_rollback=True):
                conn.execute("SET TRANSACTION READ ONLY")
                try:
                    conn.execute(text.encode())
                except psycopg.errors.ReadOnlySqlTransaction:
                    raise
                except psycopg.Error as error:
                    message = error.diag.message_primary
                    continue
                done += 1
                if found := conn.execute(LOCKS).fetchall():
                    taken[text] = found
                break
        else:
            failed.append(f"{call}: {message}")
    assert not taken
    assert done > 4 * len(failed), failed


def test_a_call_written_as_a_column_takes_no_lock_and_no_transaction_id(
    conn: psycopg.Connection[Any],
) -> None:
    """`g.name` calls a function of one argument: each that a plain read may name is tried."""
    conn.execute("CREATE TEMP TABLE written (a int)")
    conn.execute(
        "CREATE FUNCTION pg_temp.writes() RETURNS void LANGUAGE sql"
        " AS 'INSERT INTO pg_temp.written VALUES (1)'"
    )
    oid = conn.execute("SELECT 'pg_temp.writes()'::regprocedure::oid").fetchall()[0][0]
    values = VALUES | {"oid": f"{oid}::oid", "regprocedure": f"{oid}::regprocedure"}
    sql = f"""SELECT proname, typname FROM pg_proc JOIN pg_type ON pg_type.oid = proargtypes[0]
        WHERE {CATALOG} AND pronargs = 1 AND prokind = 'f'"""
    done, taken = 0, {}
    for name, kind in conn.execute(sql.encode()).fetchall():
        value = values.get(kind, f"NULL::{kind}")
        text = f"SELECT g.{name} FROM unnest(ARRAY[{value}]) AS g"
        if classify(text) is not Kind.READ:
            continue
        with conn.transaction(force_rollback=True):
            try:
                conn.execute(text.encode())
            except psycopg.Error:
                continue
            done += 1
            if found := conn.execute(LOCKS).fetchall():
                taken[text] = found
    assert not taken
    assert done > 200
