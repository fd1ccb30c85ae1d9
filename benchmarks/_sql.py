"""The statements that are run, the same text for every pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import cycle

SELECT = "SELECT 1"
THREE = ("SELECT 1", "SELECT 2", "SELECT 3")
"""Of one transaction. They read no table: what is compared is what goes back and forth."""

FETCHED = 1000
FETCH = f"""
    SELECT i, i::bigint * 1000000007, i::smallint, i / 7.0::float8, i * 1e-3::float8,
        'a name of some length', i::text, i > 500, date '2024-01-01' + i,
        timestamp '2024-01-01' + i * interval '1 second'
    FROM generate_series(1, {FETCHED}) AS i
"""

ONE_SHOTS: dict[str, tuple[str, list[int]]] = {
    "constant": (SELECT, []),
    "key": ("SELECT amname, amtype FROM pg_catalog.pg_am WHERE oid = %s::oid", [2]),
    "hundred": (
        """SELECT i, i::bigint * 1000000007, 'a name of some length', i > 50
        FROM generate_series(1, 100) AS i""",
        [],
    ),
}
"""Statements with nothing around them, each with its parameters, in psycopg's placeholders."""

COUNTED = 1000
"""Rows that are written to, so many that no request waits for another's row."""


@dataclass(frozen=True)
class Counters:
    """A table of counters, which are raised one after another, each by its key."""

    table: str
    keys: cycle[int] = field(default_factory=lambda: cycle(range(COUNTED)))

    @property
    def query(self) -> str:
        """Raises one counter, in psycopg's placeholders."""
        return f"UPDATE {self.table} SET number = number + 1 WHERE id = %s"

    def definition(self) -> str:
        """The table, with room to update rows in place, and no write-ahead log to wait for."""
        return (
            f"CREATE UNLOGGED TABLE {self.table} (id integer PRIMARY KEY, number bigint)"
            f" WITH (fillfactor = 50);"
            f" INSERT INTO {self.table} SELECT i, 0 FROM generate_series(0, {COUNTED - 1}) AS i"
        )

    def next_key(self) -> int:
        """Return the key of the counter whose turn it is."""
        return next(self.keys)


LINE = 100
"""Bytes of a line in COPY's text format: two columns, a tab and the end of the line."""
BLOCK = 500
"""Lines that go in at once."""


@dataclass(frozen=True)
class Load:
    """What a COPY carries, in lines of 100 bytes, and the table that it goes into."""

    table: str
    lines: int

    def query(self) -> str:
        """Makes the lines one by one, so that no table has to be read."""
        first = 10**7
        return (
            f"SELECT generate_series({first}, {first + self.lines - 1}), repeat('x', {LINE - 10})"
        )

    def definition(self) -> str:
        """The table, which needs no write-ahead log."""
        return f"CREATE UNLOGGED TABLE {self.table} (number integer, padding text)"

    async def source(self) -> AsyncIterator[bytes]:
        """The same lines in blocks, made ahead of time but for the last."""
        line = b"%d\t%s\n" % (10**7, b"x" * (LINE - 10))
        block = line * BLOCK
        for _ in range(self.lines // BLOCK):
            yield block
        if rest := self.lines % BLOCK:
            yield line * rest
