"""The pools under test, each written as its own documentation shows, with its own defaults.

All get the same number of connections and the same time limit for a request that waits for one.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WRITE = "INSERT INTO ledger (id) VALUES (%s)"
SLEEP = "SELECT pg_sleep(%s)"


@dataclass(frozen=True)
class Setup:
    """The settings that are equal for all pools.

    Args:
        dsn: a libpq connection string, which may have several hosts.
        size: connections, minimum and maximum.
        limit: seconds that a request may wait for a connection.
        prepares: whether the server keeps prepared statements, which PgBouncer does not.
    """

    dsn: str
    size: int
    limit: float
    prepares: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The keywords for psycopg's `connect()`."""
        return {} if self.prepares else {"prepare_threshold": None}


class Peer(Protocol):
    """A pool under test."""

    async def open(self) -> None:
        """Open the pool; it may have no connections yet."""

    async def close(self) -> None:
        """Close the pool with all its connections."""

    def borrow(self) -> AbstractAsyncContextManager[Any]:
        """Borrow a connection for a block that is a transaction, committed at its end."""

    async def write(self, conn: Any, number: int) -> None:
        """Enter a number in the ledger."""

    async def sleep(self, conn: Any, seconds: float) -> None:
        """Let the server sleep."""


class _Psycopg:
    """A pool of psycopg's connections."""

    pool: Any

    async def open(self) -> None:
        await self.pool.open()

    async def close(self) -> None:
        await self.pool.close()

    def borrow(self) -> AbstractAsyncContextManager[Any]:
        found: AbstractAsyncContextManager[Any] = self.pool.connection()
        return found

    async def write(self, conn: Any, number: int) -> None:
        await conn.execute(WRITE, [number])

    async def sleep(self, conn: Any, seconds: float) -> None:
        await conn.execute(SLEEP, [seconds])


def _of_psycopg(kind: Any, setup: Setup, **options: Any) -> Peer:
    peer = _Psycopg()
    peer.pool = kind(
        setup.dsn,
        min_size=setup.size,
        max_size=setup.size,
        timeout=setup.limit,
        kwargs=setup.options,
        open=False,
        **options,
    )
    return peer


def ours(setup: Setup) -> Peer:
    """Make an `asyncpool.AsyncConnectionPool`."""
    return _of_psycopg(import_module("asyncpool").AsyncConnectionPool, setup)


def ours_check(setup: Setup) -> Peer:
    """Make an `asyncpool.AsyncConnectionPool` with a round trip before each lease."""
    kind = import_module("asyncpool").AsyncConnectionPool
    return _of_psycopg(kind, setup, check=kind.check_connection)


def psycopg_pool(setup: Setup) -> Peer:
    """Make a `psycopg_pool.AsyncConnectionPool`."""
    return _of_psycopg(import_module("psycopg_pool").AsyncConnectionPool, setup)


def psycopg_pool_check(setup: Setup) -> Peer:
    """Make a `psycopg_pool.AsyncConnectionPool` with its check before each lease."""
    kind = import_module("psycopg_pool").AsyncConnectionPool
    return _of_psycopg(kind, setup, check=kind.check_connection)


@dataclass
class Asyncpg:
    """A pool of `asyncpg.create_pool()`, with the connection string's options as keywords."""

    setup: Setup
    pool: Any = field(init=False, default=None)

    async def open(self) -> None:
        parts = {key: str(value) for key, value in conninfo_to_dict(self.setup.dsn).items()}
        optional = {
            "password": parts.get("password"),
            "target_session_attrs": parts.get("target_session_attrs"),
            "statement_cache_size": None if self.setup.prepares else 0,
        }
        self.pool = await import_module("asyncpg").create_pool(
            host=parts["host"].split(","),
            port=[int(port) for port in parts["port"].split(",")],
            user=parts["user"],
            database=parts["dbname"],
            server_settings={"application_name": parts["application_name"]},
            ssl=False,
            min_size=self.setup.size,
            max_size=self.setup.size,
            **{key: value for key, value in optional.items() if value is not None},
        )

    async def close(self) -> None:
        if self.pool is not None:
            await self.pool.close()

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Any]:
        async with self.pool.acquire(timeout=self.setup.limit) as conn, conn.transaction():
            yield conn

    async def write(self, conn: Any, number: int) -> None:
        await conn.execute(WRITE.replace("%s", "$1"), number)

    async def sleep(self, conn: Any, seconds: float) -> None:
        await conn.execute(SLEEP.replace("%s", "$1"), seconds)


class SQLAlchemy:
    """A `create_async_engine()` on psycopg: the `AsyncAdaptedQueuePool` without overflow."""

    def __init__(self, setup: Setup, *, pre_ping: bool) -> None:
        async def connect() -> Any:
            return await psycopg.AsyncConnection.connect(setup.dsn, **setup.options)

        self._text = import_module("sqlalchemy").text
        self._engine = import_module("sqlalchemy.ext.asyncio").create_async_engine(
            "postgresql+psycopg://",
            async_creator=connect,
            pool_size=setup.size,
            max_overflow=0,
            pool_timeout=setup.limit,
            pool_pre_ping=pre_ping,
        )

    async def open(self) -> None:
        """Do nothing: the engine connects at its first use."""

    async def close(self) -> None:
        await self._engine.dispose()

    def borrow(self) -> AbstractAsyncContextManager[Any]:
        found: AbstractAsyncContextManager[Any] = self._engine.begin()
        return found

    async def write(self, conn: Any, number: int) -> None:
        await conn.execute(self._text(WRITE.replace("%s", ":id")), {"id": number})

    async def sleep(self, conn: Any, seconds: float) -> None:
        await conn.execute(self._text(SLEEP.replace("%s", ":seconds")), {"seconds": seconds})


OURS = "asyncpool"
PEERS: dict[str, Callable[[Setup], Peer]] = {
    OURS: ours,
    "asyncpool-check": ours_check,
    "psycopg_pool": psycopg_pool,
    "psycopg_pool-check": psycopg_pool_check,
    "asyncpg": Asyncpg,
    "sqlalchemy": lambda setup: SQLAlchemy(setup, pre_ping=False),
    "sqlalchemy-pre-ping": lambda setup: SQLAlchemy(setup, pre_ping=True),
}
MODULES = {"psycopg_pool": "psycopg_pool", "asyncpg": "asyncpg", "sqlalchemy": "sqlalchemy"}
"""The module that a pool needs, by the start of the pool's name."""
