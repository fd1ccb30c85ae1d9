"""The pools under test: how a process of the fleet opens each of them, and what it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import asyncpool
from benchmarks._pools import uri
from benchmarks.fleet._rows import MIN_SIZE, RESERVE, SIZE

AGAIN = 0.25
"""Seconds after which a pool is made again that could not be opened: a supervisor's restart."""
MODULES = {"psycopg_pool": "psycopg_pool", "asyncpg": "asyncpg"}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a pool, and the places that its fleet leaves free."""

    min_size: int = MIN_SIZE
    max_size: int = SIZE
    reserve: int = RESERVE


class Peer(Protocol):
    """A pool under test."""

    async def open(self) -> None:
        """Open the pool."""

    async def close(self) -> None:
        """Close the pool with all its connections."""

    async def ask(self, seconds: float) -> None:
        """Borrow a connection on which the server sleeps; with 0 seconds, `SELECT 1`."""


class _Psycopg:
    """A pool of psycopg's connections."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    async def open(self) -> None:
        await self.pool.open()

    async def close(self) -> None:
        await self.pool.close()

    async def ask(self, seconds: float) -> None:
        async with self.pool.connection() as conn:
            if seconds:
                await conn.execute("SELECT pg_sleep(%s)", (seconds,))
            else:
                await conn.execute("SELECT 1")


class _Asyncpg:
    """asyncpg's pool, which is made again until the server has a place for it."""

    def __init__(self, dsn: str, sizes: Sizes) -> None:
        self._dsn, self._sizes = uri(dsn), sizes
        self._module = import_module("asyncpg")
        self._pool: Any = None

    async def open(self) -> None:
        refused = self._module.PostgresError, OSError
        sizes = {"min_size": self._sizes.min_size, "max_size": self._sizes.max_size}
        while self._pool is None:
            try:
                self._pool = await self._module.create_pool(self._dsn, **sizes)
            except refused:
                await asyncio.sleep(AGAIN)

    async def close(self) -> None:
        if self._pool is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._pool.close(), 5.0)

    async def ask(self, seconds: float) -> None:
        async with self._pool.acquire(timeout=30.0) as conn:
            if seconds:
                await conn.execute(f"SELECT pg_sleep({seconds})")
            else:
                await conn.execute("SELECT 1")


def _by_psycopg(kind: Any, dsn: str, sizes: Sizes, **options: Any) -> Peer:
    return _Psycopg(
        kind(
            dsn,
            min_size=sizes.min_size,
            max_size=sizes.max_size,
            kwargs={"autocommit": True},
            open=False,
            **options,
        )
    )


def _fleet(dsn: str, sizes: Sizes) -> Peer:
    budget = asyncpool.Fleet("bench", reserve=sizes.reserve)
    return _by_psycopg(asyncpool.AsyncConnectionPool, dsn, sizes, budget=budget)


def _plain(dsn: str, sizes: Sizes) -> Peer:
    return _by_psycopg(asyncpool.AsyncConnectionPool, dsn, sizes)


def _psycopg_pool(dsn: str, sizes: Sizes) -> Peer:
    return _by_psycopg(import_module("psycopg_pool").AsyncConnectionPool, dsn, sizes)


OURS = "asyncpool-fleet"
PEERS: dict[str, Callable[[str, Sizes], Peer]] = {
    OURS: _fleet,
    "asyncpool": _plain,
    "psycopg_pool": _psycopg_pool,
    "asyncpg": _Asyncpg,
}


def make(name: str, dsn: str, sizes: Sizes) -> Peer:
    """Make a pool that is not open."""
    return PEERS[name](dsn, sizes)
