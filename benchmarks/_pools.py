"""The compared pools, and the protocol of their adapters.

Each pool has an adapter in `peers`. An adapter is imported only when its pool is requested, so only
pools that are not installed are left out.
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
"""The application_name of every connection, to count those that are still closing."""


@dataclass(frozen=True)
class Setup:
    """The settings of a pool, equal for all pools.

    Args:
        dsn: a libpq connection string.
        size: connections, minimum and maximum.
        timeout: seconds that a request may wait, longer than any wait.
        autocommit: whether connections are in autocommit mode; else each lease is one transaction.
    """

    dsn: str
    size: int
    timeout: float
    autocommit: bool = False


class Subject(Protocol):
    """A pool under test. `borrow` is the pool's own bound method, so it has no overhead.

    After `open` a pool that grows on demand may still have no connections.
    """

    borrow: Borrow

    async def open(self) -> None:
        """Make the pool, with all its connections if it can open them in advance."""

    async def close(self) -> None:
        """Close the pool with all its connections."""

    async def select(self) -> Any:
        """Borrow a connection, run `SELECT 1`, fetch the row, return the connection."""

    async def by_key(self) -> Any:
        """Borrow a connection, read the row of `KEY`, return the connection."""

    async def twenty(self) -> None:
        """Borrow a connection, read the row of `KEY` twenty times, return the connection."""

    async def transaction(self) -> None:
        """Borrow a connection, run three statements in one transaction, return the connection."""

    async def fetch(self) -> Any:
        """Borrow a connection, fetch all rows of `FETCH`, return the connection."""

    async def ask(self, conn: Any) -> Any:
        """Run `SELECT 1` on a leased connection, and fetch the row."""


@runtime_checkable
class OneShots(Subject, Protocol):
    """A pool that can run a single statement."""

    async def one_shot(self, query: str, params: list[int]) -> Any:
        """Run a single statement by the pool's shortest API, and fetch all its rows."""

    async def write_once(self, query: str, params: list[int]) -> Any:
        """Run a single statement that returns no rows by the pool's shortest API."""


@runtime_checkable
class NullPools(Protocol):
    """A library that also has a pool which keeps no connection."""

    def null_pool(self) -> AbstractAsyncContextManager[Any]:
        """Make such a pool, which `async with` opens; its `connection()` borrows a connection."""


@runtime_checkable
class Copier(Subject, Protocol):
    """A pool whose connections support COPY."""

    async def copy_out(self, conn: Any, load: Load) -> int:
        """Read the lines of the load from the server, and return their bytes."""

    async def copy_in(self, conn: Any, load: Load) -> None:
        """Send the lines of the load to the server."""


Maker = Callable[[Setup], Subject]

OURS = "asyncpool"
REFERENCE = "psycopg_pool"
PGBENCH = "pgbench"
"""The prefix of pgbench's lines in the table; it is no pool."""
POOLS = {
    OURS: "ours:Ours",
    "asyncpool-psycopg-wait": "ours:OursPsycopgWait",
    REFERENCE: "psycopg_pool:PsycopgPool",
    "asyncpg": "asyncpg:Asyncpg",
    "asyncpg-no-reset": "asyncpg:AsyncpgNoReset",
    "psqlpy": "psqlpy:Psqlpy",
    "sqlalchemy": "sqlalchemy:SQLAlchemy",
    "aiopg": "aiopg:Aiopg",
}


def find(names: list[str]) -> tuple[dict[str, Maker], list[str]]:
    """Return the makers of the installed pools, and a note for each missing one."""
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
    """Convert a connection string to a URI, for pools that accept nothing else."""
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    user, password = quote(parts.pop("user", ""), safe=""), parts.pop("password", None)
    if password is not None:
        user += f":{quote(password, safe='')}"
    database = quote(parts.pop("dbname", ""), safe="")
    place = ""
    if not parts.get("host", "").startswith("/"):
        place = parts.pop("host", "") + (f":{parts.pop('port')}" if "port" in parts else "")
    return f"{scheme}://{user}@{place}/{database}?{urlencode(parts)}"
