"""The lexer and the server agree on what a text is, and a plain read does nothing but read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import psycopg
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncpool._sql.functions import HARMLESS
from asyncpool._sql.kinds import Kind, kind_of
from asyncpool._sql.lexer import statements
from tests._tools import few
from tests.unit._statements import NEWER, OTHERS, READS, SINGLES, lines

from ._plain_reads import FUZZ, HARMFUL, SPECIAL, connected, only_reading, read

UNSUPPORTED = (psycopg.errors.FeatureNotSupported,)
"""A server without libxml."""


@pytest.fixture(scope="module")
def conn(asyncpool_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit to the schema."""
    with connected(asyncpool_dsn) as conn:
        yield conn


@pytest.fixture(params=few(["on", "off"]))
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


def test_plain_reads_only_read(conn: psycopg.Connection[Any], mode: bool) -> None:
    """The server accepts each, so that they are what they look like."""
    texts = lines(READS.replace("public.", ""))
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
    bad = [token.text for each in found for token in each.tokens if token.kind == "bad"]
    if conn.info.server_version < 150000:  # "SELECT 1a" is "SELECT 1 AS a", and never shared
        bad = [text for text in bad if not re.match(r"\$?\d", text)]
    assert not bad
    if kind_of(text) is not Kind.OTHER:
        assert seen == "one"
    return True


def test_statements_are_counted_as_by_the_server(conn: psycopg.Connection[Any], mode: bool) -> None:
    """Without running one."""
    texts = lines((READS + SINGLES + OTHERS).replace("public.", ""))
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
@pytest.mark.exhaustive
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


def test_our_functions_are_no_harmless_ones(conn: psycopg.Connection[Any]) -> None:
    """They are there, and each is called where nothing hides it."""
    assert not set(SPECIAL) & HARMLESS
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("SELECT over(1)")
    assert caught.value.sqlstate == HARMFUL
