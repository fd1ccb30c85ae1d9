"""The kinds of one-shot statements by their text: plain reads, single statements, all else."""

from __future__ import annotations

import pytest

from asyncpool._sql import Kind, classify

READS = """
SELECT 1
select * from t where a = %s and b ilike %(x)s;
SELECT cast(x AS numeric(10,2)), a::foo(3), extract(epoch from now()), trim(both 'x' from y)
SELECT substring(x from 1 for 2), overlay(a placing b from 1 for 2)
WITH a(x,y) AS (SELECT 1,2), b(z) AS MATERIALIZED (VALUES (1)) SELECT * FROM a JOIN b ON (x = z)
SELECT count(*) FILTER (WHERE x > 1) OVER (PARTITION BY y) FROM t
SELECT DISTINCT ON (a) lower(x) FROM t
"""


@pytest.mark.parametrize("text", READS.strip().splitlines())
def test_plain_reads(text: str) -> None:
    """They can do nothing but read."""
    assert classify(text) is Kind.READ


SINGLES = """
SELECT 1 FOR UPDATE
SELECT nextval('x')
SELECT (5).pg_sleep
SELECT g.setseed FROM generate_series(1,1) g
SELECT DISTINCT ON (a) foo(x) FROM t
SELECT a OPERATOR(pg_catalog.+) foo(1)
SELECT 1 INTO t
WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x
INSERT INTO t VALUES (';')
"""


@pytest.mark.parametrize("text", SINGLES.strip().splitlines())
def test_single_statements(text: str) -> None:
    """They may write, or it is not certain that they do not."""
    assert classify(text) is Kind.SINGLE


OTHERS = """
SELECT 1; SELECT 2
LISTEN x
SELECT 'a\\' , f()
SELECT x %s, y %(a'b)s from t'
"""


@pytest.mark.parametrize("text", OTHERS.strip().splitlines())
def test_all_else(text: str) -> None:
    """Several statements, other kinds, and what depends on the server's settings."""
    assert classify(text) is Kind.OTHER
