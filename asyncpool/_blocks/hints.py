"""Hints for names and placeholders of other libraries: the pool's own to write instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

import psycopg

HINTS = {
    # asyncpg
    "fetch": "fetchall()",
    "fetchrow": "fetchone()",
    "fetchmany": "executemany() or batch()",
    "copy_from_query": "cur.copy() in `async with pool.cursor() as cur`",
    "copy_from_table": "cur.copy() in `async with pool.cursor() as cur`",
    "copy_records_to_table": "cur.copy() in `async with pool.cursor() as cur`",
    "copy_to_table": "cur.copy() in `async with pool.cursor() as cur`",
    "add_listener": "`async with pool.listen(channel) as notifications`",
    "expire_connections": "drain()",
    "get_idle_size": "stats().idle",
    "get_max_size": "max_size",
    "get_min_size": "min_size",
    "get_size": "stats().size",
    "is_closing": "closed",
    "remove_listener": "`async with pool.listen(channel) as notifications`",
    "terminate": "close(timeout=0)",
    # databases
    "connect": "open()",
    "disconnect": "close()",
    "execute_many": "executemany()",
    "fetch_all": "fetchall()",
    "fetch_one": "fetchone()",
    "fetch_val": "fetchval()",
    "iterate": "cur.stream() in `async with pool.cursor() as cur`",
}


NUMBERED = re.compile(r"\$[1-9]")
REFUSAL = re.compile(r"the query has \d+ placeholders")
"""The beginning of psycopg's error where a query has no placeholder for its values."""


def explain_placeholders(error: Exception, query: object, params: object) -> None:
    """Raise an error that explains psycopg's placeholders, if a query has `$1`.

    Args:
        error: the error that psycopg raised.
        query, params: the statement.
    """
    if params is None or not isinstance(query, str) or not NUMBERED.search(query):
        return
    # Any other error is a row factory's or a value's, and the statement may have run.
    if not isinstance(params, Sequence | Mapping) or REFUSAL.match(str(error)):
        msg = f"{error}: psycopg's placeholder is %s, not $1: pass the values as a sequence"
        raise psycopg.ProgrammingError(msg) from error


class Hint:
    """A descriptor that raises AttributeError and names what to use instead.

    A `__getattr__` would make every other attribute of the class slower to read.

    Args:
        instead: the pool's own name or call.
    """

    __slots__ = ("_instead", "_name")

    def __init__(self, instead: str) -> None:
        self._instead = instead
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        msg = f"{owner.__name__!r} has no attribute {self._name!r}: write {self._instead}"
        raise AttributeError(msg, name=self._name, obj=owner if instance is None else instance)


def give_hints(owner: type, hints: Mapping[str, str] = HINTS) -> None:
    """Add a hint to a class for each name that it lacks; type checkers do not see them."""
    for name, instead in hints.items():
        if not hasattr(owner, name):
            hint = Hint(instead)
            hint.__set_name__(owner, name)
            setattr(owner, name, hint)
