"""Who is compared: what a row may ask of a pool, and the list of them.

Each pool has an adapter of its own in `peers`, imported only when it is asked for, so that one that
is not installed is left out and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable
from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict

from benchmarks._sql import Load

Borrow = Callable[[], AbstractAsyncContextManager[Any]]

APPLICATION = "asyncpool-benchmarks"
"""The application_name of every connection, by which those that are still closing are counted."""


@dataclass(frozen=True)
class Setup:
    """How a pool is to be made: the same for all.

    Args:
        dsn: a libpq connection string.
        size: connections, least and most.
        timeout: seconds that a request may wait, more than any does.
        autocommit: whether a statement stands alone, else each borrowing is one transaction.
    """

    dsn: str
    size: int
    timeout: float
    autocommit: bool = False


class Subject(Protocol):
    """A pool under test. `borrow` is the pool's own bound method, so that nothing is added to it.

    After `open` the pool may still have no connections, where it grows on demand by nature.
    """

    borrow: Borrow

    async def open(self) -> None:
        """Make the pool, with as many connections as its documentation has a way to ask for."""

    async def close(self) -> None:
        """Close it with all its connections."""

    async def select(self) -> Any:
        """Borrow a connection, run `SELECT 1`, fetch the row, return the connection."""

    async def transaction(self) -> None:
        """Borrow a connection, run three statements in one transaction, return the connection."""

    async def fetch(self) -> Any:
        """Borrow a connection, fetch all rows of `FETCH`, return the connection."""

    async def ask(self, conn: Any) -> Any:
        """Run `SELECT 1` on a connection that is borrowed already, and fetch the row."""


@runtime_checkable
class OneShots(Subject, Protocol):
    """A pool by which a single statement can be run."""

    async def one_shot(self, query: str, params: list[int]) -> Any:
        """Run a statement by itself in the pool's own shortest way, and fetch all its rows."""

    async def write_once(self, query: str, params: list[int]) -> Any:
        """Run a statement that returns no rows by itself, in the pool's own shortest way."""


@runtime_checkable
class Copier(Subject, Protocol):
    """A pool whose connections have COPY."""

    async def copy_out(self, conn: Any, load: Load) -> int:
        """Take the lines of the load from the server, and return how many bytes they were."""

    async def copy_in(self, conn: Any, load: Load) -> None:
        """Give the lines of the load to the server."""


Maker = Callable[[Setup], Subject]

OURS = "asyncpool"
REFERENCE = "psycopg_pool"
PGBENCH = "pgbench"
"""No pool, but what begins the names of its lines in the table."""
POOLS = {
    OURS: "ours:Ours",
    "asyncpool-psycopg-wait": "ours:OursPsycopgWait",
    REFERENCE: "psycopg_pool:PsycopgPool",
    "asyncpg": "asyncpg:Asyncpg",
    "asyncpg-no-reset": "asyncpg:AsyncpgNoReset",
    "sqlalchemy": "sqlalchemy:SQLAlchemy",
    "aiopg": "aiopg:Aiopg",
}


def find(names: list[str]) -> tuple[dict[str, Maker], list[str]]:
    """The makers of the pools that are installed, and a note for each that is not."""
    makers: dict[str, Maker] = {}
    notes = []
    for name in names:
        module, _, kind = POOLS[name].partition(":")
        try:
            makers[name] = cast("Maker", getattr(import_module(f"benchmarks.peers.{module}"), kind))
        except ImportError as error:
            notes.append(f"{name} is left out: {error}")
    return makers, notes


def uri(dsn: str, scheme: str = "postgresql") -> str:
    """The connection string as a URI, for pools that take no other."""
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    user, password = quote(parts.pop("user", ""), safe=""), parts.pop("password", None)
    if password is not None:
        user += f":{quote(password, safe='')}"
    database = quote(parts.pop("dbname", ""), safe="")
    place = ""
    if not parts.get("host", "").startswith("/"):
        place = parts.pop("host", "") + (f":{parts.pop('port')}" if "port" in parts else "")
    return f"{scheme}://{user}@{place}/{database}?{urlencode(parts)}"
