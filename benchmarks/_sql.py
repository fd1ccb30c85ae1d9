"""The statements, the same for every pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import cycle

SELECT = "SELECT 1"
THREE = ("SELECT 1", "SELECT 2", "SELECT 3")
"""The statements of one transaction; they read no table, as only the transfer is compared."""

FETCHED = 1000
FETCH = f"""
    SELECT i, i::bigint * 1000000007, i::smallint, i / 7.0::float8, i * 1e-3::float8,
        'a name of some length', i::text, i > 500, date '2024-01-01' + i,
        timestamp '2024-01-01' + i * interval '1 second'
    FROM generate_series(1, {FETCHED}) AS i
"""

KEY: tuple[str, list[int]] = (
    "SELECT amname, amtype FROM pg_catalog.pg_am WHERE oid = %s::oid",
    [2],
)
"""A read of one row by its key, with its parameters, in psycopg's placeholders."""

TWENTY = 20
"""Reads by key in one block."""

ONE_SHOTS: dict[str, tuple[str, list[int]]] = {
    "constant": (SELECT, []),
    "key": KEY,
    "hundred": (
        """SELECT i, i::bigint * 1000000007, 'a name of some length', i > 50
        FROM generate_series(1, 100) AS i""",
        [],
    ),
}
"""Single statements with their parameters, in psycopg's placeholders."""

COUNTED = 1000
"""Rows to update, enough that no request waits for a row lock."""


@dataclass(frozen=True)
class Counters:
    """A table of counters, which are incremented one after another by key."""

    table: str
    keys: cycle[int] = field(default_factory=lambda: cycle(range(COUNTED)))

    @property
    def query(self) -> str:
        """The statement that increments one counter, in psycopg's placeholders."""
        return f"UPDATE {self.table} SET number = number + 1 WHERE id = %s"

    def definition(self) -> str:
        """Return the DDL: an unlogged table with free space for updates in place."""
        return (
            f"CREATE UNLOGGED TABLE {self.table} (id integer PRIMARY KEY, number bigint)"
            f" WITH (fillfactor = 50);"
            f" INSERT INTO {self.table} SELECT i, 0 FROM generate_series(0, {COUNTED - 1}) AS i"
        )

    def next_key(self) -> int:
        """Return the key of the next counter."""
        return next(self.keys)


LINE = 100
"""Bytes of a line in COPY's text format: two columns, a tab and the end of the line."""
BLOCK = 500
"""Lines of a block."""


@dataclass(frozen=True)
class Load:
    """The data of a COPY, in lines of 100 bytes, and its target table."""

    table: str
    lines: int

    def query(self) -> str:
        """Return a query that generates the lines without reading a table."""
        first = 10**7
        return (
            f"SELECT generate_series({first}, {first + self.lines - 1}), repeat('x', {LINE - 10})"
        )

    def definition(self) -> str:
        """Return the DDL of an unlogged table."""
        return f"CREATE UNLOGGED TABLE {self.table} (number integer, padding text)"

    async def source(self) -> AsyncIterator[bytes]:
        """Yield lines of the same size in blocks; all but the last are made in advance."""
        line = b"%d\t%s\n" % (10**7, b"x" * (LINE - 10))
        block = line * BLOCK
        for _ in range(self.lines // BLOCK):
            yield block
        if rest := self.lines % BLOCK:
            yield line * rest
