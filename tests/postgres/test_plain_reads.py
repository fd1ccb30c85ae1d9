"""The lexer and the server agree on what a text is, and a plain read does nothing but read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from asyncpool._functions import HARMLESS
from asyncpool._keywords import KEYWORDS
from asyncpool._lexer import statements
from asyncpool._sql import Kind, kind_of
from tests.unit._statements import NEWER, OTHERS, READS, SINGLES, lines

FUZZ = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HARMFUL = "EV000"
"""The SQLSTATE of every function of ours: none may be called."""
UNSUPPORTED = (psycopg.errors.FeatureNotSupported,)
"""A server without libxml."""
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


@pytest.fixture(scope="module")
def conn(asyncpool_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit to a schema with tables, and functions that must not be called."""
    with psycopg.connect(asyncpool_dsn, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA plain_reads; SET search_path = plain_reads, pg_catalog")
        conn.execute(
            "CREATE TABLE u (a int, d text); CREATE SEQUENCE s;"
            " CREATE TABLE t (a int, b int, c text, j jsonb, at timestamptz, r u);"
            """ INSERT INTO t VALUES (1, 2, 'a', '{"a": [1]}', now(), (1, 'a'))"""
        )
        names: dict[str, str] = dict(
            conn.execute("SELECT word, catcode FROM pg_get_keywords()").fetchall()
        )
        for name in SPECIAL:
            if names.get(name, "U") in ("U", "T"):
                sql = f"""CREATE FUNCTION "{name}"(int DEFAULT 1) RETURNS int LANGUAGE plpgsql
                    AS $$BEGIN RAISE EXCEPTION 'called' USING ERRCODE = '{HARMFUL}'; END$$"""
                conn.execute(sql.encode())
        conn.execute("SET escape_string_warning = off")
        yield conn
        conn.execute("DROP SCHEMA plain_reads CASCADE")


@pytest.fixture(params=["on", "off"])
def mode(conn: psycopg.Connection[Any], request: pytest.FixtureRequest) -> bool:
    """Whether a backslash in a plain string escapes, as it is set in the session."""
    conn.execute(f"SET standard_conforming_strings = {request.param}")
    return bool(request.param == "off")


def count(conn: psycopg.Connection[Any], text: str) -> Literal["one", "several"] | None:
    """How many statements the server sees in a text, without running it; None: an error."""
    result = conn.pgconn.prepare(b"", text.encode())
    if result.status == psycopg.pq.ExecStatus.COMMAND_OK:
        return "one"
    state = (result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = result.error_field(psycopg.pq.DiagnosticField.MESSAGE_PRIMARY) or b""
    if b"cannot insert multiple commands" in message:
        return "several"
    return "one" if state[:2] == "42" and state != "42601" else None


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


def test_plain_reads_only_read(conn: psycopg.Connection[Any], mode: bool) -> None:
    """The server accepts each, so that they are what they look like."""
    texts = lines(READS.replace("public.", "plain_reads."))
    texts += lines(NEWER) if conn.info.server_version >= 170000 else []
    for text in texts:
        if not text.endswith("-- and") and not (mode and "U&" in text):
            try:
                with only_reading(conn):
                    assert conn.execute(text.encode()).nextset() is None, text
            except UNSUPPORTED:
                assert "xml" in text
            except psycopg.Error as error:
                pytest.fail(f"{text}: {error}")


def agrees(conn: psycopg.Connection[Any], text: str, mode: bool) -> bool:
    """Check the number of a text's statements; was it accepted."""
    seen = count(conn, text)
    if seen is None:
        return False
    found = statements(text, escapes=mode)
    assert (len(found) > 1) is (seen == "several"), found
    assert not [token for each in found for token in each.tokens if token.kind == "bad"]
    if kind_of(text) is not Kind.OTHER:
        assert seen == "one"
    return True


def test_statements_are_counted_as_by_the_server(conn: psycopg.Connection[Any], mode: bool) -> None:
    """Without running one."""
    texts = lines((READS + SINGLES + OTHERS).replace("public.", "plain_reads."))
    assert sum(agrees(conn, text, mode) for text in texts) > 200


NASTY = st.text("'\"\\$a;-/*\n\r %E&U", max_size=7)
GAP = st.sampled_from(
    [" ", "\n", "\r", "\t", "\f", "--;'\n", "--\r", "/*;'*/", "/*/*'*/;*/", " \n ", "--'\r --\n"]
)
VALUE = st.one_of(
    NASTY.map(lambda text: "'" + text.replace("'", "''") + "'"),
    NASTY.map(lambda text: "N'" + text.replace("'", "''") + "'"),
    NASTY.map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    NASTY.map(lambda text: "e'" + text.replace("\\", "\\\\").replace("'", "''") + "'"),
    NASTY.map(lambda text: "U&'" + text.replace("\\", "\\\\").replace("'", "''") + "'"),
    NASTY.map(lambda text: f"$a${text}$a$"),
    NASTY.map(lambda text: f"$${text}$$"),
    NASTY.map(lambda text: f"$é${text}$é$"),
    NASTY.map(lambda text: '1 AS "x' + text.replace('"', '""') + '"'),
    NASTY.map(lambda text: '1 AS U&"x' + text.replace("\\", "\\\\").replace('"', '""') + '"'),
    st.sampled_from(["1", "1.5e3", "a$b", "a$$b", "B'01'", "x'1f'", "+-1", "1 */**/2", "é$1$2"]),
)
JOIN = st.sampled_from([",", " ", "\n", "--;'\n", ",/*;*/", "||", "\r", ";", ";;"])


@given(values=st.lists(st.tuples(GAP, VALUE, JOIN), min_size=1, max_size=4))
@FUZZ
def test_values_in_all_quotes_end_where_the_server_ends_them(
    conn: psycopg.Connection[Any], mode: bool, values: list[tuple[str, str, str]]
) -> None:
    """Also those that go on after a newline; whatever is in them."""
    text = "SELECT"
    for gap, value, join in values:
        text += gap + value + join + (" SELECT" if join.startswith(";") else "")
    assume(agrees(conn, text.rstrip(",|") + " ", mode))


TOKENS = [
    *(
        "'",
        "''",
        '"',
        "\\",
        "\\'",
        "$$",
        "$a$",
        "--",
        "/*",
        "*/",
        "\n",
        "\r",
        ";",
        "E'",
        "U&'",
        "N'",
    ),
    *("SELECT 1", "SELECT ", "foo(1)", ", ", "||", "'a'", "FOR UPDATE", " FROM t", "INTO x", "%s"),
    *("%(a)s", "%%", "nextval('s')", "pg_advisory_xact_lock(1)", "lower('A')", " AS x", "a", " "),
]


@given(tokens=st.lists(st.sampled_from(TOKENS), max_size=12))
@FUZZ
def test_soups_are_what_they_look_like(
    conn: psycopg.Connection[Any], mode: bool, tokens: list[str]
) -> None:
    """Of quotes, comments and harmful calls: where one is a plain read, it only reads."""
    text = "SELECT " + "".join(tokens)
    agrees(conn, text, mode)
    if kind_of(text) is Kind.READ:
        read(conn, text)
        read(conn, text.replace("%s", "1").replace("%(a)s", "1").replace("%%", "%"))


CONTEXTS = """
SELECT {0} | SELECT a {0} FROM t | SELECT (a) {0} FROM t | SELECT a, {0} FROM t | VALUES ({0})
SELECT * FROM t WHERE {0} | SELECT * FROM t WHERE a {0} | SELECT * FROM {0} | SELECT * FROM t {0}
SELECT * FROM t, {0} | SELECT * FROM t JOIN u ON {0} | SELECT * FROM t JOIN u USING (a) {0}
SELECT * FROM (SELECT 1) {0} | SELECT count(*) {0} FROM t | SELECT DISTINCT ON (a) {0} FROM t
SELECT a FROM t ORDER BY {0} | SELECT a FROM t ORDER BY a {0} | SELECT a FROM t GROUP BY {0}
SELECT a FROM t GROUP BY a, {0} | SELECT a FROM t GROUP BY GROUPING SETS (a, {0}) | TABLE t {0}
SELECT a FROM t LIMIT {0} | SELECT CASE {0} WHEN 1 THEN 2 END | SELECT CAST({0} AS int)
SELECT 'x' {0} | SELECT NOT {0} | SELECT a NOT {0} FROM t | SELECT a AT TIME {0} FROM t
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY {0}) FROM t
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a), {0} FROM t
SELECT sum(a) OVER (PARTITION BY {0}) FROM t | SELECT sum(a) OVER (ROWS {0} PRECEDING) FROM t
WITH {0} AS (SELECT 1) SELECT 1 | WITH x AS (SELECT 1), {0} SELECT 1 | WITH x AS {0}
WITH x AS (SELECT 1) SELECT * FROM x, {0} | SELECT ARRAY[{0}] | SELECT (ARRAY[1])[1] {0}
SELECT substring('x' {0}) | SELECT trim({0}) | SELECT extract({0}) | SELECT coalesce({0})
SELECT overlay('a' placing 'b' from {0}) | SELECT 1 UNION {0} | SELECT * FROM ROWS FROM ({0})
SELECT * FROM generate_series(1, 2) {0} | SELECT * FROM t TABLESAMPLE {0}
SELECT * FROM t TABLESAMPLE system (1) {0} | SELECT xmlelement(name a, {0})
SELECT * FROM xmltable('/a' PASSING {0} COLUMNS a int) | SELECT xmlparse({0})
SELECT * FROM xmltable('/a' PASSING '<a/>' {0}) | SELECT json_value(jsonb '1', '$' {0})
SELECT * FROM json_table('[1]'::jsonb, '$[*]' COLUMNS (a int {0})) | SELECT json_object({0})
SELECT interval '1' {0} | SELECT numeric(3) {0} | SELECT 1 OPERATOR(pg_catalog.+) {0}
SELECT a IS {0} FROM t | SELECT a BETWEEN {0} AND 2 FROM t | SELECT 'a' LIKE 'b' {0}
SELECT 'a' SIMILAR TO {0} | SELECT (1).{0} | SELECT a.{0} | SELECT 'a' COLLATE "C" {0}
SELECT a FROM t FETCH FIRST {0} | SELECT a FROM t OFFSET {0} | SELECT 1::{0} | SELECT EXISTS {0}
"""
BEFORE = st.sampled_from(sorted(KEYWORDS)) | st.sampled_from(
    ["", "(", ",", ")", "'x'", "1", "foo", '"q"', "=", "::", "pg_catalog.", "distinct on (a)"]
)


@given(
    contexts=st.permutations([each for line in lines(CONTEXTS) for each in line.split(" | ")]),
    first=BEFORE,
    second=BEFORE,
)
@FUZZ
def test_no_function_is_called_that_looks_like_a_part_of_the_grammar(
    conn: psycopg.Connection[Any], contexts: list[str], first: str, second: str
) -> None:
    """Wherever a word and a parenthesis are plain, they are none of our functions."""
    for context, name in zip(contexts, SPECIAL, strict=False):
        text = context.format(f"{first} {second} {name}(1)")
        if kind_of(text) is Kind.READ:
            read(conn, text)


def test_our_functions_are_no_harmless_ones(conn: psycopg.Connection[Any]) -> None:
    """They are there, and each is called where nothing hides it."""
    assert not set(SPECIAL) & HARMLESS
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("SELECT over(1)")
    assert caught.value.sqlstate == HARMFUL
