"""When a statement is prepared: after enough runs on any of a pool's connections.

psycopg counts the runs on each connection by itself, so with ten connections a statement runs fifty
times before the first of them prepares it. Here the connections of a pool share a count. What was
prepared on a connection and is gone again is counted there alone, as in psycopg: else a rollback,
or more statements than `prepared_max`, would have it prepared at every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from asyncpool._psycopg.internals import PostgresQuery, Prepare, PrepareManager

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

Key = tuple[bytes, tuple[int, ...]]
"""A statement's text for the server, and the types of its values."""

MAX_COUNTED = 512
"""Maximum number of statements with a shared count; if there are more, all counts begin again."""
MAX_TEXT_LENGTH = 4096
"""Bytes beyond which a statement has no shared count."""
MAX_DROPPED = 512
"""Statements dropped on a connection after which it uses no shared count at all."""
COUNTED = (b"SELECT", b"INSERT", b"UPDATE", b"DELETE", b"MERGE")
"""Beginnings of the command tags of statements with a shared count."""


class RunCounts:
    """How often the connections of a pool have run each statement without preparing it."""

    def __init__(self) -> None:
        self._counts: dict[Key, int] = {}

    def of(self, key: Key) -> int:
        """Return the count of a statement."""
        return self._counts.get(key, 0)

    def add(self, key: Key) -> None:
        """Count a run."""
        if key not in self._counts:
            if len(key[0]) > MAX_TEXT_LENGTH:
                return
            if len(self._counts) >= MAX_COUNTED:
                self._counts.clear()
        self._counts[key] = self.of(key) + 1


class PreparedStatements(PrepareManager):
    """psycopg's map of a connection's prepared statements, with the counts of a pool."""

    runs: RunCounts | None = None
    """The counts that the connections of a pool share; None: this connection counts by itself."""

    def __init__(self) -> None:
        super().__init__()
        self._dropped: set[Key] = set()
        """Statements that this connection has forgotten, and that it counts by itself."""

    def get(self, query: PostgresQuery, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        """Return whether a statement is or is to be prepared, and its name."""
        if prepare is None and self.runs is not None and self.prepare_threshold is not None:
            key = (query.query, query.types)
            if self.runs.of(key) >= self.prepare_threshold and key not in self._dropped:
                prepare = True
        return super().get(query, prepare)

    def maybe_add_to_cache(self, query: PostgresQuery, prep: Prepare, name: bytes) -> Key | None:
        """Count a run; return the statement's key if psycopg has to see the results."""
        added = super().maybe_add_to_cache(query, prep, name)
        if added is None and prep is Prepare.NO and self.runs is not None:
            key = (query.query, query.types)
            if self.runs.of(key):  # else it is no statement with a shared count
                self.runs.add(key)
        return added

    def validate(self, key: Key, prep: Prepare, name: bytes, results: Sequence[PGresult]) -> None:
        """Record the results of a statement's first run on this connection."""
        super().validate(key, prep, name, results)
        if prep is Prepare.NO and self.runs is not None and key in self._counts:
            # psycopg has kept the key, so the statement is a single one and has succeeded.
            tag = results[0].command_status or b""
            if tag.startswith(COUNTED):
                self.runs.add(key)

    def clear(self) -> bool:
        """Forget all statements, after a rollback or DDL for example."""
        if self.runs is not None:
            self.count_alone([*self._names, *self._counts])
        return super().clear()

    def count_alone(self, keys: Iterable[Key]) -> None:
        """Have this connection count statements by itself from now on."""
        self._dropped.update(keys)
        if len(self._dropped) > MAX_DROPPED:
            self._dropped.clear()
            self.runs = None

    def _rotate(self) -> None:
        if self.runs is not None and len(self._names) > self.prepared_max:
            self.count_alone([next(iter(self._names))])
        super()._rotate()


def share_runs(conn: Any, runs: RunCounts | None) -> None:
    """Have a connection use the counts of its pool, if its class can."""
    prepared = getattr(conn, "_prepared", None)
    if isinstance(prepared, PreparedStatements):
        prepared.runs = runs
