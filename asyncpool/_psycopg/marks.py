"""Marks on the sessions of a pool, in their `application_name`, which other sessions can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import psycopg

from asyncpool._psycopg.own_statements import RESETS, run_in_autocommit


class SupportsMarks(Protocol):
    """An object that marks the sessions of a pool in their `application_name`."""

    def options(self, *given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options to add to those given, of which the later have precedence."""
        ...

    def is_lost(self, conn: psycopg.AsyncConnection[Any]) -> bool:
        """Whether a session has to be marked again before its next lease."""
        ...

    def renewal(self, conn: psycopg.AsyncConnection[Any], *, reset: bool = False) -> str:
        """Return a statement that marks a session again, `reset`: after RESET ALL; "" for none."""
        ...


def reset_statements(reset: object, conn: Any, marks: SupportsMarks | None) -> str:
    """Return the statements of a reset level, with that which renews the session's mark."""
    statements = RESETS[reset] if isinstance(reset, str) else ""
    renewal = marks.renewal(conn, reset=True) if statements and marks is not None else ""
    return f"{statements}; {renewal}" if renewal else statements


async def renew_mark(conn: psycopg.AsyncConnection[Any], marks: SupportsMarks | None) -> None:
    """Renew the session's mark, if it has lost it."""
    if marks is not None and (renewal := marks.renewal(conn)):
        await run_in_autocommit(conn, renewal.encode())
