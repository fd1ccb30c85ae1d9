"""No text that a rollback pool passes on ends the transaction: a property test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus

from asyncpool.testing._transactions import controls

BODY = "CREATE FUNCTION pg_temp.f() RETURNS int BEGIN ATOMIC "
ENDS = ["COMMIT", "end", "ROLLBACK WORK", "COMMIT AND CHAIN", "PREPARE TRANSACTION 'x'"]
ASIDE = [
    *("SELECT 'BEGIN ATOMIC'", "SELECT 1 AS begin, 2 AS atomic", "SELECT 1 AS end", "SELECT 1 end"),
    *("SELECT ';'", "SELECT E'\\';'", "SELECT E'' \n'\\';'", "SELECT '\\'", "SELECT U&'\\0041;'"),
    *("SELECT N'\\'", "SELECT 'a'--;\r';'", "SELECT $$;$$", "SELECT $a$ $$; $a$", "SELECT 1$$;$$"),
    *(
        "SELECT 1 AS a$b$c",
        "SELECT 1 AS e$a$",
        'SELECT 1 AS ";"',
        'SELECT 1 AS U&";"',
        "SELECT $é$;$é$",
    ),
    *(
        "SELECT CASE WHEN true THEN 1 END",
        "SELECT 1 */*;*/2",
        "SELECT 1 +--;\n2",
        "/*/*;*/;*/",
        "--;\r",
    ),
    *(
        "CREATE TEMP TABLE x(begin atomic)",
        "SELECT (1)",
        "SELECT 'é'",
        "SELECT 1 AS é$$",
        "SELECT 1é$$",
    ),
    *(BODY + "SELECT 1; END", BODY + "SELECT CASE WHEN true THEN 1 END; END", BODY + "END"),
    *("SELECT (1", "SELECT 1)", "'", '"', "$$", "$a$", "/*", "*/", "\\", "--", "E'", ""),
]
GAPS = ["", " ", "\n", "\r", "\f", "--\n", "--'\r", "/**/", "/*'/*/*/*/*/", "--;\r", "/*;*/"]
STATEMENT = st.tuples(
    st.sampled_from(GAPS), st.sampled_from(ENDS * 5 + ASIDE), st.sampled_from(GAPS)
).map("".join)


@pytest.fixture(scope="module")
def conn(asyncpool_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit."""
    with psycopg.connect(asyncpool_dsn, autocommit=True) as conn:
        conn.execute("SET escape_string_warning = off")
        yield conn


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["on", "off"])
@given(parts=st.lists(STATEMENT, min_size=1, max_size=4))
@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_passed_on_never_ends_the_transaction(
    conn: psycopg.Connection[Any], mode: str, parts: list[str]
) -> None:
    """Each piece runs on its own, with either meaning of a backslash."""
    text = ";".join(parts).encode()
    conn.execute(f"SET standard_conforming_strings = {mode}")
    conn.execute("BEGIN")
    try:
        for piece, kind in controls(text, escapes=mode == "off"):
            if kind is None:
                conn.pgconn.exec_(piece)
                assert conn.info.transaction_status != TransactionStatus.IDLE, piece
    finally:
        conn.execute("ROLLBACK")
