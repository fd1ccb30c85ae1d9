"""Template strings of Python 3.14 as queries: values are bound, never written into the text."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from psycopg import sql

from asyncpool import AsyncConnectionPool
from asyncpool._sql.kinds import Kind, classify

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="templates came with 3.14")


def _template(source: str, **values: Any) -> Any:
    """A template of these values; older Pythons could not read it as it stands."""
    return eval(f"t{source!r}", values)  # noqa: S307


@pytest.mark.parametrize("pipeline", [True, False], ids=["sharing", "borrowing"])
@pytest.mark.parametrize("value", [7, "x'; DROP TABLE shots; --", None, [1, 2], "%s {} \\"])
async def test_the_values_of_a_template_are_bound(dsn: str, pipeline: bool, value: Any) -> None:
    """Any value is bound, also in the sixth run, which is prepared."""
    async with AsyncConnectionPool(dsn, min_size=1, pipeline=pipeline) as pool:
        kind = "_int4" if isinstance(value, list) else "int4" if value == 7 else "text"
        for _ in range(8):
            query = _template(
                "SELECT {value}::{kind:i} AS {name:i}", value=value, kind=kind, name='a "name"'
            )
            assert await pool.fetchval(query) == value
            assert await pool.fetchone(query) == (value,)
            assert await pool.fetchall(query) == [(value,)]


async def test_templates_share_as_their_text_does(dsn: str) -> None:
    """Those that may share do; SET, which changes the session, has a connection of its own."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        for number in range(5):
            assert await pool.fetchval(_template("SELECT {n}::int", n=number)) == number
        assert pool.stats().requests_shared == 5
        nested = _template("SELECT {part:q}", part=_template("{n}::int + 1", n=6))
        assert await pool.fetchval(nested) == 7
        part = sql.SQL("{} + 1").format(6)
        assert await pool.fetchval(_template("SELECT {part:q}", part=part)) == 7
        assert await pool.fetchval(_template("{part:q} + 1", part=sql.SQL("SELECT 6"))) == 7
        assert pool.stats().requests_shared == 8
        assert await pool.execute(_template("SET work_mem = {n:l}", n="5MB")) == "SET"
        assert pool.stats().requests_shared == 8


async def test_a_templates_parts_count_as_its_text(dsn: str) -> None:
    """One part of it may be quick and another slow, or may not share at all."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        kinds = [
            classify(_template("SELECT {part:q}", part=part))
            for part in [sql.SQL("1"), sql.SQL("pg_sleep(1)"), _template("{n}", n=1)]
        ]
        assert kinds == [Kind.OTHER] * 3  # it cannot be told without a connection
        profile = pool._dispatcher.profiles.get
        assert profile(_template("SELECT {n}", n=1)) is profile(_template("SELECT {n}", n=2))
        assert classify(_template("{part:q}", part=sql.SQL("SET a.b TO 1"))) is Kind.OTHER


async def test_a_batch_and_executemany_of_templates(dsn: str) -> None:
    """A batch takes templates; `executemany`, whose values come apart, refuses as psycopg does."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        queries = [_template("SELECT {n}::int", n=number) for number in range(3)]
        assert await pool.batch(queries) == [[(0,)], [(1,)], [(2,)]]
        with pytest.raises(TypeError):
            await pool.executemany(queries[0], [[1]])
        with pytest.raises(TypeError):
            await pool.fetchval(queries[0], [1])
        assert await pool.fetchval("SELECT 1") == 1
