"""The queries of the tests, by each pool's own means: an adapter for each pool."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

Row = tuple[int, int]


@dataclass(frozen=True)
class Setup:
    """What every store is made with: a libpq connection string, and the connections of a pool."""

    dsn: str
    size: int


class Store(Protocol):
    """A pool behind the application. All but `row_in_transaction` are in autocommit."""

    def __init__(self, setup: Setup) -> None: ...

    async def open(self) -> None:
        """Open the pool."""

    async def close(self) -> None:
        """Close the pool."""

    async def row(self, key: int) -> Any:
        """Read one row, a pair of its key and number."""

    async def rows(self, keys: list[int]) -> list[Any]:
        """Read rows by one query each, all on the same connection if one is borrowed."""

    async def fortunes(self) -> list[Any]:
        """Read all pairs of number and message."""

    async def update(self, changes: list[Row]) -> None:
        """Read each row by one query, then write all of them: pairs of new number and key."""


@runtime_checkable
class Transactions(Store, Protocol):
    """A store that can read in a transaction."""

    async def row_in_transaction(self, key: int) -> Any:
        """Read one row in a transaction."""


STORES = {
    "asyncpool": "_psycopg:Borrowed",
    "asyncpool one-shots": "_psycopg:OneShots",
    "psycopg_pool": "_psycopg:PsycopgPool",
    "asyncpg": "_asyncpg:Asyncpg",
    "asyncpg-no-reset": "_asyncpg:AsyncpgNoReset",
    "sqlalchemy": "_sqlalchemy:SQLAlchemy",
    "psqlpy": "_psqlpy:Psqlpy",
}


def find(name: str) -> type[Store]:
    """Return the class of a store.

    Raises:
        ImportError: the pool is not installed.
    """
    module, _, kind = STORES[name].partition(":")
    found: type[Store] = getattr(import_module(f"benchmarks.web.{module}"), kind)
    return found
