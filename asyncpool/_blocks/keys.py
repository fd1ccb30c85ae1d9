"""`getconn(key=...)`: a connection stays with its key until it is released.

A key holds its connection for one lease. However that lease ends, the key is free again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic

from asyncpool._core.lease import Lease
from asyncpool._core.pool import Core
from asyncpool._core.settings import duration
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import ReleaseError


class Keys(Generic[ACT]):
    """The keys of one pool.

    Args:
        core: the pool.
    """

    def __init__(self, core: Core[ACT]) -> None:
        self.held: dict[Hashable, tuple[ACT, Lease]] = {}
        """The connection of each key, and its lease, which may have ended."""
        self._core = core
        self._acquiring: dict[Hashable, asyncio.Future[None]] = {}
        """The keys for which a request waits; the future is done when that wait has ended."""

    async def borrow(
        self, key: Hashable, timeout: float | None, acquire: Callable[[float], Awaitable[ACT]]
    ) -> ACT:
        """Return the connection of a key, or acquire one for it.

        While another task acquires a connection for the key, wait for the outcome of that.

        Args:
            key: the key.
            timeout: seconds for all of it; None: the pool's.
            acquire: acquires a connection within a number of seconds.
        """
        _require_hashable(key)
        core = self._core
        limit = core.settings.timeout if timeout is None else duration("timeout", timeout)
        left, deadline = limit, core.runtime.time() + limit
        while (conn := self.find(key)) is None:
            if (acquiring := self._acquiring.get(key)) is None:
                return await self._acquire(key, acquire(left))
            if left <= 0:
                why = f"another task waits for the connection of the key {key!r}"
                raise core.errors.timed_out(limit, why)
            await asyncio.wait({acquiring}, timeout=None if left == math.inf else left)
            left = max(deadline - core.runtime.time(), 0.0)
        return conn

    def find(self, key: Hashable) -> ACT | None:
        """Return the connection that a key holds now."""
        conn, lease = self.held.get(key, (None, None))
        return conn if conn is not None and self._core.lease_of(conn) is lease else None

    def require(self, key: Hashable, conn: object) -> None:
        """Raise ReleaseError unless the key holds this connection."""
        _require_hashable(key)
        if (held := self.find(key)) is not conn:
            has = "holds no connection" if held is None else f"holds {held!r}"
            pool = self._core.settings.name
            msg = f"pool {pool!r} cannot take back {conn!r} by the key {key!r}, which {has}"
            raise ReleaseError(msg)

    def forget(self, lease: Lease | None) -> None:
        """Free the key of a lease that has ended, if it has one."""
        if lease is not None and lease.notes is not None:
            self.held.pop(lease.notes.key, None)

    async def _acquire(self, key: Hashable, acquired: Awaitable[ACT]) -> ACT:
        self._acquiring[key] = acquiring = asyncio.get_running_loop().create_future()
        try:
            conn = await acquired
            if (lease := self._core.lease_of(conn)) is not None:  # else the pool was closed
                lease.annotate().key = key
                self.held[key] = conn, lease
        finally:
            del self._acquiring[key]
            if not acquiring.get_loop().is_closed():
                acquiring.set_result(None)
        return conn


def _require_hashable(key: Any) -> None:
    try:
        hash(key)
    except TypeError:
        msg = f"key must be hashable, not {key!r}"
        raise TypeError(msg) from None
