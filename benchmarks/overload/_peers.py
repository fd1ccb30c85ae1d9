"""The pools under test: what a request does with each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import import_module
from typing import Any, Protocol

import asyncpool
from benchmarks._pools import Setup
from benchmarks.overload._rows import SIZE

SLEEP = "SELECT pg_sleep(%s)"
UPDATE = "UPDATE overload_hot SET n = n + 1 WHERE id = 1"
CREATE = (
    "DROP TABLE IF EXISTS overload_hot;"
    " CREATE TABLE overload_hot (id int PRIMARY KEY, n bigint NOT NULL);"
    " INSERT INTO overload_hot VALUES (1, 0)"
)
DROP = "DROP TABLE overload_hot"


class Peer(Protocol):
    """A pool under test."""

    async def open(self) -> None:
        """Open the pool."""

    async def close(self) -> None:
        """Close the pool with all its connections."""

    def borrow(self, limit: float | None) -> AbstractAsyncContextManager[Any]:
        """Borrow a connection in `limit` seconds; None: in the time limit of the pool."""

    async def sleep(self, conn: Any, seconds: float) -> None:
        """Let the server sleep."""

    async def update(self, conn: Any, seconds: float) -> None:
        """Update the hot row in a transaction, which then sleeps."""

    async def one_shot(self, seconds: float, limit: float | None) -> None:
        """Let the server sleep, in a statement that the pool itself runs."""

    def within(
        self, limit: float, priority: int, flow: str | None
    ) -> AbstractContextManager[Any] | None:
        """Tell the deadline, the priority and the flow of a block; None: this pool knows none."""

    def turn(self, key: str) -> AbstractAsyncContextManager[Any]:
        """Let one task a key on."""


class _Plain:
    """A pool that knows neither deadlines of blocks nor turns."""

    def __init__(self, peer: Any) -> None:
        self._peer = peer
        self.open = peer.open
        self.close = peer.close

    def within(
        self, limit: float, priority: int, flow: str | None
    ) -> AbstractContextManager[Any] | None:
        return None

    def turn(self, key: str) -> AbstractAsyncContextManager[Any]:
        raise NotImplementedError("this pool has no turns")

    async def one_shot(self, seconds: float, limit: float | None) -> None:
        raise NotImplementedError("this pool runs no statements")


class _Psycopg(_Plain):
    """A pool of psycopg's connections."""

    def borrow(self, limit: float | None) -> AbstractAsyncContextManager[Any]:
        found: AbstractAsyncContextManager[Any] = self._peer.pool.connection(timeout=limit)
        return found

    async def sleep(self, conn: Any, seconds: float) -> None:
        await conn.execute(SLEEP, (seconds,))

    async def update(self, conn: Any, seconds: float) -> None:
        async with conn.transaction():
            await conn.execute(UPDATE)
            await conn.execute(SLEEP, (seconds,))


class _Ours(_Psycopg):
    """asyncpool's pool."""

    async def one_shot(self, seconds: float, limit: float | None) -> None:
        await self._peer.pool.fetchval(SLEEP, (seconds,), timeout=limit)

    def within(
        self, limit: float, priority: int, flow: str | None
    ) -> AbstractContextManager[Any] | None:
        return asyncpool.within(limit, priority=priority, flow=flow)

    def turn(self, key: str) -> AbstractAsyncContextManager[Any]:
        found: AbstractAsyncContextManager[Any] = self._peer.pool.turn(key)
        return found


class _Asyncpg(_Plain):
    """asyncpg's pool; its one-shots have no limit for the wait, so that the task has one."""

    def borrow(self, limit: float | None) -> AbstractAsyncContextManager[Any]:
        found: AbstractAsyncContextManager[Any] = self._peer.pool.acquire(timeout=limit)
        return found

    async def sleep(self, conn: Any, seconds: float) -> None:
        await conn.execute(SLEEP.replace("%s", "$1"), seconds)

    async def update(self, conn: Any, seconds: float) -> None:
        async with conn.transaction():
            await conn.execute(UPDATE)
            await conn.execute(SLEEP.replace("%s", "$1"), seconds)

    async def one_shot(self, seconds: float, limit: float | None) -> None:
        async with asyncio.timeout(limit):
            await self._peer.pool.fetchval(SLEEP.replace("%s", "$1"), seconds)


class _SQLAlchemy(_Plain):
    """SQLAlchemy's engine; the limit of all its requests is that of the engine."""

    def __init__(self, peer: Any) -> None:
        super().__init__(peer)
        text = import_module("sqlalchemy").text
        self._sleep, self._update = text(SLEEP.replace("%s", ":seconds")), text(UPDATE)

    def borrow(self, limit: float | None) -> AbstractAsyncContextManager[Any]:
        found: AbstractAsyncContextManager[Any] = self._peer.engine.connect()
        return found

    async def sleep(self, conn: Any, seconds: float) -> None:
        await conn.execute(self._sleep, {"seconds": seconds})

    async def update(self, conn: Any, seconds: float) -> None:
        await conn.execution_options(isolation_level="READ COMMITTED")
        async with conn.begin():
            await conn.execute(self._update)
            await conn.execute(self._sleep, {"seconds": seconds})


def _ours(overload: str) -> Callable[[Setup], Peer]:
    def make(setup: Setup) -> Peer:
        return _Ours(import_module("benchmarks.peers.ours").Ours(setup, overload=overload))

    return make


def _peer(module: str, name: str, kind: Callable[[Any], Peer]) -> Callable[[Setup], Peer]:
    def make(setup: Setup) -> Peer:
        return kind(getattr(import_module(f"benchmarks.peers.{module}"), name)(setup))

    return make


PEERS: dict[str, Callable[[Setup], Peer]] = {
    "asyncpool-wait": _ours("wait"),
    "asyncpool-refuse": _ours("refuse"),
    "psycopg_pool": _peer("psycopg_pool", "PsycopgPool", _Psycopg),
    "asyncpg": _peer("asyncpg", "Asyncpg", _Asyncpg),
    "sqlalchemy": _peer("sqlalchemy", "SQLAlchemy", _SQLAlchemy),
}
MODULES = {"psycopg_pool": "psycopg_pool", "asyncpg": "asyncpg", "sqlalchemy": "sqlalchemy"}
"""The module that a pool needs."""


def make(name: str, dsn: str, limit: float) -> Peer:
    """Make a pool that is not open yet, whose default limit is `limit` seconds."""
    return PEERS[name](Setup(dsn, SIZE, limit, autocommit=True))
